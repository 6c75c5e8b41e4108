"""Peers in one run, taking turns: `python -m benchmarks [--quick] [--out FOLDER]`, `make bench`.

Every peer is a process of its own, bound to one core, with the same data (`cases.py`). Times are
medians of the CPU time of a call. Answers to nonlinear problems are judged by one function: the
raw projected gradient in float64. Results are JSON, CSV and a table in Markdown.
"""

import argparse
import csv
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diffcontrol._cli.versions import versions

from .cases import LQ, MPC, Case, data

HERE = Path(__file__).parent
WORKERS = {
    "diffcontrol": ("ours.py", sys.executable),
    "mpc.pytorch": ("mpc_pytorch.py", os.environ.get("BENCH_PYTHON", ".bench/bin/python")),
}
# Memory goes back and forth between the processes and the system otherwise, for all peers alike:
# a page costs a microsecond, and results of 20 MB are new pages every time.
_KEEP_MEMORY = "glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=4294967296"
_KEEP_MEMORY += ":glibc.malloc.mmap_threshold=4294967296:glibc.malloc.top_pad=134217728"


class Peer:
    """A worker process."""

    def __init__(self, name: str):
        script, python = WORKERS[name]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DIFFCONTROL_THREADS": "1",
            "GLIBC_TUNABLES": _KEEP_MEMORY,
        }
        self.name = name
        self.process = subprocess.Popen(
            [python, str(HERE / "workers" / script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **order) -> dict:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process ended"}

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(case: Case, rounds: int, folder: Path) -> list[dict]:
    """One row a peer."""
    arrays = folder / "case.npz"
    np.savez(arrays, **data(case))
    rows, ready = [], []
    for name in WORKERS:
        peer = Peer(name)
        reply = peer.ask(case=dataclasses.asdict(case), arrays=str(arrays))
        row = {"case": case.name, "peer": name, "first_call_s": reply.get("seconds")}
        rows.append(row)
        if "error" in reply:
            row["error"] = reply["error"]
        else:
            ready.append((peer, row))
    for what in ("forward", "forward+backward"):
        times = {peer.name: [] for peer, _ in ready}
        counts = {}
        for peer, _ in ready:
            once = peer.ask(run=what, times=1)["wall"]
            counts[peer.name] = max(1, min(200, int(0.05 / once)))
            times[peer.name].append(once)
        for _ in range(rounds):
            for peer, _ in ready:
                if times[peer.name][0] > 5 and len(times[peer.name]) > 2:
                    continue  # minutes for one number
                times[peer.name].append(peer.ask(run=what, times=counts[peer.name])["cpu"])
        for peer, row in ready:
            row[what] = float(np.median(times[peer.name][1:]))
    for peer, row in ready:
        answer = folder / f"{peer.name}.npz"
        if not peer.ask(answer=str(answer)):
            row.update(judge(case, np.load(answer), np.load(arrays)))
        peer.stop()
    return rows


def judge(case: Case, answer, arrays) -> dict:
    """Mean cost and worst raw projected gradient of the controls, in float64."""
    import jax
    import jax.numpy as jnp

    from diffcontrol import systems

    controls = jnp.asarray(answer["controls"], float)
    if case.kind == "lq":
        return {}
    problem = getattr(systems, case.kind).problem(horizon=case.T)
    lower, upper = problem.control_bounds.lower, problem.control_bounds.upper

    def cost(u, x0):
        def advance(x, u):
            return problem.dynamics(x, u, 0), problem.stage_cost(x, u, 0)

        return jnp.sum(jax.lax.scan(advance, x0, u)[1])

    def both(u, x0):
        u = jnp.clip(u, lower, upper)
        value, slope = jax.value_and_grad(cost)(u, x0)
        return value, jnp.max(jnp.abs(jnp.clip(u - slope, lower, upper) - u))

    values, projected = jax.jit(jax.vmap(both))(controls, jnp.asarray(arrays["x0"]))
    found = {"mean_cost": float(values.mean()), "projected_gradient": float(projected.max())}
    if "iterations" in answer:
        found["iterations"] = float(np.mean(answer["iterations"]))
    return found


def limits() -> dict:
    """What one core of this machine can do: NumPy's matrix product, and copies of two sizes."""
    rng = np.random.default_rng(0)
    square = rng.standard_normal((1024, 1024))

    def best(function, repeats=7):
        seconds = []
        for _ in range(repeats):
            started = time.process_time()
            function()
            seconds.append(time.process_time() - started)
        return min(seconds)

    found = {"gflops": 2 * 1024**3 / best(lambda: square @ square) / 1e9}
    for name, count in (("l3", 1 << 20), ("memory", 1 << 25)):
        source, target = np.ones(count), np.ones(count)
        times = 64 if name == "l3" else 1
        run = lambda s=source, t=target, k=times: [np.copyto(t, s) for _ in range(k)]
        found[f"{name}_gb_s"] = 2 * 8 * count * times / best(run) / 1e9
    return found


def table(rows: list[dict]) -> str:
    """Markdown, with the ratio to diffcontrol."""
    ours = {row["case"]: row for row in rows if row["peer"] == "diffcontrol"}
    lines = [
        "| case | peer | forward [ms] | forward+backward [ms] | x diffcontrol | mean cost "
        "| projected gradient | first call [s] |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "error" in row:
            lines.append(f"| {row['case']} | {row['peer']} | {row['error']} | | | | | |")
            continue
        ratio = row["forward+backward"] / ours[row["case"]]["forward+backward"]
        lines.append(
            f"| {row['case']} | {row['peer']} | {1e3 * row['forward']:.3f} "
            f"| {1e3 * row['forward+backward']:.3f} | {ratio:.0f} "
            f"| {_number(row, 'mean_cost', '.6f')} | {_number(row, 'projected_gradient', '.0e')} "
            f"| {row['first_call_s']:.1f} |"
        )
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _number(row: dict, name: str, form: str) -> str:
    return format(row[name], form) if name in row else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the linear-quadratic cases only")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    arguments = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for case in LQ if arguments.quick else LQ + MPC:
            rows += measure(case, arguments.rounds, Path(folder))
            print(table(rows[-len(WORKERS) :]).split("\n", 2)[2], flush=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    machine = {"processor": _processor(), "commit": commit.strip(), **versions(), **limits()}
    print(machine)
    report = {"machine": machine, "rows": rows}
    (arguments.out / "benchmark.json").write_text(json.dumps(report, indent=1))
    (arguments.out / "benchmark.md").write_text(table(rows) + "\n")
    with open(arguments.out / "benchmark.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
