"""Metrics as JSON lines that end the same whether or not a run was interrupted."""

import json
import os
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError


class MetricsFile:
    """One JSON object a line, appended.

    A checkpoint remembers the length; opening the file again at that length drops lines that were
    written after the checkpoint, so that continuing writes them again.
    """

    def __init__(self, path: str | os.PathLike, length: int = 0):
        """Open for appending after the first `length` bytes.

        Raises:
            CheckpointError: if the file is shorter than that.
        """
        self._path = Path(path)
        self._path.touch()
        size = self._path.stat().st_size
        if size < length:
            raise CheckpointError(
                f"{path}: the file is shorter than its checkpoint says ({size} bytes, not "
                f"{length}); it was changed by hand, so start anew in another folder."
            )
        self._file = self._path.open("r+b")
        self._file.truncate(length)
        self._file.seek(length)
        self._length = length

    def append(self, metrics: dict[str, Any]) -> int:
        """Write a line without NaN, on the disk when this returns; the new length [bytes]."""
        line = json.dumps(metrics, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._length += len(line)
        return self._length

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """All lines of a metrics file.

    Raises:
        CheckpointError: if a line is no JSON.
    """
    try:
        return [json.loads(line) for line in Path(path).read_text().splitlines()]
    except ValueError:
        raise CheckpointError(
            f"{path}: a line is no JSON; it was changed by hand, so start anew in another folder."
        ) from None
