"""What an experiment reports: one row a claim, the paper's number beside ours, and a verdict."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

SUMMARISED = ("DiffMPC", "DiLQR")
RESULTS = Path(__file__).parent / "results"

Verdict = Literal["beyond", "reached", "explained", "short"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One claim of a paper, and what was measured here.

    Attributes:
        paper: "DiffMPC", "DiLQR" or "DCEM", whose claim it is or comes from.
        figure: as the paper calls it.
        claim: what is said, in a sentence.
        metric: what the numbers are, with their unit.
        published: the paper's number, or None where it states none.
        ours: the number measured.
        seeds: how many repetitions it is over.
        verdict: beyond (clearly better than asked), reached, explained (another number, and a
            measurement says why), or short.
        why: the measurement that explains the number, or the remedy that was tried.
    """

    paper: str
    figure: str
    claim: str
    metric: str
    published: float | None
    ours: float
    seeds: int
    verdict: Verdict
    why: str = ""

    def __post_init__(self):
        if self.verdict in ("explained", "short") and not self.why:
            raise ValueError(f"{self.figure}, {self.metric}: `{self.verdict}` needs a reason.")
        if not math.isfinite(self.ours) and self.verdict != "short":
            raise ValueError(f"{self.figure}, {self.metric}: {self.ours} cannot be called a result")


def verdict(
    ours: float,
    bar: float,
    *,
    lower: bool = True,
    clearly: float = 1.5,
    otherwise: Verdict = "short",
) -> Verdict:
    """How a number compares with a bar.

    Args:
        ours, bar: both positive.
        lower: whether less is better.
        clearly: by this factor better is "beyond".
        otherwise: what a miss is called.
    """
    ours = float(ours)
    if not math.isfinite(ours):
        return "short"
    gain = bar / max(ours, 1e-300) if lower else ours / bar
    return "beyond" if gain >= clearly else "reached" if gain >= 1.0 else otherwise


# 97.5 % points of Student's t with 1, 2, ... degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval; infinite for a single value."""
    array = np.asarray(values, dtype=float)
    if array.size < 2:
        return float(array.mean()), float("inf")
    point = _STUDENT[min(array.size - 2, len(_STUDENT) - 1)]
    return float(array.mean()), float(point * array.std(ddof=1) / np.sqrt(array.size))


def publish(
    name: str, size: str, command: str, rows: Iterable[Row], record: dict[str, Any]
) -> Path:
    """Write `results/NAME.SIZE.json`, and `results/summary.json` anew from all such files.

    Args:
        name: of the experiment, its file's.
        size: "full" or "reduced"; each has a file of its own, and the summary takes the full one.
        command: how to get these rows again.
        rows: what is claimed.
        record: what figures are drawn from, configuration and provenance.
    """
    RESULTS.mkdir(exist_ok=True)
    said = [dataclasses.asdict(row) | {"command": command, "size": size} for row in rows]
    path = RESULTS / f"{name}.{size}.json"
    _write(path, {"rows": said, **record})
    summarise()
    return path


def chosen() -> dict[str, Path]:
    """The results file of each experiment: of a full run where there is one, else of a reduced."""
    found: dict[str, Path] = {}
    for size in ("reduced", "full"):
        for path in sorted(RESULTS.glob(f"*.{size}.json")):
            found[path.name.split(".")[0]] = path
    return dict(sorted(found.items()))


def summarise() -> None:
    """Write `results/summary.json`: all rows of DiffMPC and DiLQR, as its readers expect."""
    rows = [row for path in chosen().values() for row in json.loads(path.read_text())["rows"]]
    _write(RESULTS / "summary.json", [row for row in rows if row["paper"] in SUMMARISED])


def _write(path: Path, value: Any) -> None:
    half = path.with_suffix(".part")
    half.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")
    half.replace(path)


def short(value: Any, digits: int = 5) -> Any:
    """JSON-like values with floats of few digits, None for NaN and infinities."""
    if isinstance(value, dict):
        return {key: short(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [short(item, digits) for item in value]
    if hasattr(value, "tolist"):
        return short(value.tolist(), digits)
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Rows in words and numbers."""
    lines = []
    for row in rows:
        published = "-" if row["published"] is None else f"{row['published']:.3g}"
        lines += [
            f"{row['verdict']:9} {row['paper']} {row['figure']}: {row['metric']}: published "
            f"{published}, ours {row['ours']:.3g} ({row['seeds']} seeds)"
        ]
        if row["why"]:
            lines += [f"{'':10}{row['why']}"]
    return "\n".join(lines)
