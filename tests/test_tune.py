"""`diffcontrol tune`: what it writes, that it improves, resumes, and says what is wrong."""

import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol._cli import main, pictures, run_folder, tune_report
from diffcontrol._cli.plants import system_plant
from diffcontrol._cli.task import LikelihoodRatioTask, RecordedTask
from diffcontrol.learning import TotalCost, parametrise, sample_gradients

from .test_cli import here as here  # a fixture
from .test_cli import refused

# A user's own file, as the README has it.
MINE = """
import equinox as eqx
import jax
import jax.numpy as jnp
import diffcontrol as dc


class Boat(eqx.Module):
    push: jax.Array
    drag: jax.Array

    def __call__(self, x, u, t):
        position, speed = x
        speed = speed + 0.2 * (self.push * u[0] - self.drag * speed * jnp.abs(speed))
        return jnp.stack([position + 0.2 * speed, speed])


problem = dc.ControlProblem(
    dynamics=Boat(jnp.array(1.0), jnp.array(0.1)),
    stage_cost=dc.GoalCost([1.0, 0.1, 0.1], [0.0, 0.0]),
    horizon=5,
    control_size=1,
    control_bounds=dc.Bounds(-2.0, 2.0),
)
plant = Boat(jnp.array(0.4), jnp.array(0.3))


def start(key):
    return jax.random.uniform(key, (2,), minval=-0.7, maxval=0.7)


def wide(key):
    return jnp.zeros(3)
"""
FEW = ["--steps", "8", "--episodes", "4", "--validation-episodes", "4", "--test-episodes", "5"]
TUNE = ["tune", "boat:problem", "--plant", "boat:plant", "--starts", "boat:start"]


@pytest.fixture
def boat(here):
    (here / "boat.py").write_text(MINE)
    return here


def interrupt(*_):
    raise KeyboardInterrupt


def test_tuning_of_the_users_own_problem(boat, capsys):
    """One command does it all."""
    command = [*TUNE, *FEW, "--epochs", "6", "--batch-size", "4", "--learning-rate", "0.2"]
    assert main([*command, "--out", "run"]) == 0
    said = capsys.readouterr().out
    result = json.loads((boat / "run" / "result.json").read_text())
    assert result["test_episodes"] == 5 and result["steps"] == 8
    before, after = result["cost_before"], result["cost_after"]
    assert after["mean"] < before["mean"] and before["interval"][0] < before["mean"]
    assert result["change"]["mean"] == pytest.approx(after["mean"] - before["mean"])
    assert result["share_of_unsolved_steps_after"] == 0.0 and "held-out" in said
    learned = json.loads((boat / "run" / "parameters.json").read_text())["learned"]
    assert learned["push"] < 1.0  # towards what the plant has
    written = {path.name for path in (boat / "run").iterdir()}
    assert written == {
        *("config.json", "description.json", "checkpoint.eqx", "metrics.jsonl"),
        *("controller.eqx", "parameters.json", "result.json"),
        *("loss.png", "parameters.png", "closed_loop.png"),
    }
    controller = run_folder.load_controller(boat / "run")
    assert float(controller.problem.dynamics.push) == pytest.approx(learned["push"])
    # Its plant and starts are known from here on.
    assert main(["evaluate", "run", "--episodes", "2", "--steps", "8"]) == 0
    report = json.loads((boat / "run" / "evaluation" / "evaluation.json").read_text())
    assert report["plant"] == "boat:plant" and report["learned"]["mean_return"] < 0.0
    more = ["--episodes", "2", "--steps", "8", "--out", "other", "--plant", "boat:start"]
    assert "boat:start" in refused(capsys, "evaluate", "run", *more)


@pytest.mark.slow
def test_an_interrupted_tuning_ends_in_the_same_bits(boat, monkeypatch, capsys):
    command = [*TUNE, *FEW, "--epochs", "3", "--batch-size", "2"]
    assert main([*command, "--out", "run"]) == 0
    with monkeypatch.context() as stopped:
        stopped.setattr(tune_report, "result", interrupt)
        assert main([*command, "--out", "again"]) == 130
    assert "diffcontrol tune boat:problem --out again --resume" in capsys.readouterr().err
    said = refused(capsys, "tune", "boat:problem", "--out", "again", "--resume", "--epochs", "7")
    assert "--epochs 3, not 7" in said
    assert main(["tune", "boat:problem", "--out", "again", "--resume"]) == 0
    for name in ("controller.eqx", "metrics.jsonl", "checkpoint.eqx", "result.json"):
        assert (boat / "run" / name).read_bytes() == (boat / "again" / name).read_bytes()


@pytest.mark.slow
def test_tuning_goes_on_from_a_run_folder(boat):
    """For robustness, with noise, another horizon, and what was learned before."""
    problem = run_folder.problem_like({"problem": "boat:problem"})
    learned = eqx.tree_at(lambda p: p.dynamics.push, problem, jnp.asarray(0.7))
    run_folder.create(boat / "fitted", {}, {"problem": "boat:problem"})
    run_folder.save_controller(boat / "fitted", learned)
    settings = ["--learn", "both", "--epochs", "1", "--horizon", "4"]
    robust = ["--plant-spread", "0.1", "--noise", "0.01"]
    assert main([*TUNE, *FEW, "--from", "fitted", "--out", "run", *settings, *robust]) == 0
    report = json.loads((boat / "run" / "parameters.json").read_text())
    assert report["start"]["push"] == pytest.approx(0.7)
    assert run_folder.load_controller(boat / "run").problem.horizon == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tune", "boat:problem"], "--starts"),
        (["tune", "unicycle"], "pendulum, cartpole, complex_pendulum, double_integrator"),
        ([*TUNE, "--steps", "0"], "--steps must be at least 1"),
        ([*TUNE, "--learning-rate", "0"], "--learning-rate must be positive"),
        ([*TUNE, "--plant-spread", "-1"], "--plant-spread must not be negative"),
        ([*TUNE, "--noise", "-1"], "--noise must not be negative"),
        ([*TUNE, "--noise", "1", "2", "3"], "one for each of the 2 states"),
        ([*TUNE, "--by", "likelihood-ratio"], "differentiated exactly"),
        ([*TUNE, "--from", "absent"], "absent"),
        ([*TUNE[:-1], "boat:wide"], "do not fit together"),
        ([*TUNE, "--plant", "boat:absent"], "no attribute"),
        ([*TUNE, "--plant", "boat:jnp"], "name a callable"),
        ([*TUNE, "--plant", "unicycle"], "pendulum, cartpole, complex_pendulum, double_integrator"),
        ([*TUNE[:2], "--plant", "gymnasium:Pendulum-v1", "--noise", "1"], "brings its own"),
    ],
)
def test_tune_refuses(arguments, words, boat, capsys):
    assert words in refused(capsys, *arguments)
    assert not (boat / "run").exists()


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["tune", "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for option in ("--from", "--plant", "--starts", "--plant-spread", "--noise", "--horizon"):
        assert option in said


def test_tune_leaves_an_existing_folder(boat, capsys):
    (boat / "run").mkdir()
    assert "exists" in refused(capsys, *TUNE)


def on_plant(kind, **settings):
    """A task on the double integrator, driven as a plant without derivatives."""
    plant = system_plant("double_integrator")
    problem = dc.systems.double_integrator.problem(
        horizon=4, dynamics=dc.systems.DoubleIntegrator(mass=2.0)
    )
    measure = TotalCost(problem.stage_cost)
    return problem, kind(plant, problem, measure, dc.MPC, 5, ([7, 8], [9], [0, 1]), **settings)


def test_the_recorded_estimator_drives_the_plant():
    problem, task = on_plant(RecordedTask)
    driven, samples = task.drive(problem), task.training(problem, None)
    assert driven.states.shape == (2, 6, 2) and driven.costs.shape == (2, 5)
    np.testing.assert_allclose(driven.costs.sum(axis=1), driven.totals)
    coordinates, parametrisation = parametrise(problem, lambda p: p.dynamics.mass)
    found = jax.jit(lambda c, s: sample_gradients(task.loss, parametrisation, c, s, None))(
        coordinates, samples
    )
    assert found.usable.all() and found.value.shape == (2,)
    again = task.plant.reset([7, 8])
    np.testing.assert_array_equal(samples.x0, again)
    # The loss is what the plant did, whatever the model thinks.
    episodes = task._driven(task._run(problem, [7, 8]))
    np.testing.assert_allclose(found.value, episodes.totals, rtol=1e-9)


def test_the_likelihood_ratio_tries_noisy_controls():
    problem, task = on_plant(LikelihoodRatioTask, sigma=0.1, control_size=1)
    samples = task.training(problem, jax.random.key(0))
    assert samples.states.shape == (8, 6, 2) and task.size == 8
    np.testing.assert_array_equal(samples.states[0, 0], samples.states[3, 0])
    assert (samples.states[0, 1:] != samples.states[3, 1:]).all(axis=1).any()
    # The plant did what the noisy controls say, as far as they keep to its bounds.
    plant = dc.systems.DoubleIntegrator()
    inside = np.abs(samples.controls[:, :, 0]) < 1.0
    following = jax.vmap(jax.vmap(lambda x, u: plant(x, u, 0)))(
        samples.states[:, :-1], samples.controls
    )
    np.testing.assert_allclose(samples.states[:, 1:][inside], following[inside], atol=1e-12)
    assert inside.any() and np.abs(samples.advantages.reshape(2, 4, 5).sum(axis=1)).max() < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("by", ["derivatives", "likelihood-ratio"])
def test_tuning_in_gymnasium(by, here):
    pytest.importorskip("gymnasium")
    command = ["tune", "pendulum", "--plant", "gymnasium:Pendulum-v1", "--by", by, "--quick"]
    assert main([*command, "--horizon", "10", "--steps", "8", "--out", "run"]) == 0
    result = json.loads((here / "run" / "result.json").read_text())
    assert np.isfinite(result["cost_after"]["mean"])
    arguments = ["evaluate", "run", "--episodes", "2", "--steps", "5"]
    assert main(arguments) == 0


def test_the_picture_of_before_and_after(here):
    x, u, cost = np.zeros((2, 5, 2)), np.ones((2, 4, 1)), np.ones((2, 4))
    names = ([("angle", "rad"), ("speed", "rad/s")], [("torque", "N m")])
    path = Path("picture.png")
    bounds = dc.Bounds(-1.0, jnp.inf)
    pictures.before_and_after(0.1, (x, u, cost), (x, u, cost), names, path, ("a", "b"), bounds)
    assert path.stat().st_size > 1000
