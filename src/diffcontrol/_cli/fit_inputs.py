"""What a fit starts from: its data and the structure of its controller."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from .. import ControlProblem
from .._control_problem import stage_problem
from ..learning import Demonstrations
from .controller import true_problem
from .errors import UserError
from .learner import START_WEIGHT, STARTS, read_starts, with_starts
from .named import load_problem, system_named
from .run_folder import problem_like
from .settings import check_at_least_one, check_not_negative, check_positive

_AT_LEAST_ONE = (
    "epochs",
    "windows",
    "validation_windows",
    "batch_size",
    "steps",
    "max_iterations",
    "restart_every",
)
_POSITIVE = ("learning_rate", "clip", "checkpoint_every")


def check_numbers(options: Any) -> None:
    """Raise `UserError` for settings out of range."""
    check_at_least_one(options, _AT_LEAST_ONE)
    check_positive(options, _POSITIVE)
    check_not_negative(options, ("states_weight", "seed"))


def data_path(system: str, data: Path | None) -> Path:
    """The file of demonstrations.

    Raises:
        UserError: if none is given and none ships for this system.
    """
    if data is not None:
        return data.resolve()
    # First of all that there is such a system.
    load_problem(system) if ":" in system else system_named(system)
    # One file a system, with the name of the simulator behind it where it is not our own plant.
    shipped = sorted((Path(__file__).parent.parent / "data").glob(f"{system}*.npz"))
    if ":" in system or not shipped:
        raise UserError(
            f"No demonstrations of {system} come with the package; name a file after the system, "
            "such as one that `diffcontrol record` writes."
        )
    return shipped[0]


def load(path: Path) -> Demonstrations:
    """Read demonstrations, with what is wrong as a `UserError`."""
    try:
        return Demonstrations.load(path)
    except ValueError as wrong:
        raise UserError(str(wrong)) from None


def describe(system: str, demonstrations: Demonstrations) -> dict[str, Any]:
    """The description that the run folder keeps: that of the data, and what is learned.

    A file without the structure of its expert's controller gets the system's usual one. True
    parameters are only kept where they are those of the same system.
    """
    said = dict(demonstrations.description)
    if ":" in system:
        for entry in ("system", "parameters", "controller"):
            said.pop(entry, None)
        return said | {"problem": system}
    known = system_named(system)
    said.pop("problem", None)
    if said.get("system", system) != system:
        raise UserError(
            f"The demonstrations are of `{said['system']}`, not of `{system}`; give another file "
            "or fit that system."
        )
    said.setdefault("controller", known.controller)
    return said | {"system": system}


def learner(options: Any, description: dict[str, Any]) -> ControlProblem:
    """The problem as the learner believes it at the start.

    Raises:
        UserError: for unknown systems, and start values of parameters that there are not.
    """
    problem = problem_like(description)
    starts: dict[str, float] = {}
    if "system" in description:
        if options.learn != "cost":
            starts |= STARTS.get(description["system"], {})
        elif "parameters" in description:
            problem = true_problem(description)
        if options.learn != "dynamics":
            starts |= {"weights": START_WEIGHT, "goal": 0.0}
    return with_starts(problem, options.learn, starts | read_starts(options.start))


def check_sizes(problem: ControlProblem, demonstrations: Demonstrations, path: Path) -> None:
    """Raise `UserError` if the recorded states or controls do not fit the problem."""
    m = demonstrations.controls.shape[-1]
    if m != problem.control_size:
        raise UserError(
            f"{path}: `controls` has {m} entries a step but the problem takes "
            f"{problem.control_size}; give demonstrations of the same system."
        )
    try:
        stage_problem(problem, jnp.asarray(demonstrations.states[0, 0], dtype=float))
    except (TypeError, ValueError, IndexError) as wrong:
        raise UserError(
            f"{path}: the problem cannot take `states` with {demonstrations.states.shape[-1]} "
            f"entries ({str(wrong).splitlines()[0]})"
        ) from None
