"""The talk between the benchmark and a peer: one JSON object a line.

A worker prepares one case, then runs it when it is told to, so that peers can take turns.
"""

import json
import os
import sys
import time

import numpy as np


def serve(prepare) -> None:
    """Answer until told to stop. `prepare(case, arrays)` returns a dict of named functions.

    A function runs once and returns when it is done; `answer()` among them returns arrays.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core
    talk = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get into the talk
    functions = {}
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if "case" in order:
                started = time.perf_counter()
                functions = prepare(order["case"], dict(np.load(order["arrays"])))
                for name, function in functions.items():
                    if name != "answer":
                        function()
                reply = {"seconds": time.perf_counter() - started}
            elif "run" in order:
                wall, cpu = time.perf_counter(), time.process_time()
                for _ in range(order["times"]):
                    functions[order["run"]]()
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                reply = {"wall": wall / order["times"], "cpu": cpu / order["times"]}
            elif "answer" in order:
                np.savez(order["answer"], **functions["answer"]())
                reply = {}
            else:
                return
        except Exception as problem:
            reply = {"error": f"{type(problem).__name__}: {problem}"[:300]}
        talk.write(json.dumps(reply) + "\n")
