"""Many independent jobs: what is missing is done, on one machine or a Ray cluster.

A job is a function, named so that another process can import it, and a configuration, a frozen
dataclass of plain values. Its result is JSON and becomes one file. So a sweep that is interrupted
and run again does only what is missing, and a job that fails or crashes loses itself alone: the
others go on, and it is named at the end.

On one machine each core has a worker that stays, since importing and compiling cost more than many
a job. A worker that dies is replaced, and none outlives the command. Where seeds have the same
shapes they are better a `vmap` inside one job.
"""

import dataclasses
import json
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from diffcontrol.learning.files import without_nan

from ._provenance import provenance

Run = Callable[..., dict[str, Any]]


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def sweep(
    run: Run,
    jobs: Mapping[str, Any],
    folder: Path,
    *,
    workers: int | None = None,
    ray: str | None = None,
    work: Callable[[Any], float] = lambda config: 1.0,
    scratch: bool = False,
) -> dict[str, dict[str, Any]]:
    """Do the jobs that `folder` lacks; the results of all that have one.

    Args:
        run: configuration -> result, of plain numbers, lists and dictionaries. With `scratch` it
            also takes a folder of its own, for checkpoints and what is too large for a result.
        jobs: name of the file (without .json) -> configuration.
        folder: of one JSON file a job.
        workers: processes on this machine; None is one a core.
        ray: address of a Ray cluster that does the work instead; "local" starts one here.
        work: roughly how long a configuration takes, in any unit, for the time left.
        scratch: whether jobs take a folder.

    Returns:
        Name -> result. Jobs that failed are absent, and have been named.

    Raises:
        ValueError: if a file is there that another configuration wrote.
        KeyboardInterrupt: at Ctrl-C; what was finished is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = {name: config for name, config in jobs.items() if not _is_done(folder, name, config)}
    board = _Board(folder, missing, work)
    if missing:
        run_all = _on_ray if ray is not None else _on_this_machine
        given = {
            name: (config, (folder / name).resolve()) if scratch else (config,)
            for name, config in missing.items()
        }
        run_all(run, given, board, ray if ray is not None else workers)
    board.close()
    done = {name: _file(folder, name) for name in jobs if _file(folder, name).exists()}
    return {name: json.loads(path.read_text())["result"] for name, path in done.items()}


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _is_done(folder: Path, name: str, config: Any) -> bool:
    path = _file(folder, name)
    if not path.exists():
        return False
    asked = json.loads(json.dumps(dataclasses.asdict(config)))
    if (before := json.loads(path.read_text())["config"]) != asked:
        differ = [key for key in asked if asked[key] != before.get(key)]
        raise ValueError(
            f"{path} is of another configuration ({', '.join(differ) or 'fewer settings'} differ); "
            "remove it, or choose another --out."
        )
    return True


class _Board:
    """Writes what comes back, and says how far things are."""

    def __init__(self, folder: Path, missing: Mapping[str, Any], work: Callable[[Any], float]):
        self._folder, self._missing = folder, missing
        self._work = {name: work(config) for name, config in missing.items()}
        self._total, self._done = sum(self._work.values()), 0.0
        self._start, self._failed, self._count = time.monotonic(), [], 0

    def finished(self, name: str, result: dict[str, Any], seconds: float) -> None:
        config = dataclasses.asdict(self._missing[name])
        record = {"config": config, "result": result, "seconds": round(seconds, 3), **provenance()}
        path = _file(self._folder, name)
        half = path.with_suffix(".part")
        half.write_text(json.dumps(without_nan(record), allow_nan=False) + "\n")
        half.replace(path)
        self._tick(name, f"{seconds:.1f} s")

    def failed(self, name: str, why: str) -> None:
        self._failed.append(name)
        self._tick(name, f"FAILED: {why}")

    def _tick(self, name: str, what: str) -> None:
        self._done += self._work[name]
        self._count += 1
        left = (time.monotonic() - self._start) * (self._total - self._done) / self._done
        say(f"[{self._count}/{len(self._missing)}] {name}: {what}; {left / 60:.1f} min left")

    def close(self) -> None:
        if self._failed:
            say(f"Failed, and tried again by the same command: {', '.join(self._failed)}.")


# --- This machine --------------------------------------------------------------------------------


def _on_this_machine(run: Run, missing: Mapping[str, tuple], board: _Board, count: int | None):
    cores = _cores()
    count = min(len(cores) if count is None else count, len(missing))
    context = multiprocessing.get_context("spawn")  # JAX has threads, so no fork

    def start(place: int) -> tuple[Connection, Any]:
        here, there = context.Pipe()
        core = cores[place % len(cores)] if count > 1 else None
        process = context.Process(target=_work, args=(run, there, core), daemon=True)
        process.start()
        there.close()
        return here, process

    waiting = list(reversed(missing.items()))
    workers = [start(place) for place in range(count)]
    busy: dict[int, str] = {}
    try:
        for place, (pipe, _) in enumerate(workers):
            busy[place] = _give(pipe, waiting)
        while busy:
            ready = wait([workers[place][0] for place in busy])
            for place in [place for place in busy if workers[place][0] in ready]:
                pipe, process = workers[place]
                name = busy.pop(place)
                try:
                    result, seconds, why = pipe.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    board.failed(name, f"its process ended with code {process.exitcode}")
                    if waiting:
                        workers[place] = start(place)
                else:
                    if why is None:
                        board.finished(name, result, seconds)
                    else:
                        board.failed(name, why)
                if waiting:
                    busy[place] = _give(workers[place][0], waiting)
    finally:
        for _, process in workers:
            process.terminate()
        for _, process in workers:
            process.join()


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _give(pipe: Connection, waiting: list[tuple[str, tuple]]) -> str:
    name, given = waiting.pop()
    try:
        pipe.send(given)
    except (BrokenPipeError, ConnectionError):
        pass  # it died at once; receiving will say so
    return name


def _work(run: Run, pipe: Connection, core: int | None) -> None:
    """What a worker does: jobs, until it is ended."""
    import signal

    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})  # or each worker starts a thread for every core
    while True:
        try:
            given = pipe.recv()
        except EOFError:
            return
        pipe.send(_timed(run, *given))


def _end_with_parent() -> None:
    """A parent that is killed ends nobody, and a job may take hours."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _timed(run: Run, *given: Any) -> tuple[dict[str, Any] | None, float, str | None]:
    """Result, seconds, and what went wrong."""
    start = time.monotonic()
    try:
        return run(*given), time.monotonic() - start, None
    except Exception as problem:
        traceback.print_exc()
        said = str(problem).strip().splitlines() or [""]
        return None, time.monotonic() - start, f"{type(problem).__name__}: {said[0]}"


# --- A Ray cluster -------------------------------------------------------------------------------


def _on_ray(run: Run, missing: Mapping[str, tuple], board: _Board, address: str) -> None:
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("Ray is not installed; run `pip install 'diffcontrol[ray]'`.") from None
    settings = dict(include_dashboard=False, log_to_driver=False, configure_logging=False)
    # The workers import what is run from where it is here.
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": path}}
    where = {} if address == "local" else {"address": address}
    ray.init(runtime_env=environment, **where, **settings)
    try:
        remote = ray.remote(max_retries=0)(_timed)
        names = {remote.remote(run, *given): name for name, given in missing.items()}
        while names:
            (ready, *_), _ = ray.wait(list(names))
            name = names.pop(ready)
            try:
                result, seconds, why = ray.get(ready)
            except ray.exceptions.RayError as problem:
                board.failed(name, str(problem).splitlines()[0])
                continue
            if why is None:
                board.finished(name, result, seconds)
            else:
                board.failed(name, why)
    finally:
        ray.shutdown()
