"""The results as JSON, CSV and tables in Markdown.

Results are `{"machine": ..., "limits": ..., "peers": ..., "rows": ..., "scaling": ...}`: what
`machine.description`, `limits.measured`, `peers.available`, `measure.measure` with
`published.stand_ins`, and `scaling.scaling` return.
"""

import csv
import json
import math
from pathlib import Path

from .measure import BOTH, FORWARD
from .scaling import exponent


def write(results: dict, folder: Path) -> None:
    """`results.json`, `results.csv`, `scaling.csv` and `results.md` in `folder`."""
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.md").write_text(markdown(results))
    for name, rows in (("results", results["rows"]), ("scaling", results["scaling"])):
        columns = dict.fromkeys(key for row in rows for key in row)
        if not rows:
            continue
        with open(folder / f"{name}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def markdown(results: dict) -> str:
    """All tables."""
    rows = results["rows"]
    one_core = [row for row in rows if row["threads"] == 1]
    parts = [
        _machine(results),
        _section(
            "Linear-quadratic problems, one core",
            "float64; medians of CPU time. Ratios are times over those of diffcontrol, and over "
            "the lower bound of this machine; each forward / forward and backward. Errors are "
            "relative to the largest entry of a reference.",
            [
                ("peer", lambda row: row["peer"] + _mark(row)),
                *_times(_milliseconds),
                ("ratio", lambda row: _both(row, _ratio(rows))),
                ("to the bound", lambda row: _both(row, _bound(rows))),
                ("control error", lambda row: _small(row.get("control_error"))),
                ("gradient error", lambda row: _small(row.get("gradient_error"))),
                *_COSTS,
            ],
            [row for row in one_core if row["case"].startswith("lq")],
        ),
        _section(
            "Systems with bounded controls, one core",
            "float64; medians of CPU time. The projected gradient is the raw one, in float64, the "
            "worst of the batch; the gradient's error is relative to the exact one at the optimum "
            "next to the peer's own controls. diffcontrol solves to 1e-6; a peer with a larger "
            "projected gradient stopped earlier. mpc.pytorch's gradient is of the Gauss-Newton "
            "kind; its `util.bdiag`, which fails under new versions of torch, is mended at run "
            "time.",
            [
                ("peer", lambda row: row["peer"] + _mark(row)),
                *_times(_milliseconds),
                ("ratio", lambda row: _both(row, _ratio(rows))),
                ("iterations: mean, most", _iterations),
                ("mean cost", lambda row: _number(row, "mean_cost", ".6f")),
                ("projected gradient", lambda row: _small(row.get("projected_gradient"))),
                ("gradient error", lambda row: _small(row.get("gradient_error"))),
                *_COSTS,
            ],
            [row for row in one_core if not row["case"].startswith("lq")],
        ),
        _section(
            "Two cores",
            "Wall time [ms], least / median of the rounds; the speed-up compares medians with one "
            "core, forward / forward and backward.",
            [
                ("peer", lambda row: row["peer"]),
                *_times(_pair),
                ("ratio", lambda row: _both(row, _ratio(rows))),
                ("speed-up", lambda row: _both(row, _one_core_over(rows))),
            ],
            [row for row in rows if row["threads"] == 2],
        ),
        _scaling(results["scaling"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, text: str, columns: list, rows: list[dict]) -> str:
    """A table with a row a peer; a peer that does not take part shows its reason."""
    if not rows:
        return ""
    cells = []
    for row in rows:
        values = [row["peer"], row["error"]] if "error" in row else [f(row) for _, f in columns]
        cells.append([row["case"], *values])
    if any(row.get("rescaled") for row in rows):
        text += (
            " (*) Not measured here: rescaled from `speed.md` of 20 November 2026 by the time of "
            "mpc.pytorch in this run."
        )
    return f"## {title}\n\n{text}\n\n" + _table(["case", *(name for name, _ in columns)], cells)


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [cell.replace("|", "/") for cell in row] + [""] * (len(names) - len(row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _machine(results: dict) -> str:
    machine, limits = results["machine"], results["limits"]
    lines = [f"- {name}: {_flat(value)}" for name, value in machine.items()]
    if "error" in limits:
        lines.append(f"- limits of one core: as published, since here: {limits['error']}")
    elif limits:
        for what in ("read", "write"):
            speeds = ", ".join(f"{k} {v / 1e9:.0f}" for k, v in limits[what].items())
            lines.append(f"- one core, {what} [GB/s]: {speeds}")
        lines.append(f"- one core, multiply-adds [Gflop/s]: {limits['flops'] / 1e9:.0f}")
    for name, found in results["peers"].items():
        words = f"not installed: {found['error']}" if "error" in found else ""
        lines.append(f"- {name}: {words or _flat(found['versions'])}")
    lines.append(
        "- pypose, qpax, crocoddyl and cvxpylayers take linear-quadratic problems only: they know "
        "no bounds, or only convex problems, or need a compiled model."
    )
    return "# Benchmark\n\n" + "\n".join(lines)


def _scaling(rows: list[dict]) -> str:
    if not rows:
        return ""
    cells = []
    for row in rows:
        values = [_milliseconds(row, "seconds"), _number(row, "memory_mb", ".2f")]
        values = [row["error"]] if "error" in row else values
        cells.append([row["sweep"], row["kind"], str(row["value"]), *values])
    powers = [
        f"{label} of {kind} with {sweep} {power:.2f}"
        for (sweep, kind, label), power in exponents(rows).items()
    ]
    text = (
        "Of a gradient, one core, batch 128 where the batch is not varied; the pendulum runs three "
        "iterations where time counts. Powers: " + "; ".join(powers) + "."
    )
    names = ["varied", "problem", "value", "time [ms]", "memory [MB]"]
    return f"## Growth of diffcontrol\n\n{text}\n\n" + _table(names, cells)


def exponents(rows: list[dict]) -> dict[tuple[str, str, str], float]:
    """The power with which time and memory grow, by sweep, kind and quantity."""
    found = {}
    for sweep, kind in dict.fromkeys((row["sweep"], row["kind"]) for row in rows):
        for name, label in (("seconds", "time"), ("memory_mb", "memory")):
            points = [
                (row["value"], row[name])
                for row in rows
                if (row["sweep"], row["kind"]) == (sweep, kind) and name in row
            ]
            if len(points) > 1:
                values, results = zip(*points, strict=True)
                found[sweep, kind, label] = exponent(values, results)
    return found


# Cells.


def _ratio(rows: list[dict]):
    ours = {(r["case"], r["threads"]): r for r in rows if r["peer"] == "diffcontrol"}
    return lambda row, what: row[what] / ours[row["case"], row["threads"]][what]


def _bound(rows: list[dict]):
    bounds = {row["case"]: row for row in rows if row["peer"] == "lower bound"}
    return lambda row, what: row[what] / bounds[row["case"]][what]


def _one_core_over(rows: list[dict]):
    one = {(row["case"], row["peer"]): row for row in rows if row["threads"] == 1}
    return lambda row, what: one[row["case"], row["peer"]][what] / row[what]


def _both(row: dict, function) -> str:
    """The function of forward, and of forward and backward, where both sides have them."""
    cells = []
    for what in (FORWARD, BOTH):
        try:
            cells.append(significant(function(row, what)))
        except KeyError:
            cells.append("-")
    return " / ".join(cells)


def _times(cell) -> list:
    return [(f"{what} [ms]", lambda row, what=what: cell(row, what)) for what in (FORWARD, BOTH)]


def _pair(row: dict, what: str) -> str:
    return f"{_milliseconds(row, f'{what}, least')} / {_milliseconds(row, what)}"


def _iterations(row: dict) -> str:
    return f"{row['iterations']:.1f}, {row['iterations_most']}" if "iterations" in row else ""


_COSTS = [
    ("peak memory [MB]", lambda row: _number(row, "memory_mb", ".0f")),
    ("compile [s]", lambda row: _number(row, f"{BOTH}, compile", ".1f")),
]


def _mark(row: dict) -> str:
    return " (*)" if row.get("rescaled") else ""


def _milliseconds(row: dict, name: str) -> str:
    return significant(1e3 * row[name]) if name in row else ""


def _number(row: dict, name: str, form: str) -> str:
    return format(row[name], form) if name in row else ""


def _small(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def significant(value: float) -> str:
    """Three significant digits, never with an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def _flat(value) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {entry}" for name, entry in value.items())
    return str(value)
