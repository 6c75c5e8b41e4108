"""The talk between the benchmark and a peer: one JSON object a line.

A worker prepares one case, then runs it when it is told to, so that peers can take turns. It must
import without the packages of this project, in the environment of its peer.
"""

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


class Unable(Exception):
    """Why a peer does not take part in a case."""


def peak_memory() -> float:
    """The most that this process has held [MB, 1e6 bytes].

    From the system's status file: `ru_maxrss` would include what the parent held when it forked.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    return float("nan")


def serve(prepare: Callable[[dict, dict], dict[str, Callable]], *packages: str) -> None:
    """Answer orders until told to stop.

    `prepare(case, arrays)` returns functions by name, or raises `Unable`. Functions without
    arguments are run and timed: "forward", "forward+backward". "answer" takes their latest results
    by name and returns arrays: "controls" `(B, T, m)`, and what `judge.py` names. "memory" returns
    a dict of numbers.
    """
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get into the talk
    functions: dict[str, Callable] = {}
    results: dict[str, object] = {}
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "hello" in order:
                found = {name: importlib.metadata.version(name) for name in packages}
                reply = {"versions": {"python": platform.python_version(), **found}}
            elif "case" in order:
                functions = prepare(order["case"], dict(np.load(order["arrays"])))
                results = {}
                reply = {"functions": sorted(functions)}
            elif "run" in order:
                function, times = functions[order["run"]], order["times"]
                # No result is held while the next is computed, or it would go to cold memory.
                results.pop(order["run"], None)
                wall, cpu = time.perf_counter(), time.process_time()
                for _ in range(times - 1):
                    function()
                results[order["run"]] = function()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                reply = {"wall": wall / times, "cpu": cpu / times}
            elif "answer" in order:
                reply = {"memory_mb": peak_memory()}
                np.savez(order["answer"], **functions["answer"](results))
            else:
                reply = functions["memory"]()
        except Unable as reason:
            reply = {"error": str(reason)}
        except Exception as problem:
            reply = {"error": f"{type(problem).__name__}: {problem}"[:300]}
        talk.write(json.dumps(reply) + "\n")
