"""The command line: what it writes, and one sentence for whatever the user can put right."""

import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
import diffcontrol.systems
from diffcontrol._cli import evaluate, fit_report, main, pictures, run_folder
from diffcontrol._cli.controller import build_controller, build_problem, true_problem
from diffcontrol._cli.episodes import Episodes
from diffcontrol._cli.errors import UserError
from diffcontrol._cli.fit_inputs import data_path
from diffcontrol._cli.learner import choose_parameters, values, with_starts
from diffcontrol._cli.named import SYSTEMS, load_attribute
from diffcontrol._cli.plants import GymnasiumPlant, plant_named
from diffcontrol.learning import Demonstrations, windows

SHIPPED = Path(dc.__file__).parent / "data" / "pendulum.npz"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder to work in; compiled programs are not kept in the user's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "unused")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def refused(capsys, *arguments) -> str:
    """The sentence with which the command line refuses these arguments."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("diffcontrol: ") and said[-1].endswith((".", ")"))
    assert not any("Traceback" in line for line in said)
    return said[-1]


# What there is.


def test_help_starts_no_computation():
    program = (
        "import sys\n"
        "from diffcontrol._cli import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'tyro', 'rich', 'matplotlib', 'gymnasium', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("fit", "record", "evaluate", "check"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize("command", ["record", "evaluate", "check"])
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"diffcontrol {command}" in capsys.readouterr().out


def test_unknown_command(capsys):
    assert "fit, record, evaluate, check" in refused(capsys, "learn")


def test_version_and_doctor(capsys):
    assert main(["--version"]) == 0
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"diffcontrol {dc.__version__}")
    assert "kernel" in said


def test_a_file_where_a_module_is_wanted(capsys):
    assert "leave out .py" in refused(capsys, "check", "mine.py:problem", "--x0", "0.0")


def test_no_command_shows_the_commands(capsys):
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


# Record.


def test_record_writes_what_it_says(here):
    arguments = ["record", "double_integrator", "--out", "a.npz", "--episodes", "3", "--steps", "7"]
    assert main(arguments) == 0
    runs = Demonstrations.load(here / "a.npz")
    assert runs.states.shape == (3, 8, 2) and runs.controls.shape == (3, 7, 1)
    assert runs.time_step == 0.1
    said = runs.description
    assert said["system"] == said["plant"] == "double_integrator"
    assert said["parameters"] == {"mass": 1.0}
    assert said["seeds"] == [1000, 1001, 1002]
    assert said["command"].startswith("diffcontrol record double_integrator --out a.npz")
    assert {"jax", "numpy", "diffcontrol"} <= said["versions"].keys()

    # The description rebuilds the expert: the first control of each of its plans was applied.
    system = SYSTEMS["double_integrator"]
    problem = build_problem(said, system.dynamics(**said["parameters"]))
    controller = build_controller(problem, said)
    sample = windows(runs, problem.horizon)
    plans = jax.jit(
        jax.vmap(lambda x, g: dc.solve(problem, x, controller.solver, guess=g, throw=False))
    )(sample.states[:, 0], sample.guess)
    np.testing.assert_allclose(plans.controls[:, 0], sample.controls[:, 0], atol=1e-7)


def test_record_leaves_an_existing_file(here, capsys):
    (here / "a.npz").write_text("mine")
    said = refused(capsys, "record", "double_integrator", "--out", "a.npz")
    assert "exists" in said and (here / "a.npz").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unicycle", "--out", "a.npz"], "pendulum, cartpole, complex_pendulum, double_integrator"),
        (["pendulum", "--out", "a.csv"], ".npz"),
        (["pendulum", "--out", "nowhere/a.npz"], "does not exist"),
        (["pendulum", "--out", "a.npz", "--steps", "0"], "at least 1"),
        (["pendulum", "--out", "a.npz", "--first-seed", "-1"], "not be negative"),
        (["pendulum", "--out", "a.npz", "--problem", "mine"], "module:attribute"),
        (["pendulum", "--out", "a.npz", "--problem", "absent_module:p"], "no module"),
        (["pendulum", "--out", "a.npz", "--problem", "json:absent"], "no attribute"),
        (["pendulum", "--out", "a.npz", "--problem", "json:dumps"], "without arguments"),
        (["pendulum", "--out", "a.npz", "--problem", "math:pi"], "name a ControlProblem"),
    ],
)
def test_record_refuses(arguments, words, capsys, here):
    assert words in refused(capsys, "record", *arguments)
    assert not list(here.glob("*.npz"))


def test_record_with_the_users_problem_of_another_size(capsys, here):
    (here / "my_problem.py").write_text(
        "import diffcontrol as dc\n"
        "def f(x, u, t):\n"
        "    assert x.shape == (2,)\n"
        "    return x.at[0].add(u[0])\n"
        "problem = lambda: dc.ControlProblem(dynamics=lambda x, u, t: x[:2] + u[0],\n"
        "    stage_cost=lambda x, u, t: x @ x + u @ u, horizon=3, control_size=1)\n"
    )
    said = refused(
        capsys, "record", "pendulum", "--out", "a.npz", "--problem", "my_problem:problem"
    )
    assert "3 entries" in said


def test_a_module_that_fails_on_import(here):
    (here / "broken_module.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        load_attribute("broken_module:problem")


# Gymnasium.


def test_pendulum_is_seen_as_it_is():
    pytest.importorskip("gymnasium")
    plant = plant_named("gymnasium:Pendulum-v1")
    assert plant.most_steps == 200 and plant.time_step == 0.05 and "8 rad/s" in plant.lacks
    start = plant.reset([0, 1])
    np.testing.assert_array_equal(plant.reset([0, 1]), start)
    control = np.array([[1.0], [-2.0]])
    following, rewards, ended = plant.step(control)
    plant.close()
    model = dc.systems.Pendulum()
    expected = jax.vmap(lambda x, u: model(x, u, 0))(jnp.asarray(start), jnp.asarray(control))
    np.testing.assert_allclose(following, expected, atol=1e-6)  # observed in single precision
    angle = np.arctan2(start[:, 1], start[:, 0])
    np.testing.assert_allclose(
        rewards, -(angle**2 + 0.1 * start[:, 2] ** 2 + 0.001 * control[:, 0] ** 2), atol=1e-5
    )
    assert not ended.any()


def test_an_environment_without_a_mapping(capsys):
    pytest.importorskip("gymnasium")
    said = refused(capsys, "record", "gymnasium:CartPole-v1", "--out", "a.npz")
    assert "--state-of" in said


def test_an_unknown_environment(capsys):
    pytest.importorskip("gymnasium")
    said = refused(
        capsys, "record", "gymnasium:Nothing-v9", "--out", "a.npz", "--state-of", "numpy:asarray"
    )
    assert "Nothing" in said


def test_without_gymnasium(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    said = refused(capsys, "record", "gymnasium:Pendulum-v1", "--out", "a.npz")
    assert "diffcontrol[sim]" in said


def test_an_episode_that_is_too_long(capsys):
    pytest.importorskip("gymnasium")
    said = refused(capsys, "record", "gymnasium:Pendulum-v1", "--out", "a.npz", "--steps", "201")
    assert "200" in said


def test_an_environment_that_ends_early_stands_still():
    pytest.importorskip("gymnasium")
    (module := type(sys)("actions")).push = lambda control: int(control[0] > 0)
    sys.modules["actions"] = module
    plant = GymnasiumPlant("CartPole-v1", "numpy:asarray", "actions:push")
    plant.reset([0])
    for _ in range(40):
        states, rewards, ended = plant.step(np.ones((1, 1)))
    again, rewards, ended = plant.step(np.ones((1, 1)))
    plant.close()
    assert ended.all() and rewards[0] == 0.0
    np.testing.assert_array_equal(again, states)


# The shipped demonstrations.


def test_the_shipped_file_is_small_and_says_what_it_is():
    assert SHIPPED.stat().st_size < 200_000
    runs = Demonstrations.load(SHIPPED)
    said = runs.description
    assert said["plant"] == "gymnasium:Pendulum-v1" and said["system"] == "pendulum"
    assert SYSTEMS["pendulum"].controller.items() <= said["controller"].items()
    assert said["command"].startswith("diffcontrol record gymnasium:Pendulum-v1 ")
    assert min(said["seeds"]) >= 1000  # those below are for evaluation
    assert runs.states[:, -1, 0].min() > 0.99  # every episode ends upright


@pytest.mark.parametrize(
    "system, file", [("pendulum", "pendulum.npz"), ("cartpole", "cartpole_mujoco.npz")]
)
def test_shipped_files_are_found_by_the_system(system, file):
    assert data_path(system, None).name == file


def test_true_parameters_reproduce_the_shipped_controls():
    runs = Demonstrations.load(SHIPPED)
    problem = build_problem(runs.description, dc.systems.Pendulum())
    solver = build_controller(problem, runs.description).solver
    sample = windows(runs, problem.horizon, most=60)
    plans = jax.jit(jax.vmap(lambda x, g: dc.solve(problem, x, solver, guess=g, throw=False)))(
        sample.states[:, 0], sample.guess
    )
    np.testing.assert_allclose(plans.controls[:, 0], sample.controls[:, 0], atol=1e-5)


@pytest.mark.slow
def test_the_pendulum_expert_swings_up_from_every_start():
    pytest.importorskip("gymnasium")
    from diffcontrol._cli.episodes import run_episodes
    from diffcontrol._cli.evaluate import expert_of

    expert = expert_of(Demonstrations.load(SHIPPED).description)
    plant = plant_named("gymnasium:Pendulum-v1")
    episodes = run_episodes(expert, plant, range(20), 100)
    plant.close()
    assert (episodes.states[:, -20:, 0] > 0.99).all()
    assert episodes.returns.mean() > -140


# The controller's description.


def test_a_description_that_lacks_an_entry():
    said = {"controller": {**SYSTEMS["pendulum"].controller}}
    del said["controller"]["goal"]
    with pytest.raises(UserError, match="lacks the entry 'goal'"):
        build_problem(said, dc.systems.Pendulum())
    with pytest.raises(UserError, match="lacks the entry 'controller'"):
        build_problem({}, dc.systems.Pendulum())


def test_described_bounds_and_starts():
    said = {
        "controller": {
            **SYSTEMS["pendulum"].controller,
            "horizon": 4,
            "upper": None,
            "starts": [[-1.0, 2.0, 3]],
        }
    }
    problem = build_problem(said, dc.systems.Pendulum())
    assert jnp.isinf(problem.control_bounds.upper)
    starts = build_controller(problem, said).starts
    np.testing.assert_array_equal(starts[0, :, 0], [-1.0, -1.0, -1.0, 2.0])


def test_a_described_parameter_that_there_is_not():
    said = {"system": "pendulum", "parameters": {"wind": 1.0}, "controller": {}}
    with pytest.raises(UserError, match="no parameter `wind`; choose from gravity, mass, length"):
        true_problem(said)


def test_share_at_bound():
    controls = np.array([[[2.0], [1.0], [-2.0], [0.0]]])
    assert evaluate.share_at_bound(controls, dc.Bounds(-2.0, 2.0)) == 0.5
    assert evaluate.share_at_bound(controls, None) == 0.0


def test_what_follows_the_end_of_an_episode_does_not_count():
    rest = np.zeros((1, 3))
    controls, unsolved = np.array([[[0.0], [2.0], [2.0]]]), np.array([[False, False, True]])
    episodes = Episodes(np.zeros((1, 4, 1)), controls, rest, np.array([2]), unsolved)
    seen = evaluate._numbers(episodes, dc.Bounds(-2.0, 2.0))
    assert (seen["share_at_bound"], seen["share_of_unsolved_steps"]) == (0.5, 0.0)


# Check.


def test_check_passes_and_draws(here, capsys):
    assert main(["check", "double_integrator", "--samples", "1", "--plot", "check.png"]) == 0
    assert "PASSED" in capsys.readouterr().out
    assert (here / "check.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unicycle"], "pendulum, cartpole, complex_pendulum, double_integrator"),
        (["absent_module:problem", "--x0", "1"], "no module"),
        (["pendulum", "--x0", "1", "0"], "cannot be solved"),
        (["pendulum", "--plot", "check.txt"], ".png"),
        (["pendulum", "--entries-per-leaf", "0"], "--entries-per-leaf must be at least 1"),
        (["pendulum", "--samples", "0"], "--samples must be at least 1"),
    ],
)
def test_check_refuses(arguments, words, capsys):
    assert words in refused(capsys, "check", *arguments)


def test_check_needs_a_start_for_the_users_problem(here, capsys):
    (here / "ours.py").write_text(
        "import diffcontrol.systems as s\nproblem = s.double_integrator.problem(5)\n"
    )
    assert "--x0" in refused(capsys, "check", "ours:problem")


# Evaluate.


@pytest.fixture
def learned_run(here):
    """A run folder as `fit` leaves it: the true dynamics, but another mass."""
    said = {
        "system": "double_integrator",
        "plant": "double_integrator",
        "parameters": {"mass": 1.0},
        "controller": {**SYSTEMS["double_integrator"].controller, "horizon": 5},
    }
    run_folder.create(here / "run", {}, said)
    problem = build_problem(said, dc.systems.DoubleIntegrator(mass=1.5))
    run_folder.save_controller(here / "run", problem)
    return here / "run"


def test_evaluate_compares_with_the_expert(learned_run):
    arguments = ["evaluate", str(learned_run), "--episodes", "3", "--steps", "10"]
    assert main(arguments) == 0
    folder = learned_run / "evaluation"
    written = {path.name for path in folder.iterdir()}
    assert written == {"evaluation.json", "closed_loop.png", "returns.png"}
    report = json.loads((folder / "evaluation.json").read_text())
    learned, expert = report["learned"], report["expert"]
    assert len(learned["returns"]) == 3 and 0 <= learned["share_at_bound"] <= 1
    assert learned["mean_return"] < 0 and learned["mean_return"] != expert["mean_return"]
    difference = 100 * (learned["mean_return"] / expert["mean_return"] - 1)
    assert report["difference_percent"] == pytest.approx(-difference)


def test_evaluate_leaves_what_is_there(learned_run, capsys):
    (learned_run / "evaluation").mkdir()
    assert "exists" in refused(capsys, "evaluate", learned_run)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--episodes", "0"], "at least 1"),
        (["--first-seed", "-1"], "not be negative"),
        (["--plant", "unicycle"], "pendulum, cartpole, complex_pendulum, double_integrator"),
        (["--plant", "pendulum", "--steps", "2"], "3 entries"),
    ],
)
def test_evaluate_refuses(arguments, words, learned_run, capsys):
    assert words in refused(capsys, "evaluate", learned_run, *arguments)
    assert not (learned_run / "evaluation").exists()


def test_evaluate_without_a_run_folder(here, capsys):
    assert "no run folder" in refused(capsys, "evaluate", "absent")
    (here / "empty").mkdir()
    assert "empty" in refused(capsys, "evaluate", "empty")


# Which parameters are learned.


class Linear(eqx.Module):
    gain: jax.Array
    mass: jax.Array

    def __call__(self, x, u, t):
        return self.gain * x + u / self.mass


class Effort(eqx.Module):
    gain: jax.Array

    def __call__(self, x, u, t):
        return x @ x + self.gain * (u @ u)


def test_parameters_of_one_name_are_all_learned():
    gain = lambda: jnp.asarray(0.5)
    problem = dc.ControlProblem(
        dynamics=Linear(gain(), gain()), stage_cost=Effort(gain()), horizon=2, control_size=1
    )
    assert set(values(problem, "dynamics")) == {"gain", "mass"}
    assert set(values(problem, "cost")) == {"gain"}
    both = {"dynamics.gain", "mass", "stage_cost.gain"}
    assert set(values(problem, "both")) == both
    coordinates, _, logarithmic = choose_parameters(problem, "both", raw=False)
    assert len(jax.tree.leaves(coordinates)) == 3 and set(logarithmic) == both
    moved = with_starts(problem, "both", {"stage_cost.gain": 2.0})
    assert (moved.stage_cost.gain, moved.dynamics.gain) == (2.0, 0.5)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Plans of the double integrator, recorded whole, in a file."""
    said = {"controller": {**SYSTEMS["double_integrator"].controller, "horizon": 6}}
    problem = build_problem(said, dc.systems.DoubleIntegrator())
    starts = np.random.default_rng(0).uniform(-1.0, 1.0, (6, 2))
    found = jax.jit(jax.vmap(lambda x0: dc.solve(problem, x0, throw=False)))(jnp.asarray(starts))
    path = tmp_path_factory.mktemp("plans") / "plans.npz"
    said |= {"system": "double_integrator", "parameters": {"mass": 1.0}}
    Demonstrations(np.asarray(found.states), np.asarray(found.controls), 0.1, said).save(path)
    return path


def fit_of(plans: Path) -> list[str]:
    """A fit that starts at the truth."""
    settings = ["--epochs", "2", "--steps", "6", "--start", "mass=1"]
    return ["fit", "double_integrator", str(plans), "--out", "run", *settings]


def test_held_out_plans_are_met_by_the_truth(plans, here):
    assert main(fit_of(plans)) == 0
    result = json.loads((here / "run" / "result.json").read_text())
    assert result["best_epoch"] == 0 and result["held_out_windows"] == result["held_out_runs"] == 1
    assert result["imitation_loss"] < 1e-12


def test_the_report_plans_again_after_as_many_steps_as_are_compared(plans):
    runs = Demonstrations.load(plans)
    problem = build_problem(runs.description, dc.systems.DoubleIntegrator())
    seen = fit_report.closed_loop(problem, dc.DDP(), runs, 6)
    np.testing.assert_allclose(seen.controls, runs.controls, atol=1e-6)
    np.testing.assert_allclose(seen.states, runs.states, atol=1e-6)
    # The second plan begins at the fifth step and is cut off.
    seen = fit_report.closed_loop(problem, dc.DDP(), runs, 4)
    assert seen.states.shape == runs.states.shape and seen.controls.shape == runs.controls.shape
    np.testing.assert_allclose(seen.controls[:, :4], runs.controls[:, :4], atol=1e-6)
    assert np.abs(seen.controls[:, 4:] - runs.controls[:, 4:]).max() > 1e-3


@pytest.fixture
def begun(plans, here, monkeypatch, capsys):
    """A fit that was interrupted after its checkpoint."""
    with monkeypatch.context() as stopped:
        stopped.setattr(fit_report, "parameters", interrupt)
        assert main(fit_of(plans)) == 130
    assert "--resume" in capsys.readouterr().err
    return here / "run"


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epochs", "20"], "--epochs 2, not 20"),
        (["--steps", "1"], "--steps 6, not 1"),
        (["--raw"], "--raw False"),
        (["other.npz"], "--data"),
    ],
)
def test_a_continued_fit_keeps_its_settings(options, words, begun, capsys):
    said = refused(capsys, "fit", "double_integrator", *options, "--out", begun, "--resume")
    assert words in said


def test_options_left_out_are_those_of_the_continued_fit(begun):
    assert main(["fit", "double_integrator", "--out", str(begun), "--resume"]) == 0
    assert json.loads((begun / "result.json").read_text())["best_epoch"] == 0
    assert len((begun / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["checkpoint.eqx", "metrics.jsonl", "config.json"])
def test_a_damaged_run_is_refused_in_a_sentence(name, begun, capsys):
    (begun / name).write_bytes((begun / name).read_bytes()[:10])
    said = refused(capsys, "fit", "double_integrator", "--out", begun, "--resume")
    assert name in said


# Fit: what the user can put right. That it learns is tested where learning is.


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (None, "no such file"),
        ({"states": np.zeros((3, 3, 2))}, "`controls` is missing"),
        ({"states": np.full((3, 3, 2), np.nan), "controls": np.zeros((3, 2, 1))}, "not finite"),
        ({"states": np.zeros((3, 3, 2)), "controls": np.zeros((3, 3, 1))}, "belong together"),
        ({"states": np.array([None]), "controls": np.zeros((3, 2, 1))}, "Python objects"),
    ],
)
def test_fit_refuses_bad_files(arrays, words, here, capsys):
    if arrays is not None:
        np.savez(here / "a.npz", **arrays)
    said = refused(capsys, "fit", "double_integrator", "a.npz", "--out", "run")
    assert words in said and "a.npz" in said and not (here / "run").exists()


def test_fit_refuses_an_unknown_system(capsys):
    said = refused(capsys, "fit", "unicycle", SHIPPED, "--out", "run")
    assert "pendulum, cartpole, complex_pendulum, double_integrator" in said


def test_fit_leaves_an_existing_folder(here, capsys):
    (here / "run").mkdir()
    assert "exists" in refused(capsys, "fit", "pendulum", "--out", "run")


# Pictures.


def test_pictures(here):
    metrics = [
        {"epoch": 0, "loss": None, "validation_loss": 2.0, "left_out": None, "best_epoch": 0},
        {"epoch": 1, "loss": 1.5, "validation_loss": 1.0, "left_out": 0.1, "best_epoch": 1},
    ]
    pictures.loss_curves(metrics, here / "loss.png")
    history = [{"gravity": 15.0, "mass": 3.0}, {"gravity": 12.0, "mass": 2.0}]
    pictures.parameters(history, {"gravity": 10.0}, here / "parameters.png", {"mass": "kg"})
    pictures.parameters(history, None, here / "parameters_alone.png")
    names = ([("angle", "rad"), ("speed", "rad/s")], [("torque", "N m")])
    x, u = np.zeros((2, 5, 2)), np.ones((2, 4, 1))
    limits = dc.Bounds(-1.0, np.inf)
    pictures.trajectories(None, (x, u), (x, u), names, here / "both.png", "title", limits)
    pictures.trajectories(0.1, None, (x, u), names, here / "alone.png")
    pictures.returns([0, 1], np.array([-1.0, -2.0]), np.array([-1.5, -2.0]), here / "returns.png")
    pictures.returns([0, 1], None, np.array([-1.5, -2.0]), here / "returns_alone.png")
    assert len(list(here.glob("*.png"))) == 7
