"""How far training has come, on standard error."""

import sys
import time

from ..learning import Progress

_SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal to rewrite a line on
_SECONDS_BETWEEN_REWRITES = 0.1


class TrainingProgress:
    """Told of every minibatch; rewrites one line on a terminal, elsewhere writes a few."""

    def __init__(self):
        self._terminal = sys.stderr.isatty()
        self._pause = _SECONDS_BETWEEN_REWRITES if self._terminal else _SECONDS_BETWEEN_LINES
        self._shown_at = -float("inf")
        self._open = False

    def __call__(self, progress: Progress) -> None:
        last = progress.epoch + 1 == progress.epochs and progress.batch == progress.batches
        if time.monotonic() - self._shown_at < self._pause and not last:
            return
        self._shown_at = time.monotonic()
        left = progress.seconds_left
        line = (
            f"epoch {progress.epoch + 1} of {progress.epochs}, loss {progress.loss:.3g}, "
            f"validation {progress.validation_loss:.3g}, left out {100 * progress.left_out:.0f} %"
            + ("" if left is None else f", {_duration(left)} left")
        )
        if self._terminal:
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
            self._open = True
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line that was being rewritten."""
        if self._open:
            print(file=sys.stderr)
            self._open = False


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
