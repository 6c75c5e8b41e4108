"""Two pictures of a run: ratios to the peers, and growth with horizon and batch."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .measure import BOTH, FORWARD
from .report import exponents

_COLOURS = [f"C{k}" for k in range(10) if k != 7]  # without its grey, which is the bound's


def ratios(rows: list[dict], file: Path) -> None:
    """Bars of time over ours by case, a colour a peer; forward above, with the gradient below."""
    rows = [row for row in rows if row["threads"] == 1]
    ours = {row["case"]: row for row in rows if row["peer"] == "diffcontrol"}
    peers = list(dict.fromkeys(row["peer"] for row in rows if row["peer"] != "diffcontrol"))
    colours = {"lower bound": "0.6"}
    for peer in peers:
        colours.setdefault(peer, _COLOURS[(len(colours) - 1) % len(_COLOURS)])
    if not ours:
        return
    figure = Figure(figsize=(14, 9), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    cases = list(ours)
    for axis, what in zip(axes, (FORWARD, BOTH), strict=True):
        for place, case in enumerate(cases):
            bars = [
                row
                for row in rows
                if row["case"] == case and row["peer"] in colours and what in row
            ]
            if what not in ours[case]:
                continue
            width = 0.86 / max(len(bars), 1)
            for k, row in enumerate(bars):
                axis.bar(
                    place - 0.43 + (k + 0.5) * width,
                    row[what] / ours[case][what] - 1.0,
                    width,
                    bottom=1.0,  # bars start at "as fast as diffcontrol"
                    color=colours[row["peer"]],
                    hatch="///" if row.get("rescaled") else None,
                    edgecolor="white",
                    linewidth=0.3,
                )
        axis.set_yscale("log")
        axis.set_xlim(-0.5, len(cases) - 0.5)
        axis.axhline(1.0, color="black", linewidth=1)
        axis.set_ylabel("time / time of diffcontrol [1]")
        axis.set_title(f"{what}, one core (hatched: rescaled from an earlier measurement)")
        axis.grid(axis="y", alpha=0.3)
    axes[1].set_xticks(range(len(cases)), [_wrapped(case) for case in cases], fontsize=8)
    axes[1].set_xlabel("case")
    handles = [Patch(color=colours[peer], label=peer) for peer in peers]
    figure.legend(handles=handles, loc="outside right upper")
    figure.savefig(file, dpi=120)


def _wrapped(case: str) -> str:
    return case.replace(" n=", "\nn=").replace(" T=", "\nT=").replace(" batch ", "\nbatch ")


def scaling(rows: list[dict], file: Path) -> None:
    """Time and memory of a gradient against what is varied, with lines of slope one."""
    powers = exponents(rows)
    figure = Figure(figsize=(17, 4.6), layout="constrained")
    figure.suptitle(
        "diffcontrol on one core, float64: time of a linear-quadratic gradient and of three "
        "iterations on the pendulum; memory of gradients"
    )
    axes = figure.subplots(1, 4)
    panels = [
        ("T", "time", "seconds", 1e3, "horizon T [stages]", "time [ms]"),
        ("batch", "time", "seconds", 1e3, "batch [problems]", "time [ms]"),
        ("T", "memory", "memory_mb", 1.0, "horizon T [stages]", "memory [MB]"),
        ("max_iterations", "memory", "memory_mb", 1.0, "limit of iterations [1]", "memory [MB]"),
    ]
    for axis, (sweep, label, name, scale, horizontal, vertical) in zip(axes, panels, strict=True):
        chosen = [row for row in rows if row["sweep"] == sweep and name in row]
        if not chosen:  # the run was stopped before
            axis.set_visible(False)
            continue
        axis.set(xscale="log", yscale="log", xlabel=horizontal, ylabel=vertical)
        for colour, kind in enumerate(dict.fromkeys(row["kind"] for row in chosen)):
            points = [(row["value"], scale * row[name]) for row in chosen if row["kind"] == kind]
            x, y = np.array(sorted(points)).T
            power = powers.get((sweep, kind, label))
            words = kind if power is None else f"{kind}, power {power:.2f}"
            axis.plot(x, y, "o-", color=f"C{colour}", label=words)
            if sweep != "max_iterations":
                axis.plot(x, y[0] * x / x[0], "--", color=f"C{colour}", alpha=0.4)
        if sweep == "max_iterations":
            axis.set_ylim(bottom=0.1 * min(axis.get_ylim()), top=10 * max(axis.get_ylim()))
        else:
            axis.plot([], [], "--", color="0.5", label="slope one")
        values = sorted({row["value"] for row in chosen})
        axis.set_xticks(values, [str(value) for value in values])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(file, dpi=120)
