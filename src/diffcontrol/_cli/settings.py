"""The settings of a run: in range, kept in its folder, and the same when it is continued."""

import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import UserError
from .run_folder import can_resume, read_json


def flag(name: str) -> str:
    """The option of that name as one types it."""
    return "--" + name.rstrip("_").replace("_", "-")


def check_at_least_one(options: Any, names: Sequence[str]) -> None:
    """Raise `UserError` for a number below one; None is left to its default."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{flag(name)} must be at least 1, got {value}.")


def check_positive(options: Any, names: Sequence[str]) -> None:
    """Raise `UserError` for a number that is not positive and finite."""
    for name in names:
        if not 0 < getattr(options, name) < math.inf:
            raise UserError(f"{flag(name)} must be positive, got {getattr(options, name)}.")


def check_not_negative(options: Any, names: Sequence[str]) -> None:
    """Raise `UserError` for a number that is negative or not finite."""
    for name in names:
        if not 0 <= getattr(options, name) < math.inf:
            raise UserError(f"{flag(name)} must not be negative, got {getattr(options, name)}.")


def as_json(options: Any) -> dict[str, Any]:
    """The options as `config.json` keeps them."""
    plain = lambda value: str(value) if isinstance(value, Path) else value
    return {name: plain(value) for name, value in dataclasses.asdict(options).items()}


def begun(options: Any, paths: Sequence[str]) -> Any:
    """The settings of the run that is to be continued, or None if a new one begins.

    Args:
        options: with `out` and `resume`.
        paths: names of the options that are paths of input.

    Raises:
        UserError: if the folder holds something else, or its configuration is damaged.
    """
    if not (options.resume and can_resume(options.out)):
        return None
    stored = read_json(options.out / "config.json").get("options")
    if not isinstance(stored, dict):
        raise UserError(f"{options.out}: config.json holds no options; start a new run.")
    names = {field.name for field in dataclasses.fields(options)} - {"out", "resume"}
    values = {name: stored[name] for name in names & stored.keys()}
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    values |= {name: Path(values[name]) for name in paths if values.get(name) is not None}
    return dataclasses.replace(options, **values)


def check_same(options: Any, earlier: Any) -> None:
    """Raise `UserError` for an option that differs from those the run was started with."""
    for field in dataclasses.fields(options):
        given, before = getattr(options, field.name), getattr(earlier, field.name)
        if isinstance(given, Path) and field.name != "out":
            given = given.resolve()
        if given != before and field.name != "checkpoint_every":
            raise UserError(
                f"The run in {options.out} was started with {flag(field.name)} {before}, not "
                f"{given}; leave the option out, or start a new run in another --out."
            )


def interrupted(command: str, options: Any) -> int:
    """Say how to go on after Ctrl-C; the exit code."""
    words = ["diffcontrol", command, options.system, "--out", str(options.out), "--resume"]
    print(f"\nInterrupted; continue with: {shlex.join(words)}", file=sys.stderr)
    return 130
