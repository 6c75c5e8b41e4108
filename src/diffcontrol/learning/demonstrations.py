"""Recorded runs of an expert, in memory and in a file."""

import dataclasses
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .files import written_whole

_SHAPES = {"states": "(N, L+1, n)", "controls": "(N, L, m)"}


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """Runs of equal length, recorded in closed loop or as plans.

    Attributes:
        states: `(N, L+1, n)`: the states of N runs of L steps; row 0 of each is its start.
        controls: `(N, L, m)`: `controls[i, k]` acted between `states[i, k]` and
            `states[i, k+1]`.
        time_step: [s], or None where it is not known.
        description: how they were recorded, as JSON-like values.

    Raises:
        ValueError: for shapes that do not belong together and for values that are not finite.
    """

    states: np.ndarray
    controls: np.ndarray
    time_step: float | None = None
    description: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in _SHAPES:
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
            _check_array(name, getattr(self, name))
        states, controls = self.states, self.controls
        if states.shape[0] != controls.shape[0] or states.shape[1] != controls.shape[1] + 1:
            raise ValueError(
                f"`states` of shape {states.shape} and `controls` of shape {controls.shape} do "
                "not belong together: every run needs one more state than controls, "
                "(N, L+1, n) and (N, L, m)."
            )
        if self.time_step is not None and not (np.isfinite(self.time_step) and self.time_step > 0):
            raise ValueError(f"`time_step` must be positive [s], got {self.time_step}.")

    @property
    def runs(self) -> int:
        """The number N of runs."""
        return self.states.shape[0]

    @property
    def steps(self) -> int:
        """The number L of steps of each run."""
        return self.controls.shape[1]

    def take(self, runs: np.ndarray) -> "Demonstrations":
        """Some of the runs, by index."""
        return dataclasses.replace(self, states=self.states[runs], controls=self.controls[runs])

    def split(
        self, *, seed: int = 0, validation: float = 0.2, test: float = 0.2
    ) -> tuple["Demonstrations", "Demonstrations", "Demonstrations"]:
        """Training, validation and test demonstrations, by whole runs.

        Steps of one run resemble each other, so a run is never divided.

        Args:
            seed: of the random order.
            validation, test: shares of the runs; each gets at least one run.

        Raises:
            ValueError: for fewer than three runs, or shares that leave none to train on.
        """
        if self.runs < 3:
            raise ValueError(
                f"There are only {self.runs} runs, but training, validation and test need at "
                "least one each; record 3 or more."
            )
        order = np.random.default_rng(seed).permutation(self.runs)
        n_test = max(1, round(test * self.runs))
        n_validation = max(1, round(validation * self.runs))
        if n_test + n_validation >= self.runs:
            raise ValueError(
                f"Shares of {validation} for validation and {test} for testing leave none of the "
                f"{self.runs} runs to train on; lower them."
            )
        parts = np.split(order, [n_test, n_test + n_validation])
        test_part, validation_part, train_part = (self.take(np.sort(part)) for part in parts)
        return train_part, validation_part, test_part

    def save(self, path: str | os.PathLike) -> None:
        """Write an `.npz` file, whole or not at all.

        Its arrays are `states`, `controls`, `description` (JSON in a text scalar) and, where
        known, `time_step` [s].
        """
        arrays: dict[str, Any] = {
            "states": self.states,
            "controls": self.controls,
            "description": np.array(json.dumps(self.description)),
        }
        if self.time_step is not None:
            arrays["time_step"] = np.array(float(self.time_step))
        with written_whole(path) as file:
            np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: str | os.PathLike) -> "Demonstrations":
        """Read an `.npz` file written by `save` or by hand. No pickled object is ever loaded.

        Args:
            path: a file with arrays `states (N, L+1, n)` and `controls (N, L, m)` and, if wanted,
                `time_step` [s] and `description` (JSON in a text scalar).

        Raises:
            ValueError: one sentence that names the file and the array and says what to do.
        """
        arrays = _arrays_of(Path(path))
        for name in ("states", "controls"):
            if name not in arrays:
                there = ", ".join(f"`{key}`" for key in sorted(arrays)) or "no array"
                raise ValueError(
                    f"{path}: the array `{name}` is missing (the file holds {there}); save "
                    "`states` of shape (N, L+1, n) and `controls` of shape (N, L, m)."
                )
        try:
            return Demonstrations(
                arrays["states"],
                arrays["controls"],
                _time_step(arrays.get("time_step")),
                _description(arrays.get("description")),
            )
        except ValueError as problem:
            raise ValueError(f"{path}: {problem}") from None


def _check_array(name: str, array: np.ndarray) -> None:
    if not (np.issubdtype(array.dtype, np.number) and not np.iscomplexobj(array)):
        raise ValueError(f"`{name}` holds {array.dtype}, not real numbers; store floating point.")
    shape = _SHAPES[name]
    if array.ndim != shape.count(",") + 1 or 0 in array.shape:
        raise ValueError(
            f"`{name}` must have shape {shape}, N runs of L steps, but has shape {array.shape}."
        )
    finite = np.isfinite(array)
    if not finite.all():
        where = ", ".join(str(index) for index in np.argwhere(~finite)[0])
        raise ValueError(
            f"`{name}` holds a value that is not finite at [{where}]; remove that run or record it "
            "again."
        )


def _arrays_of(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; give the path of an .npz file.")
    unreadable = ValueError(
        f"{path}: this is not a readable .npz file; write one with numpy.savez or with "
        "`diffcontrol record`."
    )
    # Opened here, because numpy leaves a file open that turns out to be damaged.
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise unreadable
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: _array(path, archive, name) for name in archive.files}
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError):
            raise unreadable from None


def _array(path: Path, archive: Any, name: str) -> np.ndarray:
    try:
        return archive[name]
    except ValueError:
        raise ValueError(
            f"{path}: the array `{name}` holds Python objects or is damaged; store plain numbers."
        ) from None


def _time_step(array: np.ndarray | None) -> float | None:
    if array is None:
        return None
    if array.shape != () or not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"`time_step` must be one number [s], but has shape {array.shape}.")
    return float(array)


def _description(array: np.ndarray | None) -> dict[str, Any]:
    if array is None:
        return {}
    try:
        description = json.loads(str(array[()]))
    except json.JSONDecodeError:
        raise ValueError(
            "`description` is not JSON; store json.dumps of a dictionary, or leave it out."
        ) from None
    if not isinstance(description, dict):
        raise ValueError("`description` must be a JSON object; store json.dumps of a dictionary.")
    return description
