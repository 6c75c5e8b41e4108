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

EXPERT, LEARNED, START = "#0072B2", "#D55E00", "#7F7F7F"
_EXPERT_STYLE: dict[str, Any] = {"color": EXPERT, "linewidth": 2.2}
_LEARNED_STYLE: dict[str, Any] = {"color": LEARNED, "linewidth": 1.3, "linestyle": (0, (4, 2))}

Names = Sequence[tuple[str, str]]


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
    below.set_xlabel("epoch")
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
        axes.set_xlabel("epoch")
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    _save(figure, path)


def trajectories(
    time_step: float | None,
    expert_states: np.ndarray | None,
    expert_controls: np.ndarray | None,
    learned_states: np.ndarray,
    learned_controls: np.ndarray,
    names: tuple[Names, Names],
    path: Path,
    title: str = "",
    bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """States and controls over time, learned over expert, one column a run.

    Args:
        time_step: [s]; None counts steps.
        expert_states, learned_states: `(N, L+1, n)` or, for a single run, `(L+1, n)`; the
            expert's may be None.
        expert_controls, learned_controls: `(N, L, m)` or `(L, m)`.
        names: name and unit of each state, and of each control.
        path: of the picture.
        title: above the picture.
        bounds: of the controls, `(m,)` each, to be drawn as limits; infinite ones are not.
    """
    several = lambda array: np.asarray(array)[None] if np.ndim(array) == 2 else np.asarray(array)
    learned = (several(learned_states), several(learned_controls))
    drawn = [(*learned, _LEARNED_STYLE, "learned")]
    if expert_states is not None and expert_controls is not None:
        expert = (several(expert_states), several(expert_controls))
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


def closed_loop(
    time_step: float | None,
    expert: tuple[np.ndarray, np.ndarray] | None,
    learned: tuple[np.ndarray, np.ndarray],
    seeds: Sequence[int],
    names: tuple[Names, Names],
    bounds: tuple[np.ndarray, np.ndarray] | None,
    path: Path,
) -> None:
    """Closed loops of learned controller and expert from the same starts, one column a seed.

    Args:
        time_step: [s]; None counts steps.
        expert, learned: states `(N, L+1, n)` and controls `(N, L, m)`; no expert is None.
        seeds: of the N episodes.
        names: name and unit of each state, and of each control.
        bounds: of the controls, `(m,)` each.
        path: of the picture.
    """
    listed = ", ".join(str(seed) for seed in seeds)
    title = f"Closed loop from the starts of seeds {listed}"
    states, controls = (None, None) if expert is None else expert
    trajectories(time_step, states, controls, *learned, names, path, title, bounds)


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


def _draw_limits(axes, bounds, i: int) -> None:
    """Dotted lines at the finite bounds of control `i`; bounds that differ by stage are not."""
    for k, side in enumerate(bounds or ()):
        if np.ndim(side) > 1:
            continue
        value = float(np.ravel(side)[min(i, np.size(side) - 1)])
        if math.isfinite(value):
            label = "bound" if k == 0 else None
            axes.axhline(value, color="black", linewidth=0.8, linestyle=":", label=label)


def _logarithmic_if_positive(axes, values: Sequence[float]) -> None:
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) > 0.0:
        axes.set_yscale("log")


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
