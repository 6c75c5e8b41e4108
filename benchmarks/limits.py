r"""What the machine can do, and the least time that a linear-quadratic solve can take on it.

`limits.cc` measures one core: the peak rate of multiply-adds, and reading memory that fits into
each level of the cache. It is compiled where the benchmark runs; without a compiler the published
figures serve. A bound takes the better of what is measured and what is published, so that a busy
machine does not lower it.

The least work is counted a problem and stage, with `N = n + m` and additions and multiplications
each one operation; a square-root Riccati recursion, which needs fewest:

    L'F                 n^2 N         F'(Vf + v), F tau      4 n N
    C + (L'F)'(L'F)     N (N+1) n     V f                    2 n^2
    its Cholesky factor N^3 / 3       K x, Q_xu k            4 n m
                                      k, by two triangles    2 m^2

The gradient adds a second solve without `f`, the costates `V x + v` of both, and the outer
products `dC` (three operations for each entry of a triangle) and `dF` (three for each entry). The
least traffic reads C, c, F, f, x0 once and writes tau; for the gradient it also reads the cotangent
of tau and writes as much as it has read of the problem.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from . import published
from .cases import Case
from .peers import bound_to_cores

_SIZES = {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}  # where the system does not tell


def cache_sizes() -> dict[str, int]:
    """Bytes of the data caches of one core by level."""
    sizes = dict(_SIZES)
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = ((index / f).read_text().strip() for f in ("level", "type", "size"))
        if kind != "Instruction" and f"L{level}" in sizes and size.endswith("K"):
            sizes[f"L{level}"] = int(size[:-1]) << 10
    return sizes


def measured() -> dict:
    """`flops` [1/s], `read` and `write` by level [B/s]; `error` instead if it cannot be measured.

    A few seconds on one core.
    """
    caches = cache_sizes()
    sizes = {
        "L1": caches["L1"] // 2,
        "L2": caches["L2"] // 2,
        "L3": max(4 * caches["L2"], caches["L3"] // 4),
        "memory": min(max(4 * caches["L3"], 256 << 20), 1 << 30),
    }
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return {"error": "no C++ compiler"}
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/limits"
        source = str(Path(__file__).with_name("limits.cc"))
        flags = ["-O3", "-march=native", "-std=c++17"]
        try:
            subprocess.run(
                [compiler, *flags, source, "-o", program],
                check=True,
                capture_output=True,
                text=True,
            )
            with bound_to_cores(1):
                output = subprocess.run(
                    [program, *map(str, sizes.values())],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
            found = json.loads(output)
        except (OSError, subprocess.CalledProcessError, ValueError) as problem:
            words = str(getattr(problem, "stderr", None) or problem)
            return {"error": words.strip().splitlines()[-1][:300]}
    for name in ("read", "write"):
        found[name] = dict(zip(sizes, found[name], strict=True))
    return found


def flops(case: Case) -> tuple[float, float]:
    """Operations of a batch: forward, and forward and backward."""
    n, m, N = case.n, case.m, case.n + case.m
    matrices = n**2 * N + N * (N + 1) * n + N**3 / 3
    vectors = 4 * n * N + 4 * n * m + 2 * m**2
    forward = matrices + vectors + 2 * n**2
    backward = vectors + 4 * n**2 + 3 * N * (N + 1) / 2 + 3 * n * N
    stages = case.T * case.batch
    return stages * forward, stages * (forward + backward)


def traffic(case: Case) -> tuple[int, int]:
    """Bytes of a batch: forward, and forward and backward."""
    n, N = case.n, case.n + case.m
    problem = case.T * (N * N + N + n * N + n) + n
    forward = problem + case.T * N
    return 8 * case.batch * forward, 8 * case.batch * (forward + problem + case.T * N)


def lower_bounds(case: Case, measured: dict) -> tuple[float, float]:
    """The least seconds of a linear-quadratic batch on one core with warm caches.

    Forward, and forward and backward: the slower of arithmetic and memory, where memory is the
    smallest level of the cache that holds all data, with a quarter of L2 left to other things.
    """
    caches = cache_sizes()
    peak = max(measured.get("flops", 0.0), published.PEAK)
    times = []
    for operations, size in zip(flops(case), traffic(case), strict=True):
        level = "memory"
        if size < caches["L3"]:
            level = "L3"
        if size < 0.75 * caches["L2"]:
            level = "L2"
        read = max(measured.get("read", {}).get(level, 0.0), published.READ[level])
        times.append(max(operations / peak, size / read))
    return times[0], times[1]
