"""`diffcontrol record`: an expert drives a plant, and what it did becomes demonstrations."""

import dataclasses
import inspect
import shlex
from pathlib import Path
from typing import Annotated, Any

import equinox as eqx
import jax
import numpy as np
import tyro

from .. import MPC
from .._iterate import AbstractSolver
from .._solve import solve_from
from ..learning import Demonstrations, windows
from . import progress
from .controller import build_controller, true_problem
from .destination import check_destination
from .episodes import Episodes, check_length, run_episodes, seeds_of
from .errors import UserError
from .named import load_attribute, load_problem, system_named
from .plants import modelled_by, plant_named
from .versions import versions


@dataclasses.dataclass(frozen=True)
class Options:
    """Drive a plant with an MPC expert and write demonstrations.

    The expert of one of our systems knows the true parameters. A plant may do what the expert's
    model lacks: gymnasium:Pendulum-v1 clips the speed at 8 rad/s and observes in single
    precision, the model does neither. The file says so too.
    """

    plant: Annotated[str, tyro.conf.Positional]
    """pendulum, complex_pendulum, cartpole, double_integrator, or gymnasium:ENVIRONMENT such as
    gymnasium:Pendulum-v1."""
    out: Path
    """The .npz file to write. Nothing is overwritten."""
    episodes: int = 30
    """Number N of episodes."""
    steps: int = 80
    """Number L of steps of each episode."""
    first_seed: int = 1000
    """The episodes start from the seeds first_seed, first_seed + 1, ..."""
    problem: str | None = None
    """module:attribute of your own ControlProblem or MPC (or a function that returns it): the
    expert solves it at every step. Needed for plants that none of our systems models."""
    state_of: str | None = None
    """module:function, observation -> state (n,), for Gymnasium environments other than
    Pendulum-v1; numpy:asarray if the observation is the state."""
    action_of: str | None = None
    """module:function, control (m,) -> action; by default the control is the action."""
    least_return: float | None = None
    """Leave out episodes with a lower return, such as swing-ups that did not succeed."""
    keep_unsteady: bool = False
    """Keep episodes in which the expert changed its mind between two plans."""


def run(options: Options) -> None:
    """Record, write the file and say what is in it.

    Raises:
        UserError: for whatever the user can put right.
    """
    seeds = seeds_of(options.first_seed, options.episodes, options.steps)
    check_destination(options.out, "--out", ".npz")
    plant = plant_named(options.plant, options.state_of, options.action_of)
    check_length(plant, options.steps)
    controller, description = _expert(options)
    print(plant.lacks)
    try:
        episodes = run_episodes(
            controller, plant, seeds, options.steps, progress.steps("recording", options.steps)
        )
    finally:
        plant.close()
    if episodes.lengths.min() < options.steps:
        first = int(np.argmin(episodes.lengths))
        raise UserError(
            f"The episode of seed {seeds[first]} ended after {episodes.lengths[first]} steps; "
            f"give --steps {episodes.lengths.min()} or fewer."
        )

    solved, steady = ~episodes.unsolved.any(axis=1), np.ones(options.episodes, bool)
    if not options.keep_unsteady:
        steady = steady_episodes(controller, episodes)
    fit = episodes.returns >= (-np.inf if options.least_return is None else options.least_return)
    good = solved & steady & fit
    if not good.any():
        raise UserError(
            "Nothing was written: in every episode the expert's solver missed its tolerance, the "
            "expert changed its mind, or the return was too low; smooth or scale the problem, or "
            "give its plans more stages."
        )
    of = lambda which: [seed for seed, keep in zip(seeds, which, strict=True) if keep]
    description |= {
        "plant": options.plant,
        "model_lacks": plant.lacks,
        "command": command_of(options),
        "seeds": of(good),
        "left_out_unsolved": of(~solved),
        "left_out_changed_its_mind": of(solved & ~steady),
        "left_out_low_return": of(solved & steady & ~fit),
        "returns": [round(float(value), 4) for value in episodes.returns[good]],
        "versions": versions(),
    }
    check_destination(options.out, "--out", ".npz")
    Demonstrations(
        episodes.states[good], episodes.controls[good], plant.time_step, description
    ).save(options.out)
    print(
        f"{options.out}: {good.sum()} episodes of {options.steps} steps, mean return "
        f"{episodes.returns[good].mean():.1f}, {options.out.stat().st_size / 1000:.0f} kB."
    )
    if not solved.all():
        print(f"Left out, the expert's solver missed its tolerance: seeds {of(~solved)}.")
    if not steady[solved].all():
        print(
            f"Left out, the expert changed its mind between two plans: seeds {of(solved & ~steady)}"
            ". Learners start from the recorded controls and would find the other plan."
        )
    if not fit[solved & steady].all():
        print(f"Left out, the return was too low: seeds {of(solved & steady & ~fit)}.")


def steady_episodes(controller: MPC, episodes: Episodes) -> np.ndarray:
    """Which episodes the expert carried out as it planned them, `(N,)`.

    Learning starts each solve from the controls recorded after a state. Where the expert went over
    to another plan in between, two are locally optimal, and a learner with the true parameters
    would find the one that the expert gave up.
    """

    solver = controller.solver
    assert isinstance(solver, AbstractSolver)  # experts are not planners

    @eqx.filter_jit
    def first_controls(problem, samples):
        solve = lambda s: solve_from(problem, s.states[0], s.time, solver, s.guess)
        return jax.vmap(lambda sample: solve(sample).controls[0])(samples)

    runs = Demonstrations(episodes.states, episodes.controls)
    found = first_controls(controller.problem, windows(runs, controller.problem.horizon))
    apart = np.abs(np.asarray(found).reshape(runs.controls.shape) - runs.controls)
    return (apart <= 1e-3 * max(1.0, np.abs(runs.controls).max())).all(axis=(1, 2))


def command_of(options: Options) -> str:
    """The command line that these options came from, with the file's name alone."""
    words = ["diffcontrol", "record", options.plant]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        flag = "--" + field.name.replace("_", "-")
        if field.name != "plant" and value is not None and value is not False:
            text = value.name if isinstance(value, Path) else str(value)
            words += [flag] if value is True else [flag, text]
    return shlex.join(words)


def _expert(options: Options) -> tuple[MPC, dict[str, Any]]:
    """The controller, and what the description says about it."""
    if options.problem is not None:
        return _own_expert(options.problem), {"problem": options.problem}
    name = modelled_by(options.plant)
    if name is None:
        raise UserError(
            f"None of our systems models `{options.plant}`; give the expert's problem with "
            "--problem module:attribute."
        )
    system = system_named(name)
    usual = system.dynamics()
    description = {
        "system": name,
        "parameters": {key: float(getattr(usual, key)) for key in system.parameters},
        "controller": system.controller,
    }
    return build_controller(true_problem(description), description), description


def _own_expert(text: str) -> MPC:
    """The controller that `module:attribute` names or returns, or one that solves its problem."""
    value = load_attribute(text)
    if inspect.isfunction(value) and not inspect.signature(value).parameters:
        value = value()
    return value if isinstance(value, MPC) else MPC(load_problem(text))
