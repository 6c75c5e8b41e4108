"""How far a long piece of work has come, on standard error."""

import sys
import time
from collections.abc import Callable

from ..learning import Progress

_SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal to rewrite a line on
_SECONDS_BETWEEN_REWRITES = 0.1


class _Line:
    """Rewrites one line on a terminal, elsewhere writes a few; both only now and then."""

    def __init__(self):
        self._terminal = sys.stderr.isatty()
        self._pause = _SECONDS_BETWEEN_REWRITES if self._terminal else _SECONDS_BETWEEN_LINES
        self._written_at = -float("inf")

    def write(self, text: str, last: bool) -> None:
        if time.monotonic() - self._written_at < self._pause and not last:
            return
        self._written_at = time.monotonic()
        if self._terminal:
            print(f"\r{text:<78}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)


def steps(label: str, total: int) -> Callable[[int], None]:
    """A function to be told the number of steps done, of `total`."""
    started, line = time.monotonic(), _Line()

    def report(done: int) -> None:
        left = (time.monotonic() - started) * (total - done) / done
        line.write(f"{label}: {done} of {total} steps, {_duration(left)} left", done == total)

    return report


def training() -> Callable[[Progress], None]:
    """A function to be told of every minibatch."""
    line = _Line()

    def report(progress: Progress) -> None:
        left = progress.seconds_left
        line.write(
            f"epoch {progress.epoch + 1} of {progress.epochs}, loss {progress.loss:.3g}, "
            f"validation {progress.validation_loss:.3g}, left out {100 * progress.left_out:.0f} %"
            + ("" if left is None else f", {_duration(left)} left"),
            last=progress.epoch + 1 == progress.epochs and progress.batch == progress.batches,
        )

    return report


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
