"""Who is measured, and the process in which a peer runs.

A peer is a script in `workers/` and the interpreter that has its packages. mpc.pytorch needs an
old NumPy, so it has an environment of its own; `make bench` fills both.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

WORKERS = Path(__file__).parent / "workers"
# Beside mpc.pytorch's; in development an environment variable points to one that exists.
_MPC = os.environ.get("BENCH_PYTHON", ".bench/mpc/bin/python")
_MORE = os.environ.get("BENCH_MORE_PYTHON", ".bench/more/bin/python")
# Memory goes back and forth between the processes and the system otherwise, for all peers alike:
# a page costs a microsecond, and results of 20 MB are new pages every time.
_KEEP_MEMORY = "glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=4294967296"
_KEEP_MEMORY += ":glibc.malloc.mmap_threshold=4294967296:glibc.malloc.top_pad=134217728"
_KEEP_MEMORY += ":glibc.malloc.hugetlb=1"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A script that follows `workers/protocol.py`, and what it runs with.

    Attributes:
        name: as tables show it.
        script: the worker.
        python: the interpreter.
        systems: whether it solves nonlinear problems with bounds, too.
        compiles: whether a first call says nothing about the next.
        environment: variables added to those of this process.
    """

    name: str
    script: Path
    python: str
    systems: bool
    compiles: bool
    environment: tuple[tuple[str, str], ...] = ()


_OURS = WORKERS / "ours.py"
OURS = Peer("diffcontrol", _OURS, sys.executable, systems=True, compiles=True)
# The same library without its compiled kernel: a scan over stages with a hand-written adjoint.
PURE_JAX = dataclasses.replace(OURS, name="pure JAX", environment=(("DIFFCONTROL_KERNEL", "jax"),))
MPC_PYTORCH = Peer("mpc.pytorch", WORKERS / "mpc_pytorch.py", _MPC, systems=True, compiles=False)
MAIN = [OURS, PURE_JAX, MPC_PYTORCH]
MORE = [
    Peer("pypose", WORKERS / "pypose_lqr.py", _MORE, systems=False, compiles=False),
    Peer("qpax", WORKERS / "qpax_qp.py", _MORE, systems=False, compiles=True),
    Peer("crocoddyl", WORKERS / "crocoddyl_ddp.py", _MORE, systems=False, compiles=False),
    Peer("cvxpylayers", WORKERS / "cvxpylayers_qp.py", _MORE, systems=False, compiles=False),
]


@contextlib.contextmanager
def bound_to_cores(count: int) -> Iterator[None]:
    """Processes that start inside run on so many cores, always the same ones."""
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_of_them)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


class Worker:
    """A process that runs one peer. A context manager: leaving it ends the process."""

    def __init__(self, peer: Peer, threads: int = 1):
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "DIFFCONTROL_THREADS": str(threads),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={threads}",
            "GLIBC_TUNABLES": _KEEP_MEMORY,
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # first calls are cold
            **dict(peer.environment),
        }
        self._errors = tempfile.TemporaryFile("w+")
        self._process: subprocess.Popen[str] | None = None
        try:
            with bound_to_cores(threads):
                self._process = subprocess.Popen(
                    [peer.python, str(peer.script)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C is for the benchmark to handle
                )
        except OSError as problem:
            print(problem, file=self._errors)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._errors.close()

    def ask(self, limit: float = 600.0, **order) -> dict:
        """The reply to an order, or `{"error": why}` if there is none within `limit` seconds."""
        if self._process is None:
            return {"error": self._last_words()}
        orders, replies = self._process.stdin, self._process.stdout
        assert orders is not None and replies is not None
        try:
            orders.write(json.dumps(order) + "\n")
            orders.flush()
        except BrokenPipeError:
            return {"error": self._last_words()}
        with selectors.DefaultSelector() as ready:
            ready.register(replies, selectors.EVENT_READ)
            if not ready.select(limit):
                self._process.kill()
                return {"error": f"no answer within {limit:g} s"}
        line = replies.readline()
        return json.loads(line) if line else {"error": self._last_words()}

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "the process ended"


def available(peers: Sequence[Peer]) -> tuple[list[Peer], dict[str, dict]]:
    """The peers that start here, and of every peer its versions or the error."""
    found = {}
    for peer in peers:
        with Worker(peer) as worker:
            found[peer.name] = worker.ask(hello=True, limit=120.0)
    return [peer for peer in peers if "error" not in found[peer.name]], found
