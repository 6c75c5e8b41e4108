"""Every experiment, one after the other, and the report: `make reproduce`.

    python -m experiments.reproduce [--full | --quick] [--only NAME ...]

Each runs in a process of its own: one that fails is named at the end and loses itself alone. Run
again, the same command does what is missing.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from . import report
from ._sweep import say

# Name -> minutes of the reduced size on two cores, about; for the time left.
EXPERIMENTS = {
    "gradient_accuracy": 4,
    "diffmpc_runtime": 2,
    "diffmpc_lqr": 1,
    "diffmpc_imitation": 12,
    "diffmpc_nonrealizable": 2,
    "mismatch": 4,
    "dilqr_runtime": 1,
    "dilqr_learning": 12,
    "dilqr_safe_pdp": 3,
    "dilqr_ablation": 1,
    "dilqr_visual": 8,
    "dilqr_rocket": 2,
    "general_frameworks": 2,
}


def main(arguments: list[str] | None = None) -> int:
    """Run them; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="the papers' sizes: many hours")
    size.add_argument("--quick", action="store_true", help="to see that everything runs")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, help="these alone")
    options = parser.parse_args(arguments)
    flags = [] if options.full else ["--quick"] if options.quick else ["--reduced"]
    names = [name for name in EXPERIMENTS if options.only is None or name in options.only]
    total, done, start, failed = sum(EXPERIMENTS[name] for name in names), 0, time.monotonic(), []
    for name in names:
        say(f"== {name}")
        command = [sys.executable, "-m", f"experiments.{name}", *flags]
        code = subprocess.run(command, cwd=Path(__file__).parent.parent).returncode
        if code in (130, -2):
            return 130
        if code:
            failed.append(name)
        done += EXPERIMENTS[name]
        left = (time.monotonic() - start) * (total - done) / done
        say(f"== {name} {'FAILED' if code else 'done'}; about {left / 60:.0f} min left in all")
    if not options.quick:
        report.main([])
    if failed:
        say(f"Failed: {', '.join(failed)}. The same command tries them again.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
