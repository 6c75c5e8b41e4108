"""How diffcontrol's own time and memory grow with the horizon and the batch.

Linear in both is what to expect: a solve passes over the stages, and a batch is worked off through
slots. Longer problems need more iterations, so systems run a fixed number of them here. The memory
of a gradient must not depend on the limit of iterations at all.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .cases import Case, data, pendulum
from .measure import BOTH, measure
from .peers import OURS, Worker

HORIZONS = (25, 50, 100, 200, 400)
BATCHES = (32, 64, 128, 256, 512, 1024)
LIMITS = (50, 100, 200, 400, 800)
_ITERATIONS = 3  # fewer than almost any problem needs


def sweeps() -> dict[str, list[tuple[int, Case]]]:
    """By what is varied: its values and the cases."""
    vary = dataclasses.replace
    system = pendulum(128)
    both = Case("lq", 4, 1, 50, 128), vary(system, max_iterations=_ITERATIONS)
    return {
        "T": [(T, vary(case, T=T)) for case in both for T in HORIZONS],
        "batch": [(B, vary(case, batch=B)) for case in both for B in BATCHES],
        "max_iterations": [(k, vary(system, max_iterations=k)) for k in LIMITS],
    }


def scaling(rounds: int, folder: Path) -> Iterator[dict]:
    """One row a point: `sweep`, `kind`, `value`, and of a gradient `seconds` of CPU time on one
    core and `memory_mb` that the program allocates; not both everywhere."""
    for sweep, points in sweeps().items():
        for value, case in points:
            row: dict = {"sweep": sweep, "kind": case.kind, "value": value}
            if sweep != "batch":
                row.update(memory_of_gradient(case, folder))
            if sweep != "max_iterations":
                (found,) = measure(case, [OURS], rounds, folder, functions=(BOTH,), look=None)
                row.update({"error": found["error"]} if "error" in found else {})
                row.update({"seconds": found[BOTH]} if BOTH in found else {})
            yield row


def memory_of_gradient(case: Case, folder: Path) -> dict:
    """`memory_mb` that the compiled gradient allocates by XLA's own account, or `error`."""
    arrays_file = folder / "case.npz"
    np.savez(arrays_file, **data(case))
    with Worker(OURS) as worker:
        worker.ask(case=dataclasses.asdict(case), arrays=str(arrays_file))
        return worker.ask(memory=True)


def exponent(values: Sequence[float], results: Sequence[float]) -> float:
    """The power of `values` with which `results` grow: the slope of a line through logarithms."""
    slope = np.polyfit(np.log(values), np.log(results), 1)[0]
    return float(np.round(slope, 6)) + 0.0  # never "-0.00"
