"""Every experiment, one after the other, and the report: `make reproduce`.

    python -m experiments.reproduce [--full | --quick] [--only NAME ...]

Each runs in a process of its own: one that fails is named at the end and loses itself alone. Run
again, the same command does what is missing.
"""

import argparse
import concurrent.futures
import os
import subprocess
import sys
import tempfile
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
    "planners_swing_up": 2,
    "dcem_cartpole": 5,
    "dcem_search": 1,
    "dcem_mujoco": 5,
}


def main(arguments: list[str] | None = None) -> int:
    """Run them; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.reproduce")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="the papers' sizes: many hours")
    size.add_argument("--quick", action="store_true", help="to see that everything runs")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, help="these alone")
    options = parser.parse_args(arguments)
    names = [name for name in EXPERIMENTS if options.only is None or name in options.only]
    if options.quick:
        return _quickly(names)
    flags = [] if options.full else ["--reduced"]
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
    report.main([])
    return _ended(failed)


def _quickly(names: list[str]) -> int:
    """All at once, as many as there are cores: nothing is timed, and one core each is enough."""

    def run(name: str) -> str | None:
        command = [sys.executable, "-m", f"experiments.{name}", "--quick", "--workers", "1"]
        root = Path(__file__).parent.parent
        # In a folder of its own, so that everything runs and nothing is taken from before.
        with tempfile.TemporaryDirectory() as out:
            command += ["--out", out]
            ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
        say(f"== {name} {'FAILED' if ended.returncode else 'done'}")
        if ended.returncode:
            say(ended.stdout + ended.stderr)
            return name
        return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return _ended([name for name in pool.map(run, names) if name is not None])


def _ended(failed: list[str]) -> int:
    if failed:
        say(f"Failed: {', '.join(failed)}. The same command tries them again.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
