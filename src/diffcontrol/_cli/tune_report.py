"""What a tuning ends with: the cost of the closed loop before and after, and pictures of both."""

from pathlib import Path
from typing import Any

import numpy as np

from ..learning import Trained
from .fit_report import draw_learning
from .named import SYSTEMS, axes_of
from .task import Driven

# More lines cannot be told apart.
_MOST_DRAWN = 8


def result(before: Driven, after: Driven, trained: Trained) -> dict[str, Any]:
    """The numbers of `result.json`: means over the test episodes, with 95 % intervals."""
    change = after.totals - before.totals
    return {
        "test_episodes": len(before.totals),
        "steps": before.controls.shape[1],
        "best_epoch": trained.best_epoch,
        "cost_before": _mean(before.totals),
        "cost_after": _mean(after.totals),
        "change": _mean(change),
        "change_percent": float(100 * change.mean() / abs(before.totals.mean())),
        "share_of_unsolved_steps_before": float(before.unsolved.mean()),
        "share_of_unsolved_steps_after": float(after.unsolved.mean()),
        "left_out_in_training": trained.metrics[-1]["left_out"],
    }


def _mean(values: np.ndarray) -> dict[str, Any]:
    """Mean, and 1.96 standard errors of it to either side; None for a single value."""
    half = 1.96 * values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    mean = float(values.mean())
    return {"mean": mean, "interval": [float(mean - half), float(mean + half)]}


def say(numbers: dict[str, Any]) -> None:
    """Print the cost before and after."""
    print(
        f"cost of {numbers['test_episodes']} held-out closed loops of {numbers['steps']} steps, "
        "mean and 95 % interval:"
    )
    for when in ("before", "after"):
        of = numbers[f"cost_{when}"]
        low, high = of["interval"]
        print(
            f"  {when:<7} {of['mean']:10.5g}  [{low:.5g}, {high:.5g}], steps not solved "
            f"{100 * numbers[f'share_of_unsolved_steps_{when}']:.2f} %"
        )
    low, high = numbers["change"]["interval"]
    print(
        f"  change  {numbers['change']['mean']:+10.5g}  [{low:+.5g}, {high:+.5g}], "
        f"{numbers['change_percent']:+.1f} %"
    )


def draw(
    folder: Path,
    description: dict[str, Any],
    trained: Trained,
    report: dict[str, Any],
    before: Driven,
    after: Driven,
    time_step: float | None,
) -> list[Path]:
    """The pictures of a tuning; returns where they are."""
    from . import pictures  # with matplotlib, which no one waits for who asks for --help

    written = draw_learning(folder, description, trained.metrics, report)
    written.append(folder / "closed_loop.png")
    shown = slice(_MOST_DRAWN)
    of = lambda driven: (driven.states[shown], driven.controls[shown], driven.costs[shown])
    known = SYSTEMS.get(description.get("system", ""))
    title = lambda when, driven: f"{when} tuning: mean cost {driven.totals.mean():.4g}"
    pictures.before_and_after(
        time_step,
        of(before),
        of(after),
        axes_of(known, before.states.shape[-1], before.controls.shape[-1]),
        written[-1],
        (title("before", before), title("after", after)),
        trained.model.control_bounds,
    )
    return written
