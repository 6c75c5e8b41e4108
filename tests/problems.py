"""A table of small problems with known peculiarities, and how tests solve them many times over.

Every number of a problem is a leaf of `theta`, so that a test of gradients misses none: numbers
in modules, in costs, in bounds, and those that plain functions close over. Where a pair of bounds
is equal, one number stands for both, because moving only one of them makes no sense.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import diffcontrol as dc

INF = jnp.inf


@dataclass(frozen=True)
class Case:
    """`build(theta)` is the problem, `theta` a pytree of float64 arrays."""

    name: str
    build: Callable[[Any], dc.ControlProblem]
    theta: Any
    x0: Array

    @property
    def problem(self) -> dc.ControlProblem:
        return self.build(self.theta)

    def __repr__(self) -> str:
        return self.name


class Pendulum(eqx.Module):
    """The papers' pendulum: state (cos, sin, speed [rad/s]) of the angle from upright."""

    parameters: Array  # gravity [m/s^2], mass [kg], length [m]

    def __call__(self, x, u, t):
        gravity, mass, length = self.parameters
        acceleration = 1.5 * gravity / length * x[1] + 3 * u[0] / (mass * length**2)
        speed = x[2] + 0.05 * acceleration
        angle = jnp.arctan2(x[1], x[0]) + 0.05 * speed
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])


def cartpole(parameters, x, u, t):
    """State (position [m], speed [m/s], cos, sin, angular speed [rad/s])."""
    gravity, cart, pole, length = parameters
    position, velocity, c, s, spin = x
    total, dt = cart + pole, 0.05
    push = (u[0] + pole * length * spin**2 * s) / total
    spin_rate = (gravity * s - c * push) / (length * (4 / 3 - pole * c**2 / total))
    angle = jnp.arctan2(s, c) + dt * spin
    return jnp.stack(
        [
            position + dt * velocity,
            velocity + dt * (push - pole * length * spin_rate * c / total),
            jnp.cos(angle),
            jnp.sin(angle),
            spin + dt * spin_rate,
        ]
    )


def _pendulum(theta):
    return dc.ControlProblem(
        dynamics=Pendulum(theta["parameters"]),
        stage_cost=dc.GoalCost(theta["weights"], theta["goal"]),
        horizon=10,
        control_size=1,
        control_bounds=dc.Bounds(theta["lower"], theta["upper"]),
    )


def _pendulum_free(theta):
    return dc.ControlProblem(
        dynamics=Pendulum(theta["parameters"]),
        stage_cost=dc.QuadraticCost(jnp.diag(theta["q"]), theta["p"]),
        horizon=10,
        control_size=1,
    )


def _cartpole(theta):
    return dc.ControlProblem(
        dynamics=eqx.Partial(cartpole, theta["parameters"]),
        stage_cost=dc.GoalCost(theta["weights"], theta["goal"]),
        horizon=12,
        control_size=1,
        control_bounds=dc.Bounds(-theta["bound"], theta["bound"]),
    )


_DI_FINITE = np.array([[1, 1], [1, 0], [0, 1], [1, 1], [1, 0], [0, 0]], bool)
_DI_EQUAL = np.array([[0, 0], [0, 1], [0, 0], [0, 0], [1, 0], [0, 0]], bool)


def _double_integrator(theta):
    """In the plane, coupled: linear-quadratic but for bounds that are finite, infinite, equal."""
    lower = jnp.where(_DI_FINITE, theta["lower"], -INF)
    upper = jnp.where(_DI_FINITE, theta["upper"], INF)
    lower, upper = (jnp.where(_DI_EQUAL, theta["fixed"], side) for side in (lower, upper))
    return dc.ControlProblem(
        dynamics=eqx.Partial(lambda A, B, x, u, t: A @ x + B @ u, theta["A"], theta["B"]),
        stage_cost=dc.QuadraticCost(theta["C"], theta["c"]),
        terminal_cost=lambda x: 0.5 * x @ (theta["C_terminal"] * x),
        horizon=6,
        control_size=2,
        control_bounds=dc.Bounds(lower, upper),
    )


def _two_controls(theta):
    """The first control is clamped at every stage, now here, now there; the second at none."""

    def dynamics(x, u, t):
        a, b = theta["coupling"]
        force = jnp.tanh(u[0]) + a * jnp.sin(x[0]) * u[1] + 0.2 * u[1] ** 2
        return jnp.stack([x[0] + 0.1 * x[1] + b * u[1] * x[1], x[1] + 0.1 * (force - x[0] ** 3)])

    def stage_cost(x, u, t):
        price, slope = theta["price"]
        push = (-1.0) ** t * price * u[0] + 0.05 * u[0] ** 2
        return 0.5 * x @ x + push + slope * u[1] + 0.5 * u[1] ** 2 + x[0] * u[1]

    return dc.ControlProblem(
        dynamics=dynamics,
        stage_cost=stage_cost,
        terminal_cost=lambda x: theta["last"] * jnp.cosh(x[0]) + x[1] ** 2,
        horizon=8,
        control_size=2,
        control_bounds=dc.Bounds(theta["lower"], theta["upper"]),
    )


def _tracking(theta):
    """A moving goal, a cost and dynamics that know the time, one side of a bound infinite."""

    def stage_cost(x, u, t):
        ripple = jnp.cos(0.7 * t) * theta["ripple"]
        return ripple * u[0] * x[1] + theta["slope"] * jnp.exp(0.3 * u[1] - 0.1 * t)

    def dynamics(x, u, t):
        drag = theta["drag"] * (1 + 0.1 * t)
        speed = x[1] + 0.1 * (u[0] - drag * x[1] * jnp.abs(x[1])) + 0.05 * u[1] * x[0]
        return jnp.stack([x[0] + 0.1 * speed, speed])

    upper = jnp.concatenate([jnp.atleast_1d(theta["upper"]), jnp.array([INF])])
    return dc.ControlProblem(
        dynamics=dynamics,
        stage_cost=dc.GoalCost(theta["weights"], theta["goal"]) + stage_cost,
        horizon=9,
        control_size=2,
        control_bounds=dc.Bounds(theta["lower"], upper),
    )


def _one_stage(theta):
    return dc.ControlProblem(
        dynamics=lambda x, u, t: theta["a"] * jnp.sin(x + u[:2]) + u[2],
        stage_cost=lambda x, u, t: jnp.sum(jnp.cosh(u)) + theta["b"] @ u,
        terminal_cost=lambda x: jnp.sum((x - theta["goal"]) ** 2),
        horizon=1,
        control_size=3,
        control_bounds=dc.Bounds(theta["lower"], INF),
    )


def _long(theta):
    """200 stages of a spring that stiffens."""

    def dynamics(x, u, t):
        k, d = theta["spring"]
        force = u[0] - k * x[0] - d * x[1] - 0.5 * x[0] ** 3
        return jnp.stack([x[0] + 0.05 * x[1], x[1] + 0.05 * force])

    return dc.ControlProblem(
        dynamics=dynamics,
        stage_cost=lambda x, u, t: 0.5 * (theta["weights"] @ jnp.append(x, u) ** 2),
        terminal_cost=lambda x: theta["last"] * x @ x,
        horizon=200,
        control_size=1,
        control_bounds=dc.Bounds(theta["lower"], theta["upper"]),
    )


def _closures(theta):
    """Nothing but lambdas that close over arrays; the terminal cost is not quadratic."""
    A, B, w, v = theta["A"], theta["B"], theta["w"], theta["v"]
    return dc.ControlProblem(
        dynamics=lambda x, u, t: x + 0.2 * jnp.tanh(A @ x) + B @ u,
        stage_cost=lambda x, u, t: jnp.log(jnp.cosh(w * x)).sum() + 0.5 * u @ u,
        terminal_cost=lambda x: jnp.sqrt(1.0 + v @ x**2) + 0.1 * jnp.sum(x**4),
        horizon=5,
        control_size=2,
    )


def _random(*shape):
    """Fixed numbers of about one; another shape gives other numbers."""
    return jnp.asarray(np.random.default_rng(list(shape)).normal(size=shape))


def _floats(**values):
    return {name: jnp.asarray(value, float) for name, value in values.items()}


def _cases() -> tuple[Case, ...]:
    upright = jnp.array([jnp.cos(0.6), jnp.sin(0.6), 0.3])
    roots = 0.3 * _random(6, 4 + 2, 4 + 2)
    C = jnp.eye(6) + jnp.einsum("tij,tkj->tik", roots, roots)
    A = jnp.eye(4) + 0.3 * jnp.eye(4, k=2) + 0.02 * _random(4, 4)
    return (
        Case(
            "pendulum",
            _pendulum,
            _floats(
                parameters=[10, 1, 1],
                weights=[1, 1, 0.1, 0.05],
                goal=[1, 0, 0],
                lower=-2.0,
                upper=-0.5,
            ),
            upright,
        ),
        Case(
            "pendulum_free",
            _pendulum_free,
            _floats(parameters=[10, 1, 1], q=[1, 1, 0.1, 0.5], p=[-1, 0, 0, 0]),
            upright,
        ),
        Case(
            "cartpole",
            _cartpole,
            _floats(
                parameters=[9.8, 1, 0.1, 0.5],
                weights=[0.1, 0.1, 1, 1, 0.1, 0.001],
                goal=[0, 0, 1, 0, 0],
                bound=8.0,
            ),
            jnp.array([0.2, -0.3, jnp.cos(0.8), jnp.sin(0.8), 0.2]),
        ),
        Case(
            "double_integrator",
            _double_integrator,
            _floats(
                A=A,
                B=0.3 * jnp.eye(4, 2, k=-2) + 0.05 * _random(4, 2),
                C=C,
                c=0.5 * _random(6, 6),
                C_terminal=[3, 2, 1, 1],
                lower=-0.25 - 0.1 * jnp.abs(_random(6, 2)),
                upper=0.2 + 0.1 * jnp.abs(_random(6, 2)),
                fixed=0.1 * _random(6, 2),
            ),
            jnp.array([1.0, -2.0, 0.5, 0.3]),
        ),
        Case(
            "two_controls",
            _two_controls,
            _floats(
                coupling=[0.5, 0.1],
                price=[3, 0.4],
                last=1.5,
                lower=[-0.4, -5],
                upper=[0.6, 5],
            ),
            jnp.array([1.0, -0.5]),
        ),
        Case(
            "tracking",
            _tracking,
            _floats(
                weights=[3, 0.2, 0.1, 0.2],
                goal=jnp.stack([jnp.sin(0.5 * jnp.arange(9)), 0.1 * jnp.arange(9)], axis=1),
                ripple=0.1,
                slope=0.5,
                drag=0.3,
                lower=[-0.7, -0.5],
                upper=0.8,
            ),
            jnp.array([-0.3, 0.4]),
        ),
        Case(
            "one_stage",
            _one_stage,
            _floats(a=0.8, b=[1, -0.5, 0.3], goal=[0.6, -0.2], lower=[-0.3, -2, -0.25]),
            jnp.array([0.4, -0.7]),
        ),
        Case(
            "long",
            _long,
            _floats(spring=[1.0, 0.1], weights=[1, 0.5, 0.2], last=2.0, lower=-0.8, upper=0.7),
            jnp.array([1.5, 0.0]),
        ),
        Case(
            "closures",
            _closures,
            _floats(A=_random(3, 3), B=0.5 * _random(3, 2), w=[1, 0.5, 2], v=[1, 3, 0.5]),
            jnp.array([1.0, -0.5, 0.8]),
        ),
    )


CASES = _cases()
BY_NAME = {case.name: case for case in CASES}


class Change(eqx.Module):
    """A change of a case: of its parameters and start, or met on the way.

    From stage `stage` on the problem is what it was, with the state of that stage moved by
    `state`; the controls before it are `past`, whatever the change.
    """

    theta: Any
    x0: Array
    stage: Array
    state: Array
    past: Array
    lower: Array
    upper: Array


def no_change(case: Case) -> Change:
    """The case as it is."""
    problem = case.problem
    controls = jnp.zeros((problem.horizon, problem.control_size))
    return Change(
        case.theta,
        case.x0,
        jnp.asarray(0),
        jnp.zeros_like(case.x0),
        controls,
        controls,
        controls,
    )


def changed(case: Case, change: Change) -> dc.ControlProblem:
    """The case with the change made, through nothing but the public face."""
    problem = case.build(change.theta)
    T, m = problem.horizon, problem.control_size
    bounds = dc.Bounds() if problem.control_bounds is None else problem.control_bounds
    past = (jnp.arange(T) < change.stage)[:, None]
    lower = jnp.broadcast_to(bounds.lower, (T, m)) + change.lower
    upper = jnp.broadcast_to(bounds.upper, (T, m)) + change.upper

    def dynamics(x, u, t):
        nudge = jnp.where(t + 1 == change.stage, change.state, 0.0)
        return problem.dynamics(x, u, t) + nudge

    return eqx.tree_at(
        lambda p: (p.dynamics, p.control_bounds),
        problem,
        (
            dynamics,
            dc.Bounds(jnp.where(past, change.past, lower), jnp.where(past, change.past, upper)),
        ),
        is_leaf=lambda leaf: leaf is None,
    )


TIGHT = 1e-12
_CHUNK = 128


@functools.cache
def _solve_chunk(name: str):
    case = BY_NAME[name]

    def solve(change: Change, guess):
        return dc.solve(
            changed(case, change), change.x0, dc.DDP(tolerance=TIGHT), guess=guess, throw=False
        )

    return jax.jit(jax.vmap(solve, in_axes=(0, None)))


def solve_changes(case: Case, changes: Change, guess: Array | None = None) -> dc.Solution:
    """Solve again for every row of `changes`, from the controls `guess`.

    Rows are solved in chunks of one size, so that a case is compiled once for all tests. What
    comes back holds NumPy arrays.
    """
    guess = no_change(case).past if guess is None else guess
    changes = jax.device_get(changes)
    count = changes.stage.shape[0]
    parts = []
    for k in range(0, count, _CHUNK):
        row = np.minimum(np.arange(k, k + _CHUNK), count - 1)
        chunk = jax.tree.map(lambda a, row=row: a[row], changes)
        parts.append(jax.device_get(_solve_chunk(case.name)(chunk, guess)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def rows(change: Change, count: int) -> Change:
    """The same change `count` times over, to be edited row by row."""
    return jax.tree.map(lambda a: np.broadcast_to(a, (count, *a.shape)), change)


@functools.cache
def solution(name: str) -> dc.Solution:
    """The solution of a case, solved once, tightly."""
    case = BY_NAME[name]
    return jax.tree.map(lambda a: a[0], solve_changes(case, rows(no_change(case), 1)))


class Differences(eqx.Module):
    """Central differences, and by how much the two best estimates disagree."""

    value: np.ndarray
    spread: np.ndarray


def central_differences(
    case: Case,
    base: Change,
    directions: Change,
    read: Callable[[dc.Solution], np.ndarray],
    largest_step: float = 2e-3,
) -> Differences:
    """Differences of `read(solution)` along every row of `directions`, about that row of `base`.

    The problem is solved again at plus and minus five steps, each half of the one before. One
    Richardson step removes the error of second order; of the estimates that follow, the pair that
    agrees best is where truncation and rounding balance. `read` takes solutions, stacked along the
    first axis, to one vector each.
    """
    steps = largest_step * 0.5 ** np.arange(5)
    count = base.stage.shape[0]
    signed = np.concatenate([steps, -steps])

    def moved(value, direction):
        value = np.asarray(value)
        if not np.issubdtype(value.dtype, np.inexact):
            return value[None].repeat(len(signed), 0)
        return value + signed.reshape(-1, *([1] * value.ndim)) * direction

    changes = jax.tree.map(moved, base, jax.device_get(directions))
    changes = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), changes)
    solutions = solve_changes(case, changes, solution(case.name).controls)
    worst = solutions.stats.stationarity.max()
    assert worst < 1e-10, f"{case}: a perturbed problem was only solved to {worst:.1e}"

    values = read(solutions).reshape(2, len(steps), count, -1)
    central = (values[0] - values[1]) / (2 * steps[:, None, None])
    better = (4 * central[1:] - central[:-1]) / 3
    gaps = np.abs(np.diff(better, axis=0))
    best = gaps.argmin(axis=0)[None]
    take = lambda array: np.take_along_axis(array, best, axis=0)[0]
    return Differences(take(better[1:]), take(gaps))
