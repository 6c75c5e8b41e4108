"""How far a long loop has come, on standard error."""

import sys
import time
from collections.abc import Callable


def progress(label: str, total: int) -> Callable[[int], None]:
    """A function to be told the number of steps done.

    On a terminal one line is rewritten, with the time left; elsewhere each quarter is one line.
    """
    started, shown = time.monotonic(), [-1]
    terminal = sys.stderr.isatty()

    def report(done: int) -> None:
        mark = done if terminal else 4 * done // total
        if mark == shown[0] or (not terminal and mark == 0):
            return
        shown[0] = mark
        left = (time.monotonic() - started) * (total - done) / done
        line = f"{label}: {done} of {total} steps, {left:.0f} s left"
        if not terminal:
            print(line, file=sys.stderr)
        else:
            print(f"\r{line:<70}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return report
