"""Pictures of the systems, apart from their dynamics.

Drawing functions have the form `draw(ax, state, control)`: they fill matplotlib axes with one
state and the control that acts on it, on scales that do not depend on either, so that pictures
can follow each other in an animation. They need matplotlib and Pillow, which
`pip install "diffcontrol[cli]"` brings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

# Colours that are told apart also without colour vision (Okabe and Ito); each has one meaning.
_BODY, _POSITIVE, _NEGATIVE, _GOAL = "#333333", "#0072b2", "#d55e00", "#009e73"
_PULL = "#cc79a7"


def draw_pendulum(
    ax: Any, state: ArrayLike, control: ArrayLike | None, *, length: float = 1.0, limit: float = 2.0
) -> None:
    """The rod, where upright is, and the torque as an arc about the pivot.

    The angle counts clockwise from upright, so that a positive angle leans to the right.

    Args:
        ax: matplotlib axes.
        state: `(cos th, sin th, th')`.
        control: torque [N m], shape `(1,)`; None for a state that no control follows.
        length: of the rod [m].
        limit: the torque [N m] drawn as three quarters of a turn; larger ones are cut there.
    """
    cos, sin, speed = (float(value) for value in np.asarray(state))
    torque = 0.0 if control is None else float(np.asarray(control).reshape(()))
    _scales(ax, (-1.5 * length, 1.5 * length), (-1.2 * length, 1.8 * length))
    ax.plot([0, 0], [0, length], color=_GOAL, linewidth=2, linestyle=":", zorder=1)
    ax.plot(
        [0, length * sin],
        [0, length * cos],
        color=_BODY,
        linewidth=9,
        solid_capstyle="round",
        zorder=2,
    )
    ax.plot(0, 0, "o", color="white", markersize=5, markeredgecolor=_BODY, zorder=3)
    _torque_arc(ax, torque, 0.32 * length, limit)
    ax.set_xlabel("horizontal [m]")
    ax.set_ylabel("height above the pivot [m]")
    ax.set_title(
        f"angle {np.arctan2(sin, cos):+.2f} rad, speed {speed:+.2f} rad/s, "
        f"torque {torque:+.2f} N m",
        fontsize=10,
    )
    _legend(ax, "torque, clockwise", "torque, anticlockwise")


def draw_complex_pendulum(
    ax: Any,
    state: ArrayLike,
    control: ArrayLike | None,
    *,
    wind: float = 0.1,
    length: float = 1.0,
    limit: float = 2.0,
) -> None:
    """As `draw_pendulum`, with the direction into which gravity and wind pull together.

    Args:
        ax: matplotlib axes.
        state: `(cos th, sin th, th')`.
        control: torque [N m], shape `(1,)`; None for a state that no control follows.
        wind: tilts the direction of gravity [rad].
        length: of the rod [m].
        limit: the torque [N m] drawn as three quarters of a turn; larger ones are cut there.
    """
    draw_pendulum(ax, state, control, length=length, limit=limit)
    # The pull turns the rod as sin(th + wind) does: it is at rest on the far side, at pi - wind.
    tail = np.array([-1.1 * length, 0.2 * length])
    ax.annotate(
        "",
        xy=tail + 0.5 * length * np.array([np.sin(wind), -np.cos(wind)]),
        xytext=tail,
        arrowprops={"arrowstyle": "-|>", "linewidth": 2, "color": _PULL},
        zorder=2,
    )
    ax.text(
        *(tail + [0.0, 0.05 * length]), "gravity\nand wind", ha="center", fontsize=8, color=_PULL
    )


def draw_cartpole(
    ax: Any,
    state: ArrayLike,
    control: ArrayLike | None,
    *,
    half_length: float = 0.5,
    limit: float = 100.0,
) -> None:
    """Cart, pole, where upright at the origin is, and the force as an arrow on the cart.

    The view moves with the cart in steps of 2 m, so that short motions are seen against a fixed
    background. The pole's angle counts clockwise from upright.

    Args:
        ax: matplotlib axes.
        state: `(p, p', cos th, sin th, th')`.
        control: force [N], shape `(1,)`; None for a state that no control follows.
        half_length: of the pole [m].
        limit: the force [N] drawn as an arrow of 1 m; larger ones are cut there.
    """
    position, _, cos, sin, _ = (float(value) for value in np.asarray(state))
    force = 0.0 if control is None else float(np.asarray(control).reshape(()))
    pole, width, height = 2 * half_length, 0.5, 0.24
    middle = 2.0 * round(position / 2.0)
    _scales(ax, (middle - 2.4, middle + 2.4), (-1.3 * pole, 2.2 * pole))
    from matplotlib.patches import FancyBboxPatch

    ax.axhline(-height / 2, color="#999999", linewidth=1, zorder=0)
    ax.plot([0, 0], [0, pole], color=_GOAL, linewidth=2, linestyle=":", zorder=1)
    ax.add_patch(
        FancyBboxPatch(
            (position - width / 2, -height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.04",
            facecolor="#bbbbbb",
            edgecolor=_BODY,
            zorder=2,
        )
    )
    ax.plot(
        [position, position + pole * sin],
        [0, pole * cos],
        color=_BODY,
        linewidth=7,
        solid_capstyle="round",
        zorder=3,
    )
    ax.plot(position, 0, "o", color="white", markersize=4, markeredgecolor=_BODY, zorder=4)
    share = float(np.clip(force / limit, -1.0, 1.0))
    if abs(share) > 0.02:
        side = position + np.sign(share) * width / 2
        ax.annotate(
            "",
            xy=(side + share, 0.0),
            xytext=(side, 0.0),
            arrowprops={"arrowstyle": "-|>", "linewidth": 3, "color": _colour(force)},
            zorder=5,
        )
    ax.set_xlabel("position of the cart [m]")
    ax.set_ylabel("height above the hinge [m]")
    ax.set_title(
        f"position {position:+.2f} m, angle {np.arctan2(sin, cos):+.2f} rad, force {force:+.1f} N",
        fontsize=10,
    )
    _legend(ax, "force to the right", "force to the left")


def animate(
    states: ArrayLike,
    controls: ArrayLike,
    time_step: float,
    draw: Callable[[Any, Any, Any], None],
    path: str | Path,
) -> None:
    """Write a run as an animated GIF in real time, which repeats.

    Args:
        states: `(T+1, n)`.
        controls: `(T, m)`; `controls[t]` is drawn with `states[t]`, the last state without.
        time_step: [s]. GIF counts time in 1/100 s and viewers slow down frames under 2/100 s, so
            for smaller steps some states are left out.
        draw: `draw(ax, state, control)`, such as `draw_pendulum`.
        path: of the file to write.

    Raises:
        ValueError: if there is not one state more than controls.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    states, controls = np.asarray(states), np.asarray(controls)
    if states.ndim != 2 or controls.ndim != 2 or len(states) != len(controls) + 1:
        raise ValueError(
            "animate: `states` must have shape (T+1, n) and `controls` (T, m), but have shapes "
            f"{states.shape} and {controls.shape}."
        )
    canvas = FigureCanvasAgg(Figure(figsize=(5.0, 5.2), dpi=80, layout="constrained"))
    ax = canvas.figure.add_subplot()
    stride = max(1, round(0.02 / time_step))
    frames: list[Image.Image] = []
    for t in range(0, len(states), stride):
        ax.clear()
        draw(ax, states[t], controls[t] if t < len(controls) else None)
        ax.text(0.02, 0.02, f"{t * time_step:.2f} s", transform=ax.transAxes, fontsize=10)
        canvas.draw()
        # Laid out once: faster, and nothing jumps.
        canvas.figure.set_layout_engine("none")
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        # The legend shows every colour, so the palette of the first frame serves all.
        frames.append(
            picture.quantize(palette=frames[0], dither=Image.Dither.NONE)
            if frames
            else picture.quantize(128, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        )
    # Times of display are rounded to the clock of the format without letting errors add up.
    ends = np.rint(100 * stride * time_step * np.arange(len(frames) + 1)).astype(int)
    durations = 10 * np.diff(ends)
    durations[-1] = 1000  # Rest on the last state before the run repeats.
    frames[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=durations.tolist(),
        loop=0,
    )


def _scales(ax: Any, horizontal: tuple[float, float], vertical: tuple[float, float]) -> None:
    ax.set_aspect("equal")
    ax.set_xlim(horizontal)
    ax.set_ylim(vertical)
    ax.grid(color="#eeeeee", linewidth=0.8)
    ax.set_axisbelow(True)


def _torque_arc(ax: Any, torque: float, radius: float, limit: float) -> None:
    """An arc from the top, clockwise for positive torque, as long as the torque is large."""
    sweep = 1.5 * np.pi * float(np.clip(torque / limit, -1.0, 1.0))
    if abs(sweep) < 0.05:
        return
    # The head takes the end of the arc; short arcs are all head.
    head = np.sign(sweep) * min(0.35, 0.7 * abs(sweep))
    arc = np.linspace(0.0, sweep - head, 60)
    colour = _colour(torque)
    ax.plot(radius * np.sin(arc), radius * np.cos(arc), color=colour, linewidth=3, zorder=4)
    base, half = sweep - head, 0.25 * radius
    tip = radius * np.array([np.sin(sweep), np.cos(sweep)])
    outward = np.array([np.sin(base), np.cos(base)])
    corners = np.stack([tip, (radius + half) * outward, (radius - half) * outward])
    ax.fill(corners[:, 0], corners[:, 1], color=colour, linewidth=0, zorder=4)


def _colour(control: float) -> str:
    return _POSITIVE if control > 0 else _NEGATIVE


def _legend(ax: Any, positive: str, negative: str) -> None:
    """What each colour means, always the same entries, whatever the control is now."""
    from matplotlib.lines import Line2D

    ax.legend(
        handles=[
            Line2D([], [], color=_POSITIVE, linewidth=3, label=f"{positive} (+)"),
            Line2D([], [], color=_NEGATIVE, linewidth=3, label=f"{negative} (\u2212)"),
            Line2D([], [], color=_GOAL, linewidth=2, linestyle=":", label="goal: upright"),
        ],
        loc="upper right",
        fontsize=8,
    )
