"""What a fit ends with: numbers and pictures of what was learned."""

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import ControlProblem
from .._iterate import AbstractSolver
from .._solve import solve_from
from .._trajectory import Trajectory
from ..learning import Demonstrations, Evaluation, Trained, windows
from ..systems.drawing import animate
from .controller import true_problem
from .learner import values
from .named import SYSTEMS, axes_of

# Closed loops take time to compute and a column each in the picture.
_MOST_DRAWN = 3
_MOST_ANIMATED = 3.0  # [s]


def most_active(runs: Demonstrations) -> Demonstrations:
    """The few runs in which the expert worked hardest; they have most to show."""
    effort = np.abs(runs.controls).sum(axis=(1, 2))
    return runs.take(np.argsort(-effort, kind="stable")[:_MOST_DRAWN])


def closed_loop(
    problem: ControlProblem, solver: AbstractSolver, runs: Demonstrations, steps: int
) -> Trajectory:
    """The learned controller drives its own model from where the expert started.

    It plans again after every `steps` controls. Every plan starts from the controls that the expert
    applied from that step on, so what is seen is the effect of the parameters, not of which local
    optimum a search finds; `diffcontrol evaluate` shows the controller on its own, in a plant.

    Returns:
        States `(N, L+1, n)` and controls `(N, L, m)`.
    """
    guesses = windows(runs, problem.horizon).guess.reshape(
        runs.runs, runs.steps, problem.horizon, problem.control_size
    )
    starts = jnp.asarray(runs.states[:, 0], dtype=guesses.dtype)
    return _drive(problem, solver, starts, guesses, steps)


@eqx.filter_jit
def _drive(problem, solver, starts, guesses, steps):
    def one(x0, guesses):
        length = guesses.shape[0]

        def advance(x, inputs):
            guess, k = inputs
            plan = solve_from(problem, x, k, solver, guess)
            return plan.states[steps], (plan.states[1 : steps + 1], plan.controls[:steps])

        _, carried_out = jax.lax.scan(advance, x0, (guesses[::steps], jnp.arange(0, length, steps)))
        # The last plan may lead beyond the end.
        following, controls = jax.tree.map(lambda rows: jnp.concatenate(rows)[:length], carried_out)
        return Trajectory(jnp.concatenate([x0[None], following]), controls)

    return jax.vmap(one)(starts, guesses)


def parameters(
    learn: str, description: dict[str, Any], start: ControlProblem, trained: Trained
) -> dict[str, Any]:
    """Start, learned and true parameters, and what of them can be identified."""
    report: dict[str, Any] = {
        "start": values(start, learn),
        "learned": values(trained.model, learn),
    }
    known = _known(description)
    if known is not None and "parameters" in description:
        report["true"] = values(true_problem(description), learn)
    if known is not None and known.combinations and learn != "cost":
        report["identifiable"] = {
            name: {who: float(formula(report[who])) for who in _columns(report)}
            for name, formula in known.combinations.items()
        }
    return report


def say(report: dict[str, Any]) -> None:
    """Print the parameters as a table."""
    columns = _columns(report)
    rows = [(name, [report[c][name] for c in columns]) for name in report["start"]]
    rows += [
        (name, [row[c] for c in columns]) for name, row in report.get("identifiable", {}).items()
    ]
    if not rows:
        return
    width = max(len(name) for name, _ in rows)
    print(" " * width, *(f"{column:>12}" for column in columns))
    for name, numbers in rows:
        print(f"{name:<{width}}", *(f"{number:12.6g}" for number in numbers))
    if report.get("identifiable"):
        print("Optimal controls depend on the combinations only; single parameters may differ.")


def say_loss(learned: Evaluation, runs: int) -> None:
    """Print the loss on runs that were neither trained nor selected on."""
    print(
        f"imitation loss on {runs} held-out runs: {learned.loss:.3g} "
        f"({100 * learned.left_out:.1f} % of their windows left out)"
    )


def draw(
    folder: Path,
    description: dict[str, Any],
    metrics: list[dict[str, Any]],
    runs: Demonstrations,
    driven: Trajectory,
    report: dict[str, Any],
    problem: ControlProblem,
) -> list[Path]:
    """The pictures of a fit; returns where they are."""
    from . import pictures  # with matplotlib, which no one waits for who asks for --help

    known = _known(description)
    written = draw_learning(folder, description, metrics, report)
    written.append(folder / "trajectories.png")
    pictures.trajectories(
        runs.time_step,
        (runs.states, runs.controls),
        (np.asarray(driven.states), np.asarray(driven.controls)),
        axes_of(known, runs.states.shape[-1], runs.controls.shape[-1]),
        written[-1],
        title="held-out runs; the learned controller drives its own model",
        bounds=problem.control_bounds,
    )
    if known is not None and known.draw is not None and runs.time_step is not None:
        written.append(folder / "animation.gif")
        steps = max(1, min(runs.steps, round(_MOST_ANIMATED / runs.time_step)))
        animate(
            driven.states[0, : steps + 1],
            driven.controls[0, :steps],
            runs.time_step,
            known.draw,
            written[-1],
        )
    return written


def draw_learning(
    folder: Path,
    description: dict[str, Any],
    metrics: list[dict[str, Any]],
    report: dict[str, Any],
) -> list[Path]:
    """Loss and parameters over the epochs; returns where the pictures are."""
    from . import pictures

    known = _known(description)
    written = [folder / "loss.png"]
    pictures.loss_curves(metrics, written[0])

    history = [dict(line["parameters"]) for line in metrics]
    truth = dict(report["true"]) if "true" in report else None
    if known is not None and "identifiable" in report:
        for name, formula in known.combinations.items():
            for numbers in [*history, *([] if truth is None else [truth])]:
                numbers[name] = float(formula(numbers))
    if history and history[0]:
        written.append(folder / "parameters.png")
        units = None if known is None else known.parameters
        pictures.parameters(history, truth, written[-1], units)
    return written


def _known(description: dict[str, Any]):
    return SYSTEMS.get(description.get("system", ""))


def _columns(report: dict[str, Any]) -> list[str]:
    return [column for column in ("start", "learned", "true") if column in report]
