"""Checks for problems, solvers and adjoints, ours and other people's.

`check_gradients` is the gradient doctor: it compares the derivative of a solution with central
differences of re-solved problems, and believes the differences only where they have converged.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._adjoint.base import AbstractAdjoint
from ._adjoint.implicit import ImplicitAdjoint
from ._certificate import Certificate, certify
from ._control_problem import ControlProblem, check_concrete_values
from ._iterate import AbstractSolver
from ._planner.base import AbstractPlanner
from ._result import RESULTS, sentence, succeeded
from ._solve import solve
from ._solver.ddp import DDP
from ._types import Numbers, as_floats
from .systems import cartpole, double_integrator, pendulum

# Steps of the differences, relative to the size of what is perturbed (float64). Small ones suffer
# from rounding, large ones from curvature; between them lies a plateau, if the derivative exists.
_STEPS = np.array([1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7])
# How far from the solution the perturbed solves start, relative to the controls.
_BESIDE = 1e-4
_AGREES = 1e-5
_CONVERGED = 1e-6


@dataclass(frozen=True)
class Entry:
    """One derivative, checked.

    Attributes:
        sample: which initial state.
        name: the array, as `problem.dynamics.mass`, `x0`, or `problem.stage_cost.closed_over[0]`
            for what a function inside the stage cost closes over, with the index of its entry.
        gradient: from the adjoint.
        steps, differences: central differences, `(K,)` each; NaN where a solve did not converge.
        difference: the most trustworthy of them.
        uncertainty: its estimated relative error.
        error: relative difference between `gradient` and `difference`.
    """

    sample: int
    name: str
    gradient: float
    steps: np.ndarray
    differences: np.ndarray
    difference: float
    uncertainty: float
    error: float

    @property
    def decided(self) -> bool:
        """Whether the differences converged, so that they can judge."""
        return bool(self.uncertainty <= _CONVERGED)

    @property
    def agrees(self) -> bool:
        """Whether adjoint and differences agree to 1e-5, or as closely as can be told."""
        return bool(self.error <= max(_AGREES, 3 * self.uncertainty))


@dataclass(frozen=True)
class Report:
    """Outcome of `check_gradients`. `str(report)` is the verdict in words.

    Attributes:
        entries: every derivative that was checked.
        certificates: of the solution of each sample.
        outcomes: how each sample's solve ended, as a sentence.
        left_out: parts of the problem that are Python numbers: constants, without a gradient.
    """

    entries: list[Entry]
    certificates: list[Certificate]
    outcomes: list[str]
    left_out: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every solve succeeded, every difference converged, every derivative agrees."""
        return (
            all(outcome == sentence(RESULTS.successful) for outcome in self.outcomes)
            and bool(self.entries)
            and all(entry.decided and entry.agrees for entry in self.entries)
        )

    def __str__(self) -> str:
        lines = []
        for sample, (outcome, certificate) in enumerate(
            zip(self.outcomes, self.certificates, strict=True)
        ):
            mine = [entry for entry in self.entries if entry.sample == sample]
            undecided = [entry for entry in mine if not entry.decided]
            wrong = [entry for entry in mine if entry.decided and not entry.agrees]
            lines.append(f"sample {sample}: {outcome} {certificate}")
            if wrong:
                worst = max(wrong, key=lambda entry: entry.error)
                lines.append(
                    f"  WRONG: {len(wrong)} of {len(mine)} derivatives differ from converged "
                    f"differences; worst {worst.name}: adjoint {worst.gradient:.8g}, differences "
                    f"{worst.difference:.8g}."
                )
            if undecided:
                worst = max(undecided, key=lambda entry: entry.uncertainty)
                lines.append(
                    f"  UNDECIDED: the differences of {len(undecided)} of {len(mine)} derivatives "
                    f"do not converge (worst {worst.name}): the solution has a kink near by, or "
                    "is not solved accurately enough; compare the certificate."
                )
            if not wrong and not undecided:
                error = max((entry.error for entry in mine), default=0.0)
                lines.append(
                    f"  All {len(mine)} derivatives agree with differences "
                    f"(largest relative error {error:.1e})."
                )
        if self.left_out:
            lines.append(
                f"Not differentiated, being Python numbers: {', '.join(self.left_out)}. Make them "
                "arrays (`jnp.asarray`) to give them gradients."
            )
        lines.append("PASSED" if self.passed else "FAILED")
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Draw |difference - adjoint| against the step, one line a derivative.

        Args:
            path: of the picture; its ending says the format.

        Raises:
            ImportError: without matplotlib, which comes with `diffcontrol[cli]`.
        """
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        colours = {"agrees": "#0072B2", "undecided": "#E69F00", "wrong": "#D55E00"}
        seen = set()
        for entry in self.entries:
            verdict = "undecided" if not entry.decided else "agrees" if entry.agrees else "wrong"
            scale = max(abs(entry.gradient), abs(entry.difference), 1e-30)
            axes.loglog(
                entry.steps,
                np.abs(entry.differences - entry.gradient) / scale + 1e-17,
                color=colours[verdict],
                label=None if verdict in seen else verdict,
                alpha=0.7,
                linewidth=1,
            )
            seen.add(verdict)
        axes.axhline(_AGREES, color="black", linewidth=0.8, linestyle="--")
        axes.set_xlabel("relative step of the central difference [1]")
        axes.set_ylabel("relative difference to the adjoint [1]")
        axes.set_title("Gradient against central differences, one line a derivative")
        if seen:
            axes.legend(title="verdict")
        figure.savefig(path, dpi=130)
        plt.close(figure)


def check_gradients(
    problem: ControlProblem,
    x0: Numbers,
    solver: AbstractSolver = DDP(tolerance=1e-11),
    adjoint: AbstractAdjoint = ImplicitAdjoint(),
    *,
    entries_per_leaf: int = 6,
    seed: int = 0,
) -> Report:
    """Compare the derivative of a solution with converged central differences.

    The loss is a fixed random linear function of states and controls. Every array of the problem,
    the initial state, and values that plain functions close over are perturbed, entry by entry.

    Args:
        problem: the problem.
        x0: one initial state `(n,)`, or several `(N, n)`; each is judged on its own.
        solver: give it a tight tolerance: differences see its error divided by their step.
        adjoint: the adjoint under test.
        entries_per_leaf: of larger arrays only so many entries, chosen at random, are perturbed.
        seed: of the loss and of that choice.

    Returns:
        A report of every derivative; `report.passed` and `str(report)` sum it up.

    Raises:
        TypeError: for an `x0` that is not made of real numbers, or a planner.
        ValueError: if float64 is off; differences in float32 decide nothing. Also as `solve` does
            for arguments that do not fit together.
    """
    if isinstance(solver, AbstractPlanner):
        raise TypeError(
            f"check_gradients: `solver` must be a solver such as DDP(), got {solver!r}. Compare a "
            "planner's derivative with differences of solves with the same key."
        )
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "check_gradients needs float64: call jax.config.update('jax_enable_x64', True) first."
        )
    starts = jnp.atleast_2d(as_floats("x0", x0).astype(float))
    check_concrete_values("x0", starts)
    constants = _python_numbers(problem)
    problem = jax.tree.map(_to_float64, _with_closures_open(problem, starts[0]))
    directions, names = _directions(problem, starts.shape[1], entries_per_leaf, seed)
    evaluate = _Evaluation(problem, solver, adjoint, seed)
    entries, certificates, outcomes = [], [], []
    for sample, start in enumerate(starts):
        gradient, solution = evaluate.gradients(start, directions)
        certificates.append(jax.tree.map(np.asarray, certify(problem, start, solution)))
        outcomes.append(sentence(solution.result))
        differences = evaluate.differences(start, directions, solution.controls)
        scale = np.max(np.abs(gradient)) * 1e-9 + 1e-12
        for name, g, values in zip(names, gradient, differences, strict=True):
            entries.append(_entry(sample, name, float(g), values, scale))
    return Report(entries, certificates, outcomes, constants)


def _python_numbers(problem: ControlProblem) -> list[str]:
    found = jax.tree_util.tree_leaves_with_path(problem)
    return [
        "problem" + jax.tree_util.keystr(path)
        for path, leaf in found
        if isinstance(leaf, float) and not eqx.is_array(leaf)
    ]


def check_solver(solver: AbstractSolver, starts: int = 8) -> None:
    """Raise `AssertionError` if a solver calls something solved that is not.

    Solves the library's small systems from several starts. Most starts must succeed, and every
    success must be feasible by the certificate; and if the solver promises stationarity, stationary
    and a minimum.
    """
    measures = ["dynamics_gap", "bound_violation"]
    if solver.promises_stationarity:
        measures.insert(0, "stationarity")
    for name, problem, system in _table():
        keys = jax.random.split(jax.random.key(0), starts)
        x0s = jax.vmap(system.start)(keys)
        solutions = jax.vmap(lambda x0, p=problem: solve(p, x0, solver, throw=False))(x0s)
        c = jax.vmap(lambda x0, s, p=problem: certify(p, x0, s))(x0s, solutions)
        good = np.asarray(jax.vmap(succeeded)(solutions.result))
        limit = 1e-3 if solutions.states.dtype == jnp.float32 else 1e-6
        if good.mean() < 0.75:
            raise AssertionError(f"{name}: only {good.sum()} of {starts} starts are solved")
        for measure in measures:
            worst = np.max(np.asarray(getattr(c, measure))[good])
            if not worst <= limit:
                raise AssertionError(f"{name}: solved samples have {measure} up to {worst:.1e}")
        curvature = np.min(np.asarray(c.smallest_curvature)[good])
        if solver.promises_stationarity and not curvature > 0:
            raise AssertionError(
                f"{name}: a solved sample is no minimum (curvature {curvature:.1e})"
            )


def check_adjoint(adjoint: AbstractAdjoint) -> None:
    """Raise `AssertionError` if an adjoint disagrees with converged differences on our systems."""
    for name, problem, system in _table():
        report = check_gradients(problem, system.start(jax.random.key(1)), adjoint=adjoint)
        wrong = [entry.name for entry in report.entries if entry.decided and not entry.agrees]
        if wrong:
            raise AssertionError(f"{name}: wrong derivatives of {', '.join(wrong)}")


def _table():
    return [
        ("pendulum", pendulum.problem(horizon=10), pendulum),
        ("cartpole", cartpole.problem(horizon=10), cartpole),
        ("double integrator", double_integrator.problem(horizon=10), double_integrator),
    ]


class _Evaluation:
    """Compiled once, used for every sample."""

    def __init__(self, problem, solver, adjoint, seed):
        arrays, rest = eqx.partition(problem, eqx.is_inexact_array)
        rng = np.random.default_rng(seed)
        weights = jnp.asarray(rng.standard_normal(problem.horizon + 1))

        def run(parameters, guess=None):
            arrays, x0 = parameters
            solution = solve(
                eqx.combine(arrays, rest), x0, solver, guess=guess, adjoint=adjoint, throw=False
            )
            return _random_loss(solution, weights), solution

        def gradients(x0, directions):
            gradient, solution = jax.grad(run, has_aux=True)((arrays, x0))
            along = lambda d: sum(
                jnp.vdot(a, b)
                for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(d), strict=True)
            )
            return jax.vmap(along)(directions), solution

        def difference(x0, direction, step, guess):
            move = lambda sign: jax.tree.map(
                lambda leaf, d: leaf + sign * step * d, (arrays, x0), direction
            )
            above, high = run(move(1.0), guess)
            below, low = run(move(-1.0), guess)
            solved = (high.stats.stationarity < 1e-9) & (low.stats.stationarity < 1e-9)
            return jnp.where(solved, (above - below) / (2 * step), jnp.nan)

        over_steps = jax.vmap(difference, in_axes=(None, None, 0, None))
        over_directions = jax.vmap(over_steps, in_axes=(None, 0, None, None))
        self.gradients = jax.jit(gradients)
        self._differences = jax.jit(over_directions)

    def differences(self, x0, directions, guess) -> np.ndarray:
        # After a small step the solution itself may count as solved still and be returned as it
        # is: differences that agree on a wrong number. From beside it every solve has to move.
        beside = guess + _BESIDE * (1.0 + jnp.abs(guess))
        return np.asarray(self._differences(x0, directions, jnp.asarray(_STEPS), beside))


def _random_loss(solution, weights: Array) -> Array:
    """A linear function of states and controls with fixed weights that no symmetry cancels."""
    n, m = solution.states.shape[1], solution.controls.shape[1]
    of_states = jnp.sin(1.0 + jnp.arange(n)) * weights[:, None]
    of_controls = jnp.cos(1.0 + jnp.arange(m)) * weights[:-1, None]
    return jnp.sum(of_states * solution.states) + jnp.sum(of_controls * solution.controls)


def _entry(sample: int, name: str, gradient: float, values: np.ndarray, floor: float) -> Entry:
    """Pick the difference on the plateau: where three neighbours agree best.

    Two agree by chance now and then where rounding rules.
    """
    change = np.abs(np.diff(values))
    change = np.maximum(change[:-1], change[1:])
    if np.all(np.isnan(change)):
        return Entry(sample, name, gradient, _STEPS, values, np.nan, np.inf, np.inf)
    k = int(np.nanargmin(change))
    difference = float(values[k + 1])
    scale = max(abs(difference), abs(gradient), floor)
    error = abs(gradient - difference) / scale
    return Entry(
        sample, name, gradient, _STEPS, values, difference, float(change[k]) / scale, error
    )


def _directions(problem, n: int, entries_per_leaf: int, seed: int):
    """Unit perturbations, scaled by the size of the entry, stacked along a leading axis."""
    arrays = (eqx.filter(problem, eqx.is_inexact_array), jnp.ones(n))
    paths, structure = jax.tree_util.tree_flatten_with_path(arrays)
    rng = np.random.default_rng(seed)
    blank = [np.zeros(leaf.shape) for _, leaf in paths]
    partners = _equal_bounds(problem, paths)
    rows, names = [], []
    for i, (path, leaf) in enumerate(paths):
        values = np.asarray(leaf)
        usable = np.isfinite(values).ravel() & ~partners.get(i, (None, np.False_))[1].ravel()
        chosen = rng.permutation(np.flatnonzero(usable))[:entries_per_leaf]
        for entry in np.sort(chosen):
            size = max(abs(values.flat[entry]), 0.1)
            moved = [i]
            partner = partners.get(i, (None, None))[0]
            if partner is not None and _value_at(paths, partner, int(entry)) == values.flat[entry]:
                moved.append(partner)
            row = [leaf.copy() if j in moved else leaf for j, leaf in enumerate(blank)]
            for j in moved:
                row[j].flat[entry] = size
            rows.append(jax.tree.unflatten(structure, row))
            prefix = "x0" if path[0] == jax.tree_util.SequenceKey(1) else "problem"
            where = [int(k) for k in np.unravel_index(entry, values.shape)] if values.ndim else ""
            # Two fields of `_Opened` that the user did not write.
            leaf_name = jax.tree_util.keystr(path[1:]).replace(".shown", "", 1)
            leaf_name = leaf_name.replace(".hidden.consts", ".closed_over", 1)
            names.append(f"{prefix}{leaf_name}{where}")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows), names


def _value_at(paths, i: int, entry: int) -> float:
    return float(np.asarray(paths[i][1]).flat[entry])


def _equal_bounds(problem: ControlProblem, paths) -> dict[int, tuple[int | None, np.ndarray]]:
    """Which bounds must move together.

    A control whose bounds are equal is a parameter: only the derivative along equal changes of
    both sides is defined. The lower side then takes the upper one along, and the upper side is
    not moved alone. Maps a leaf's number to its partner's, and to the entries to leave out.
    """
    bounds = problem.control_bounds
    if bounds is None or bounds.lower.shape != bounds.upper.shape:
        return {}
    names = [jax.tree_util.keystr(path) for path, _ in paths]
    lower = next(i for i, name in enumerate(names) if name.endswith(".control_bounds.lower"))
    equal = np.asarray(bounds.lower == bounds.upper)
    return {lower: (lower + 1, np.zeros_like(equal)), lower + 1: (None, equal)}


class _Opened(eqx.Module):
    """A callable whose closed-over arrays are leaves, beside those that it shows by itself."""

    shown: PyTree
    hidden: Callable

    def __call__(self, *args):
        return self.hidden(self.shown, *args)


def _with_closures_open(problem: ControlProblem, x0: Array) -> ControlProblem:
    """Make values that functions close over into arrays of the problem, wherever they stand."""
    u, t = jnp.zeros(problem.control_size, x0.dtype), jnp.zeros((), int)

    def opened(function, *args):
        if function is None:
            return None
        shown, rest = eqx.partition(function, eqx.is_inexact_array)
        call = lambda shown, *args: eqx.combine(shown, rest)(*args)
        return _Opened(shown, eqx.filter_closure_convert(call, shown, *args))

    return ControlProblem(
        dynamics=opened(problem.dynamics, x0, u, t),
        stage_cost=opened(problem.stage_cost, x0, u, t),
        terminal_cost=opened(problem.terminal_cost, x0),
        horizon=problem.horizon,
        control_size=problem.control_size,
        control_bounds=problem.control_bounds,
    )


def _to_float64(leaf):
    return leaf.astype(float) if eqx.is_inexact_array(leaf) else leaf


__all__ = ["Entry", "Report", "check_adjoint", "check_gradients", "check_solver"]
