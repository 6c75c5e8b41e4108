"""How diffcontrol's own time and memory grow with the horizon and the batch.

Linear in both is what to expect: a solve passes over the stages, and a batch is worked off through
slots. Longer problems need more iterations and shorter steps, so systems start at their solutions
here and run a fixed number of iterations. The memory of a gradient must not depend on the limit of
iterations at all.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .cases import Case, data, pendulum
from .measure import BOTH, FORWARD, measure
from .peers import OURS, Worker

HORIZONS = (25, 50, 100, 200, 400)
# An unstable system under torque limits cannot be shot through much longer horizons.
SYSTEM_HORIZONS = (6, 12, 25, 50)
BATCHES = (32, 64, 128, 256, 512, 1024)
LIMITS = (50, 100, 200, 400, 800)
_ITERATIONS = 3


def sweeps() -> dict[str, list[tuple[int, Case]]]:
    """By what is varied: its values and the cases."""
    vary = dataclasses.replace
    system = pendulum(128)
    fixed = vary(system, max_iterations=_ITERATIONS, from_solution=True)
    linear = Case("lq", 4, 1, 50, 128)
    return {
        "T": [(T, vary(linear, T=T)) for T in HORIZONS]
        + [(T, vary(fixed, T=T)) for T in SYSTEM_HORIZONS],
        "batch": [(B, vary(case, batch=B)) for case in (linear, fixed) for B in BATCHES],
        "max_iterations": [(k, vary(system, max_iterations=k)) for k in LIMITS],
    }


def scaling(rounds: int, folder: Path) -> Iterator[dict]:
    """One row a point: `sweep`, `kind`, `value`; `seconds` of CPU time on one core, of a gradient
    of the linear-quadratic problem and of the iterations of a system; `memory_mb` that the program
    of a gradient allocates. Not both everywhere."""
    for sweep, points in sweeps().items():
        for value, case in points:
            row: dict = {"sweep": sweep, "kind": case.kind, "value": value}
            if sweep != "batch":
                row.update(memory_of_gradient(case, folder))
            if sweep != "max_iterations":
                what = BOTH if case.kind == "lq" else FORWARD
                (found,) = measure(case, [OURS], rounds, folder, functions=(what,), look=None)
                row.update({"error": found["error"]} if "error" in found else {})
                row.update({"seconds": found[what]} if what in found else {})
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
