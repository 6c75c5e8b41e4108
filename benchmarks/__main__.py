"""Peers in one run, taking turns: `make bench`, or `python -m benchmarks --help`. On Linux.

Every peer is a process of its own, bound to the same cores, and gets the same data. Results are
tables, JSON, CSV and pictures in a folder. All but the pictures are written after every case, and
Ctrl-C keeps what is measured.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import jax

from . import gate, limits, machine, plots, report
from .cases import FULL, QUICK, Case
from .measure import measure
from .peers import MAIN, MORE, available
from .published import stand_ins
from .scaling import scaling, sweeps


def main() -> int:
    arguments = _arguments()
    jax.config.update("jax_enable_x64", True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict = {"machine": {}, "limits": {}, "peers": {}, "rows": [], "scaling": []}
    try:
        with tempfile.TemporaryDirectory() as folder:
            _run(results, arguments.quick, arguments.rounds, Path(folder), arguments.out)
    except KeyboardInterrupt:
        print("\nstopped: what is measured so far is kept")
        return 130
    finally:
        _write(results, arguments.out)
        print(f"results in {arguments.out}")
    if arguments.write_baseline:
        gate.write_baseline(results["rows"], results["machine"], arguments.write_baseline)
        print(f"baseline written to {arguments.write_baseline}")
    if arguments.gate:
        slower, compared = gate.regressions(results["rows"], arguments.gate)
        for line in slower or ["nothing has become slower"]:
            print(f"gate: {line}")
        print(f"gate: {compared} ratios compared with {arguments.gate}")
        return 1 if slower else 0
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure diffcontrol against its peers, in one run.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="three cases, the main peers: about two minutes"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="turns of every peer (default: 7)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder for results"
    )
    for option, text in (
        ("--gate", "fail if a ratio to a peer has fallen below 0.8 of the baseline in FILE"),
        ("--write-baseline", "keep the ratios of this run in FILE"),
    ):
        parser.add_argument(
            option, type=Path, nargs="?", const=gate.BASELINE, metavar="FILE",
            help=f"{text} (default: benchmarks/baseline.json)",
        )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if arguments.gate and not arguments.gate.exists():
        parser.error(f"{arguments.gate} does not exist; --write-baseline makes it")
    return arguments


def _run(results: dict, quick: bool, rounds: int, folder: Path, out: Path) -> None:
    """Fill in the results, as far as it gets."""
    results["machine"] = machine.description()
    peers, results["peers"] = available(MAIN if quick else MAIN + MORE)
    for name, found in results["peers"].items():
        if "error" in found:
            print(f"{name} is not installed: {found['error']}", flush=True)
    results["limits"] = limits.measured()
    cases = _possible(QUICK if quick else FULL)
    points = [] if quick else [case for sweep in sweeps().values() for _, case in sweep]
    clock = _Clock([_effort(case) for case in cases] + [_POINT for _ in points])
    for case in cases:
        few = [peer for peer in peers if case.threads == 1 or peer in MAIN]
        rows = measure(case, few, rounds, folder)
        if case.kind == "lq" and case.threads == 1:
            results["rows"].append(_bound(case, results["limits"]))
        results["rows"] += rows + stand_ins(case, rows)
        report.write(results, out)
        cores = "one core" if case.threads == 1 else f"{case.threads} cores"
        clock.tick(f"{case.name}, {cores}")
    if not quick:
        for row in scaling(rounds, folder):
            results["scaling"].append(row)
            clock.tick(f"growth of {row['kind']} with {row['sweep']}: {row['value']}")


def _possible(cases: list[Case]) -> list[Case]:
    cores = len(os.sched_getaffinity(0))
    if any(case.threads > cores for case in cases):
        print(f"only {cores} core: the cases with more are left out")
    return [case for case in cases if case.threads <= cores]


def _bound(case: Case, measured: dict) -> dict:
    forward, both = limits.lower_bounds(case, measured)
    row = {"case": case.name, "peer": "lower bound", "threads": 1}
    return {**row, "forward": forward, "forward+backward": both}


def _write(results: dict, out: Path) -> None:
    report.write(results, out)
    if results["rows"]:
        plots.ratios(results["rows"], out / "ratios.png")
    if results["scaling"]:
        plots.scaling(results["scaling"], out / "scaling.png")


_POINT = 10.0  # a point of a curve takes about so long [s]


def _effort(case: Case) -> float:
    """About how long a case takes [s]; what is left is told from it and from what has passed."""
    return {"lq": 40.0, "pendulum": 60.0, "cartpole": 100.0}[case.kind] / case.threads


class _Clock:
    """Says how far a run is, and how long it will go on."""

    def __init__(self, efforts: list[float]):
        self.efforts, self.done, self.started = efforts, 0, time.monotonic()

    def tick(self, what: str) -> None:
        self.done += 1
        passed = time.monotonic() - self.started
        pace = passed / sum(self.efforts[: self.done])
        left = pace * sum(self.efforts[self.done :])
        print(
            f"[{self.done}/{len(self.efforts)}] {what}: {passed / 60:.1f} min, "
            f"about {left / 60:.0f} min left",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
