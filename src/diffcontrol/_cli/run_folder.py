"""The folder that a fit or a tuning writes; `--resume` and `diffcontrol evaluate` read it.

    config.json        the options, versions, and the fingerprint of the data
    description.json   what is learned: system or problem, and the structure of its controller
    checkpoint.eqx     everything that the run goes on from
    metrics.jsonl      one JSON object an epoch
    controller.eqx     the arrays of the learned `ControlProblem`
    parameters.json    start, learned and, where known, true parameters
    result.json        losses on what was neither trained nor selected on
    *.png, *.gif       pictures

Nothing in it is pickled: arrays are `.npy` blocks, everything else is JSON.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import equinox as eqx

from .. import DDP, MPC, ControlProblem
from ..learning.files import without_nan, written_whole
from .controller import build_controller, build_problem
from .errors import UserError
from .named import load_problem, system_named


def create(folder: Path, config: dict[str, Any], description: dict[str, Any]) -> None:
    """Make the folder of a new fit. The configuration is written last: with it, a fit can resume.

    Raises:
        UserError: if the folder exists already, or cannot be made.
    """
    refuse_if_taken(folder)
    try:
        folder.mkdir(parents=True)
        write_json(folder / "description.json", description)
        write_json(folder / "config.json", config)
    except OSError as problem:
        raise UserError(
            f"{folder} cannot be written ({problem.strerror}); give another --out."
        ) from None


def refuse_if_taken(folder: Path) -> None:
    """Raise `UserError` if the folder exists already."""
    if folder.exists():
        raise UserError(
            f"{folder} exists and is not overwritten; give another --out, or --resume to continue "
            "the run in it."
        )


def can_resume(folder: Path) -> bool:
    """Whether a fit got as far as writing its configuration.

    One that was killed before that has nothing to continue; what it may have left is removed, if
    it is nothing but that.

    Raises:
        UserError: if the folder holds something else.
    """
    if (folder / "config.json").exists():
        return True
    if not folder.exists():
        return False
    found = list(folder.iterdir()) if folder.is_dir() else [folder]
    unfinished = lambda path: path.name == "description.json" or path.suffix == ".part"
    if not all(unfinished(path) for path in found):
        raise UserError(
            f"{folder} holds no fit that could be resumed (it has no config.json); give another "
            "--out."
        )
    for path in found:
        path.unlink()
    folder.rmdir()
    return False


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all, with null for NaN and infinities."""
    text = json.dumps(without_nan(value), indent=1, allow_nan=False)
    with written_whole(path) as file:
        file.write(text.encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run folder.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} has no {path.name}, so it is not a folder that `diffcontrol fit` or "
            "`tune` wrote to its end; give another, or continue that run with --resume."
        ) from None
    except (ValueError, OSError):
        raise UserError(f"{path} cannot be read as JSON; start a new fit.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; start a new fit.")
    return value


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, to notice data that changed between a fit and its continuation."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_controller(folder: Path, problem: ControlProblem) -> None:
    """Write the arrays of the learned problem."""
    with written_whole(folder / "controller.eqx") as file:
        eqx.tree_serialise_leaves(file, problem)


def load_description(folder: Path) -> dict[str, Any]:
    """What the fit in `folder` learns.

    Its entries are those of the demonstrations' description (`controller.py`); "system" names one
    of our systems or "problem" the user's own `ControlProblem`, with another "horizon" and
    "max_iterations" of its solver if stated.

    Raises:
        UserError: if there is none.
    """
    return read_json(folder / "description.json")


def problem_like(description: dict[str, Any]) -> ControlProblem:
    """A problem of the described structure, with arbitrary parameters."""
    if "problem" in description:
        problem = load_problem(description["problem"])
        horizon = description.get("horizon", problem.horizon)
        return dataclasses.replace(problem, horizon=horizon)
    return build_problem(description, system_named(description["system"]).dynamics())


def controller_of(problem: ControlProblem, description: dict[str, Any]) -> MPC:
    """The receding-horizon controller for `problem`."""
    if "controller" in description:
        return build_controller(problem, description)
    stated = {name: description[name] for name in ("max_iterations",) if name in description}
    return MPC(problem, DDP(**stated))


def load_controller(folder: Path) -> MPC:
    """The learned controller.

    Raises:
        UserError: if the fit did not end, or its files do not belong together.
    """
    description = load_description(folder)
    path = folder / "controller.eqx"
    if not path.exists():
        raise UserError(
            f"{folder} holds no learned controller yet; continue its fit with --resume."
        )
    try:
        problem = eqx.tree_deserialise_leaves(path, problem_like(description))
    except (RuntimeError, ValueError, EOFError):
        raise UserError(
            f"{path} does not fit the problem that description.json states; if the problem's code "
            "has changed, fit it again."
        ) from None
    return controller_of(problem, description)
