"""Pictures of learning and of closed loops.

Colours keep their meaning in every picture and differ also to colour-blind eyes (Okabe and Ito):
blue is the expert or the truth, vermilion what was learned, grey where learning started.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no window is opened
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from .. import Bounds
from .named import Axes

EXPERT, LEARNED, START = "#0072B2", "#D55E00", "#7F7F7F"
_EXPERT_STYLE: dict[str, Any] = {"color": EXPERT, "linewidth": 2.2}
_LEARNED_STYLE: dict[str, Any] = {"color": LEARNED, "linewidth": 1.3, "linestyle": (0, (4, 2))}


def loss_curves(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Training and validation loss of each epoch, and the share of samples left out.

    Args:
        metrics: one dictionary an epoch, with `epoch`, `loss`, `validation_loss`, `left_out`,
            `best_epoch`; None where a number is not known.
        path: of the picture.
    """
    epochs = [line["epoch"] for line in metrics]
    of = lambda key: [_number(line.get(key)) for line in metrics]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7, 5), sharex=True, layout="constrained", height_ratios=(3, 1)
    )
    above.plot(epochs, of("loss"), color=START, linewidth=1.3, label="training")
    above.plot(epochs, of("validation_loss"), color=LEARNED, linewidth=1.8, label="validation")
    _logarithmic_if_positive(above, of("loss") + of("validation_loss"))
    best = metrics[-1].get("best_epoch")
    if best is not None:
        above.axvline(best, color="black", linewidth=0.8, linestyle=":", label="chosen epoch")
    above.set_ylabel("mean loss of a sample")
    above.legend()
    below.plot(epochs, [100.0 * share for share in of("left_out")], color=START, linewidth=1.3)
    below.set_ylabel("left out [%]")
    below.set_ylim(bottom=0.0)
    _epochs_along(below)
    above.set_title("Loss; below, samples left out because their solve did not converge")
    _save(figure, path)


def parameters(
    history: Sequence[Mapping[str, float]],
    truth: Mapping[str, float] | None,
    path: Path,
    units: Mapping[str, str] | None = None,
) -> None:
    """The course of each parameter, and of each combination of them, over the epochs.

    Args:
        history: one dictionary an epoch, beginning with the start.
        truth: the true values, of all or some, or None where they are not known.
        path: of the picture.
        units: of each parameter, where known; a name may also carry its unit itself.
    """
    names, truth, units = list(history[0]), truth or {}, units or {}
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.3 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for axes, name in zip(grid.flat, names, strict=False):
        values = [_number(line.get(name)) for line in history]
        if name in truth:
            axes.axhline(truth[name], label="true", **_EXPERT_STYLE)
        axes.plot(values, color=LEARNED, linewidth=1.6, label="learned")
        axes.plot(0, values[0], "o", color=START, label="start")
        axes.set_ylabel(f"{name} [{units[name]}]" if name in units else name)
        _epochs_along(axes)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    _save(figure, path)


def trajectories(
    time_step: float | None,
    expert: tuple[np.ndarray, np.ndarray] | None,
    learned: tuple[np.ndarray, np.ndarray],
    names: Axes,
    path: Path,
    title: str = "",
    bounds: Bounds | None = None,
) -> None:
    """States and controls over time, learned over expert, one column a run.

    Args:
        time_step: [s]; None counts steps.
        expert, learned: states `(N, L+1, n)` and controls `(N, L, m)` of N runs; no expert is None.
        names: name and unit of each state, and of each control.
        path: of the picture.
        title: above the picture.
        bounds: of the controls, drawn as limits where they are finite.
    """
    drawn = [(*learned, _LEARNED_STYLE, "learned")]
    if expert is not None:
        drawn.insert(0, (*expert, _EXPERT_STYLE, "expert"))
    count, n, m = len(learned[0]), learned[0].shape[-1], learned[1].shape[-1]
    figure, grid = plt.subplots(
        n + m,
        count,
        figsize=(max(6.5, 3.4 * count), 1.5 * (n + m) + 0.8),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    step = 1.0 if time_step is None else time_step
    for column in range(count):
        for states, controls, style, label in drawn:
            x, u = states[column], controls[column]
            for i in range(n):
                grid[i, column].plot(step * np.arange(len(x)), x[:, i], label=label, **style)
            # A control is held over its step.
            held = np.concatenate([u, u[-1:]])
            for i in range(m):
                grid[n + i, column].step(
                    step * np.arange(len(held)), held[:, i], where="post", label=label, **style
                )
        grid[-1, column].set_xlabel("step" if time_step is None else "time [s]")
        for i in range(m):
            _draw_limits(grid[n + i, column], bounds, i)
    for i, (name, unit) in enumerate([*names[0], *names[1]]):
        grid[i, 0].set_ylabel(name if unit == "1" else f"{name}\n[{unit}]")
    figure.align_ylabels(grid[:, 0])
    handles, labels = grid[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, title=title or None)
    _save(figure, path)


def before_and_after(
    time_step: float | None,
    before: tuple[np.ndarray, np.ndarray, np.ndarray],
    after: tuple[np.ndarray, np.ndarray, np.ndarray],
    names: Axes,
    path: Path,
    titles: tuple[str, str],
    bounds: Bounds | None = None,
) -> None:
    """Closed loops of two controllers from the same starts, side by side.

    Args:
        time_step: [s]; None counts steps.
        before, after: states `(N, L+1, n)`, controls `(N, L, m)` and costs of each step `(N, L)`.
        names: name and unit of each state, and of each control.
        path: of the picture.
        titles: above the columns.
        bounds: of the controls, drawn as limits where they are finite.
    """
    n, m = before[0].shape[-1], before[1].shape[-1]
    figure, grid = plt.subplots(
        n + m + 1,
        2,
        figsize=(9.0, 1.5 * (n + m + 1) + 0.8),
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    step = 1.0 if time_step is None else time_step
    style: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.7}
    columns = zip((before, after), (START, LEARNED), titles, strict=True)
    for column, ((states, controls, costs), color, title) in enumerate(columns):
        axes = grid[:, column]
        axes[0].set_title(title, color=color)
        for x, u, cost in zip(states, controls, costs, strict=True):
            time = step * np.arange(len(x))
            for i in range(n):
                axes[i].plot(time, x[:, i], color=color, **style)
            # Controls and costs are those of a whole step.
            for i in range(m):
                held = np.append(u[:, i], u[-1, i])
                axes[n + i].step(time, held, where="post", color=color, **style)
            axes[-1].step(time, np.append(cost, cost[-1]), where="post", color=color, **style)
        for i in range(m):
            _draw_limits(axes[n + i], bounds, i)
        axes[-1].set_xlabel("step" if time_step is None else "time [s]")
    _logarithmic_if_positive(grid[-1, 0], [*before[2].flat, *after[2].flat])
    for i, (name, unit) in enumerate([*names[0], *names[1], ("cost of a step", "1")]):
        grid[i, 0].set_ylabel(name if unit == "1" else f"{name}\n[{unit}]")
    figure.align_ylabels(grid[:, 0])
    handles, labels = grid[n, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right")
    _save(figure, path)


def returns(
    seeds: Sequence[int], expert: np.ndarray | None, learned: np.ndarray, path: Path
) -> None:
    """Return of each seed, learned beside expert.

    Args:
        seeds: of the N episodes.
        expert: `(N,)`, or None if there is no expert to compare with.
        learned: `(N,)`.
        path: of the picture.
    """
    figure, axes = plt.subplots(figsize=(max(5.0, 0.38 * len(seeds) + 1.5), 3.6))
    at = np.arange(len(seeds))
    if expert is not None:
        label = f"expert, mean {np.mean(expert):.1f}"
        axes.bar(at - 0.2, expert, 0.4, color=EXPERT, label=label)
    label = f"learned, mean {np.mean(learned):.1f}"
    axes.bar(at + (0.0 if expert is None else 0.2), learned, 0.4, color=LEARNED, label=label)
    axes.set_xticks(at, [str(seed) for seed in seeds])
    axes.set_xlabel("seed of the episode")
    axes.set_ylabel("return (sum of rewards)")
    axes.axhline(0.0, color="black", linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=2)
    figure.set_layout_engine("constrained")
    _save(figure, path)


def _draw_limits(axes, bounds: Bounds | None, i: int) -> None:
    """Dotted lines at the finite bounds of control `i`; bounds that differ by stage are not."""
    if bounds is None:
        return
    for k, side in enumerate((bounds.lower, bounds.upper)):
        if np.ndim(side) > 1:
            continue
        value = float(np.ravel(side)[min(i, np.size(side) - 1)])
        if math.isfinite(value):
            label = "bound" if k == 0 else None
            axes.axhline(value, color="black", linewidth=0.8, linestyle=":", label=label)


def _epochs_along(axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _logarithmic_if_positive(axes, values: Sequence[float]) -> None:
    known = [value for value in values if math.isfinite(value)]
    # Over less than a decade a plain scale has the better ticks.
    if known and 0.0 < 10.0 * min(known) < max(known):
        axes.set_yscale("log")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
