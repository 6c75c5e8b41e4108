"""Has it become slower? Ratios to peers of the same run, against those of a committed run.

Absolute times depend on the machine and on what else it does. A ratio to a peer that took turns
with us does so far less, so the gate looks at ratios only, and of those at the steady ones: to
mpc.pytorch and to our own kernel in JAX, on one core.
"""

import json
from pathlib import Path

from .measure import BOTH, FORWARD

BASELINE = Path(__file__).parent / "baseline.json"
STEADY = ("mpc.pytorch", "pure JAX")
_KEEP = 0.8  # a ratio may fall to this share of the baseline's


def ratios(rows: list[dict]) -> dict[str, float]:
    """Time of a steady peer over ours, by case, peer and function."""
    rows = [row for row in rows if row["threads"] == 1]
    ours = {row["case"]: row for row in rows if row["peer"] == "diffcontrol"}
    return {
        f"{row['case']} | {row['peer']} | {what}": row[what] / ours[row["case"]][what]
        for row in rows
        if row["peer"] in STEADY
        for what in (FORWARD, BOTH)
        if what in row and what in ours.get(row["case"], {})
    }


def write_baseline(rows: list[dict], machine: dict, file: Path) -> None:
    """Keep the ratios of this run, and where they come from."""
    kept = ("processor", "commit", "date")
    baseline = {"machine": {name: machine.get(name) for name in kept}, "ratios": ratios(rows)}
    file.write_text(json.dumps(baseline, indent=1) + "\n")


def regressions(rows: list[dict], file: Path) -> tuple[list[str], int]:
    """A sentence for every ratio that has fallen too far, and the number of ratios compared.

    What the baseline has and this run has not is no regression: a quick run measures less. A case
    of this run that failed is one, and so is a run that has nothing to compare.
    """
    baseline = json.loads(file.read_text())["ratios"]
    now = ratios(rows)
    shared = sorted(now.keys() & baseline.keys())
    found = [
        f"{name}: ratio {now[name]:.1f}, baseline {baseline[name]:.1f}"
        for name in shared
        if not now[name] >= _KEEP * baseline[name]
    ]
    found += [
        f"{row['case']}: diffcontrol failed: {row['error']}"
        for row in rows
        if row["peer"] == "diffcontrol" and "error" in row
    ]
    if not shared:
        found.append(f"nothing measured that {file} knows")
    return found, len(shared)
