"""What a tuning starts from: the controller, the plant, and by which cost it is judged."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import jax

from .. import ControlProblem
from ..learning import TotalCost
from .episodes import check_length
from .errors import UserError
from .fit_inputs import learner
from .learner import read_starts, with_starts
from .named import SYSTEMS, load_attribute, load_dynamics, load_problem, system_named
from .plants import PREFIX, check_fit, modelled_by, plant_named
from .run_folder import controller_of, load_controller, load_description, problem_like
from .settings import check_at_least_one, check_not_negative, check_positive
from .task import DifferentiableTask, LikelihoodRatioTask, RecordedTask, Task

# Starts for testing are those that `diffcontrol evaluate` takes; demonstrations are recorded from
# 1000 on.
_FIRST_TRAINING_SEED, _FIRST_VALIDATION_SEED = 100_000, 200_000


def check_numbers(options: Any) -> None:
    """Raise `UserError` for settings out of range, or that do not go together."""
    counts = ("epochs", "episodes", "validation_episodes", "test_episodes", "batch_size", "steps")
    check_at_least_one(options, (*counts, "horizon", "max_iterations"))
    check_positive(options, ("learning_rate", "clip", "checkpoint_every", "sigma"))
    check_not_negative(options, ("plant_spread", "seed"))
    if any(not 0 <= value < float("inf") for value in options.noise):
        raise UserError(f"--noise must not be negative, got {options.noise}.")
    recorded = (options.plant or "").startswith(PREFIX)
    if recorded and (options.plant_spread or options.noise or options.starts):
        raise UserError(
            f"{options.plant} brings its own starts, noise and parameters; leave out --starts, "
            "--noise and --plant-spread."
        )
    if not recorded and options.by != "derivatives":
        raise UserError(
            f"--by {options.by} is for plants without derivatives; a plant in JAX is differentiated"
            " exactly, so leave the option out."
        )


def describe(options: Any) -> dict[str, Any]:
    """The description that the run folder keeps: the controller's structure, and its plant."""
    own = ":" in options.system
    if options.from_ is None:
        if own:
            said: dict[str, Any] = {"problem": options.system}
        else:
            said = {"controller": system_named(options.system).controller, "system": options.system}
    else:
        said = copy.deepcopy(load_description(options.from_))
        if said.get("problem", said.get("system")) != options.system:
            raise UserError(
                f"{options.from_} holds a controller of `{said.get('problem', said.get('system'))}`"
                f", not of `{options.system}`; name that, or give another --from."
            )
    settings = said.get("controller", said)
    if options.horizon is not None:
        settings["horizon"] = options.horizon
    if options.max_iterations is not None:
        settings["max_iterations"] = options.max_iterations
    # What `diffcontrol evaluate` drives, too.
    plant = said["plant"] = plant_name(options)
    said.pop("starts", None)
    if options.starts is not None:
        said["starts"] = options.starts
    said.pop("parameters", None)
    if not own and modelled_by(plant) == options.system:
        system = system_named(options.system)
        usual = system.dynamics()
        said["parameters"] = {name: float(getattr(usual, name)) for name in system.parameters}
    return said


def plant_name(options: Any) -> str:
    """The plant as one types it; by default the system itself."""
    return options.plant or options.system


def starting_problem(options: Any, description: dict[str, Any]) -> ControlProblem:
    """The problem as it is before tuning.

    Raises:
        UserError: for start values of parameters that there are not.
    """
    if options.from_ is None:
        return learner(options, description)
    learned = load_controller(options.from_).problem
    problem = jax.tree.unflatten(
        jax.tree.structure(problem_like(description)), jax.tree.leaves(learned)
    )
    return with_starts(problem, options.learn, read_starts(options.start))


def task(options: Any, description: dict[str, Any], problem: ControlProblem) -> Task:
    """What the controller is tuned for.

    Raises:
        UserError: for a plant, starts or a cost that cannot be used.
    """
    judged = problem_like(description)
    measure = TotalCost(judged.stage_cost, judged.terminal_cost)
    control = functools.partial(controller_of, description=description)
    numbers = (options.episodes, options.validation_episodes, options.test_episodes)
    name = plant_name(options)
    if name.startswith(PREFIX):
        return _recorded(options, name, problem, measure, control, numbers)
    plant = _plant(name, options.system)
    start = _starts(options)
    n = check_fit(start, name, plant, problem.control_size)
    if len(options.noise) not in (0, 1, n):
        raise UserError(
            f"--noise takes one number, or one for each of the {n} states, not "
            f"{len(options.noise)}."
        )
    return DifferentiableTask(
        plant,
        start,
        measure,
        control,
        options.steps,
        numbers,
        options.seed,
        options.plant_spread,
        options.noise,
    )


def _recorded(options, name, problem, measure, control, numbers) -> Task:
    plant = plant_named(name, options.state_of, options.action_of)
    check_length(plant, options.steps)
    firsts = (_FIRST_TRAINING_SEED, _FIRST_VALIDATION_SEED, 0)
    apart = 1000 * options.seed
    seeds = [
        [first + apart + k for k in range(number)]
        for first, number in zip(firsts, numbers, strict=True)
    ]
    settings = (plant, problem, measure, control, options.steps, seeds)
    if options.by == "likelihood-ratio":
        return LikelihoodRatioTask(
            *settings, sigma=options.sigma, control_size=problem.control_size
        )
    return RecordedTask(*settings)


def _plant(name: str, system: str) -> Callable:
    if name in SYSTEMS:
        # Not behind saturating actuators: the controller keeps to the bounds, and at a bound a
        # clamp has half the derivative.
        return SYSTEMS[name].dynamics()
    if name == system:
        return load_problem(name).dynamics
    if ":" not in name:
        system_named(name)  # says which there are
    return load_dynamics(name)


def _starts(options: Any) -> Callable:
    if options.starts is not None:
        return load_attribute(options.starts)
    if ":" not in options.system:
        return system_named(options.system).module.start
    raise UserError(
        "It is not known where closed loops of your own problem start; give --starts "
        "module:function, a function of a random key that returns an initial state (n,)."
    )
