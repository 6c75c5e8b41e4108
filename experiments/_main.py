"""The command line that all experiments share.

    python -m experiments.NAME             the paper's size
    python -m experiments.NAME --reduced   fewer seeds or epochs, in minutes
    python -m experiments.NAME --quick     seconds, to see that it runs; figures mean nothing
    python -m experiments.NAME --draw      only the figure and the table again, from the results

Any field of its configuration is an option too. A run writes to `runs/papers/SIZE/NAME` (jobs,
figure), so the same command again does only what is missing, and what it found to
`experiments/results/NAME.SIZE.json`.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ._provenance import provenance
from ._rows import RESULTS, Row, publish, short, table
from ._sweep import say


@dataclasses.dataclass(frozen=True)
class Context:
    """Where an experiment works, and with what.

    Attributes:
        folder: for the files of its jobs.
        workers: processes, or None for one a core.
        ray: address of a Ray cluster, or None.
    """

    folder: Path
    workers: int | None = None
    ray: str | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One claim, or several that share their runs.

    Attributes:
        name: of its file.
        sizes: "full", "reduced" and "quick" -> configuration, a frozen dataclass.
        measure: (configuration, context) -> what was found, of plain numbers, lists and
            dictionaries; small enough to be committed.
        rows: (configuration, found) -> what is claimed.
        draw: (found, path) -> the figure.
    """

    name: str
    sizes: dict[str, Any]
    measure: Callable[[Any, Context], dict[str, Any]]
    rows: Callable[[Any, dict[str, Any]], list[Row]]
    draw: Callable[[dict[str, Any], Path], None]


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> int:
    """Run an experiment from the command line; the exit code."""
    import tyro

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--reduced", action="store_true")
    parser.add_argument("--draw", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--ray")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options, rest = parser.parse_known_args(given)
    size = "quick" if options.quick else "reduced" if options.reduced else "full"
    if size == "quick":
        # Nearly all of its time is compiling, and what is compiled hardly runs.
        flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    usual = experiment.sizes[size]
    described = (sys.modules[experiment.measure.__module__].__doc__ or "") + __doc__.partition(
        "\n\n"
    )[2]
    config = tyro.cli(
        type(usual),
        default=usual,
        args=rest,
        prog=f"python -m experiments.{experiment.name}",
        description=described,
    )
    out = options.out or Path("runs") / "papers" / size / experiment.name
    stored = RESULTS / f"{experiment.name}.{size}.json" if size != "quick" else out / "found.json"
    try:
        _check(config, experiment.sizes["full"], options.workers)
        out.mkdir(parents=True, exist_ok=True)
        if options.draw:
            record = json.loads(stored.read_text())
            config = dataclasses.replace(usual, **_settings(usual, record["config"]))
        else:
            with _stopwatch(out / "seconds.json") as seconds:
                found = experiment.measure(config, Context(out, options.workers, options.ray))
            record = {
                "config": dataclasses.asdict(config),
                **provenance(),
                "seconds": seconds(),
                "found": short(found),
            }
        rows = experiment.rows(config, record["found"])
        if not rows:
            raise ValueError("nothing was found that a row could say; no results are written.")
        if size == "quick":
            stored.write_text(json.dumps(record))
        else:
            asked = [*(["--reduced"] if size == "reduced" else []), *rest]
            command = " ".join([f"python -m experiments.{experiment.name}", *asked])
            if options.draw:  # other rows of the same run
                command = record.pop("rows")[0]["command"]
            stored = publish(experiment.name, size, command, rows, record)
        experiment.draw(record["found"], out / f"{experiment.name}.png")
    except KeyboardInterrupt:
        say("Interrupted; the same command again does what is missing.")
        return 130
    except (ValueError, FileNotFoundError) as wrong:
        say(f"{experiment.name}: {wrong}")
        return 2
    print(table(map(dataclasses.asdict, rows)))
    print(f"{stored}\n{out / experiment.name}.png")
    return 0


def _check(config: Any, full: Any, workers: int | None) -> None:
    """Refuse settings that would give empty results.

    Numbers are counts or sizes, 0 only where the field's metadata has `least`; of names the full
    size has all there are.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers is {workers}, but must be at least 1.")
    for field in dataclasses.fields(config):
        value, known = getattr(config, field.name), getattr(full, field.name)
        option, least = "--" + field.name.replace("_", "-"), field.metadata.get("least", 1)
        if value == ():
            raise ValueError(f"{option} needs at least one value.")
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, str) and each not in known:
                raise ValueError(f"{option} has no {each!r}, only {', '.join(known)}.")
            if type(each) is int and each < least:
                raise ValueError(f"{option} is {each}, but must be at least {least}.")


@contextlib.contextmanager
def _stopwatch(path: Path) -> Iterator[Callable[[], float]]:
    """The time of all runs in a folder [s], of which the last may have found most of it done."""
    before = json.loads(path.read_text()) if path.exists() else 0.0
    start = time.monotonic()
    seconds = lambda: round(before + time.monotonic() - start, 1)
    try:
        yield seconds
    finally:
        path.write_text(json.dumps(seconds()))


def _settings(usual: Any, stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings, with tuples where JSON has lists."""
    return {
        field.name: tuple(value) if isinstance(value := stored[field.name], list) else value
        for field in dataclasses.fields(usual)
        if field.name in stored
    }
