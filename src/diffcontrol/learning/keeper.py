"""What a training run keeps: its state and metrics on the disk, and the time it takes."""

import time
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from .files import without_nan
from .metrics import MetricsFile, read_metrics


class Keeper:
    """Keeps a training state together with the metrics that led to it.

    The two are held as one pair and replaced in one assignment, so that Ctrl-C between any two
    statements finds a pair that belongs together. On the disk the metrics are written first: if
    they are ahead of the checkpoint, the next run cuts them back and writes them again.

    Attributes:
        lines: the metrics so far, one dictionary an epoch.
        saved_at: when the last checkpoint was written, on the clock `time.monotonic` [s].
    """

    def __init__(self, folder: Path | None, initial: PyTree, resume: bool):
        """Begin with the checkpoint in `folder` if `resume` and there is one, else `initial`.

        Raises:
            CheckpointError: if there is something to resume but `resume` is not asked for, or
                what there is belongs to something else.
        """
        self.lines: list[dict[str, Any]] = []
        self.saved_at = time.monotonic()
        self._folder = folder
        self._pair = (initial, 0)
        self._file: MetricsFile | None = None
        if folder is None:
            return
        checkpoint, metrics = folder / "checkpoint.eqx", folder / "metrics.jsonl"
        for path in (checkpoint, metrics):
            # An empty one is left when the very first step fails.
            if path.exists() and path.stat().st_size and not resume:
                raise CheckpointError(
                    f"{path} exists and is not overwritten; give another `folder`, or go on from "
                    "it with resume=True."
                )
        if checkpoint.exists():
            state, facts = load_checkpoint(checkpoint, initial)
            self._pair = (state, facts["metrics_length"])
        self._file = MetricsFile(metrics, self._pair[1])
        self.lines = read_metrics(metrics)

    @property
    def state(self) -> Any:
        """The state that a checkpoint written now would hold."""
        return self._pair[0]

    def step_done(self, state: PyTree) -> None:
        """Remember the state after a minibatch."""
        self._pair = (state, self._pair[1])

    def epoch_done(self, state: PyTree, line: dict[str, Any]) -> None:
        """Write the metrics of an epoch, None for NaN, and remember the state after it."""
        line = without_nan(line)
        length = 0 if self._file is None else self._file.append(line)
        self.lines.append(line)
        self._pair = (state, length)

    def save(self) -> None:
        """Write the checkpoint."""
        if self._folder is not None:
            state, length = self._pair
            save_checkpoint(self._folder / "checkpoint.eqx", state, {"metrics_length": length})
        self.saved_at = time.monotonic()

    def close(self) -> None:
        """Close the metrics file."""
        if self._file is not None:
            self._file.close()


class Clock:
    """Estimates the time left from the pace since the first step, which includes compilation."""

    def __init__(self, total: int):
        """`total` steps are to be done in all, some perhaps by an earlier process."""
        self._total = total
        self._first: tuple[float, int] | None = None
        self._done = 0
        self._now = 0.0

    def tick(self, done: int) -> None:
        """So many steps are done now."""
        self._now, self._done = time.monotonic(), done
        if self._first is None:
            self._first = (self._now, done)

    def left(self) -> float | None:
        """[s], or None before there is anything to judge by."""
        if self._first is None or self._done == self._first[1]:
            return None
        since, done = self._first
        pace = (self._now - since) / (self._done - done)
        return pace * (self._total - self._done)
