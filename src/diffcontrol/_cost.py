"""Stage costs: quadratic, distance to a goal, and terms that stand for constraints.

Every cost is a callable `(x, u, t) -> scalar`; costs add with `+`. A cost may hold arrays with
a leading time axis. Such arrays belong to the stages of the problem, not to the absolute time
that callables are shown, so a cost says with `at_stage` what it is at one stage (a receding
horizon moves the absolute time on while its stages still count from 0).
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._types import Numbers, as_floats


class AbstractStageCost(eqx.Module):
    """A stage cost that can be added to others and may differ from stage to stage."""

    @abc.abstractmethod
    def __call__(self, x: Array, u: Array, t: Array) -> Float[Array, ""]: ...

    @abc.abstractmethod
    def at_stage(self, k: Int[Array, ""]) -> Callable:
        """The cost of stage `k`, as a callable `(x, u, t)`."""

    def check(self, state_size: int, control_size: int, horizon: int) -> None:
        """Raise `ValueError` if an array does not fit a problem of these sizes."""

    def __add__(self, other: Callable) -> "CostSum":
        return CostSum((self, _term(other)))

    def __radd__(self, other: Callable) -> "CostSum":
        return CostSum((_term(other), self))


def _term(cost: Callable) -> Callable:
    if not callable(cost):
        raise TypeError(
            f"A stage cost adds to callables (x, u, t) -> scalar, got {type(cost).__name__}."
        )
    return cost


def cost_at_stage(cost: Callable, k: Int[Array, ""]) -> Callable:
    """The cost of stage `k` for any callable; plain callables only know the time."""
    return cost.at_stage(k) if isinstance(cost, AbstractStageCost) else cost


class CostSum(AbstractStageCost):
    """The sum of several stage costs."""

    terms: tuple[Callable, ...]

    def __call__(self, x, u, t):
        return sum((jnp.asarray(term(x, u, t)) for term in self.terms), start=jnp.asarray(0.0))

    def check(self, state_size, control_size, horizon):
        for term in self.terms:
            if isinstance(term, AbstractStageCost):
                term.check(state_size, control_size, horizon)

    def at_stage(self, k):
        return CostSum(tuple(cost_at_stage(term, k) for term in self.terms))


class QuadraticCost(AbstractStageCost):
    r"""`1/2 tau' C tau + c' tau` with `tau = [x; u]` (DiffMPC, eq. 2).

    Attributes:
        C: shape `(n+m, n+m)`, or `(T, n+m, n+m)` for one matrix a stage. Read through its
            symmetric part.
        c: shape `(n+m,)`, or `(T, n+m)`.

    Raises:
        ValueError: if the shapes do not belong together.
    """

    C: Float[Array, "*T nm nm"]
    c: Float[Array, "*T nm"]

    def __init__(self, C: Numbers, c: Numbers | None = None):
        self.C = as_floats("C", C)
        if self.C.ndim not in (2, 3) or self.C.shape[-1] != self.C.shape[-2]:
            raise ValueError(
                "QuadraticCost: `C` must have shape (n+m, n+m) or (T, n+m, n+m), "
                f"but has shape {self.C.shape}."
            )
        self.c = jnp.zeros(self.C.shape[-1], self.C.dtype) if c is None else as_floats("c", c)
        if self.c.ndim not in (1, 2) or self.c.shape[-1] != self.C.shape[-1]:
            raise ValueError(
                f"QuadraticCost: `c` must have shape ({self.C.shape[-1]},) or "
                f"(T, {self.C.shape[-1]}) to go with `C`, but has shape {self.c.shape}."
            )

    def __call__(self, x, u, t):
        tau = jnp.concatenate([x, u])
        C = _at_time(self.C, t) if self.C.ndim == 3 else self.C
        c = _at_time(self.c, t) if self.c.ndim == 2 else self.c
        return 0.5 * tau @ C @ tau + c @ tau

    def check(self, state_size, control_size, horizon):
        if self.C.shape[-1] != state_size + control_size:
            raise ValueError(
                f"QuadraticCost: `C` has shape {self.C.shape}, but the problem has n+m = "
                f"{state_size + control_size} states and controls."
            )
        _check_stages("QuadraticCost: `C`", self.C, 3, horizon)
        _check_stages("QuadraticCost: `c`", self.c, 2, horizon)

    def at_stage(self, k):
        return QuadraticCost(
            self.C[k] if self.C.ndim == 3 else self.C, self.c[k] if self.c.ndim == 2 else self.c
        )


class GoalCost(AbstractStageCost):
    r"""`1/2 sum_i w_i (tau_i - goal_i)^2`: weighted distance to a goal (DiffMPC, section 5).

    The goal of the controls is zero.

    Attributes:
        weights: shape `(n+m,)`: weights of the states [cost / unit^2], then of the controls.
        goal: the goal state, shape `(n,)`, or `(T, n)` to track a reference.

    Raises:
        ValueError: if `weights` does not have more entries than the goal state.
    """

    weights: Float[Array, " nm"]
    goal: Float[Array, "*T n"]

    def __init__(self, weights: Numbers, goal: Numbers):
        self.weights, self.goal = as_floats("weights", weights), as_floats("goal", goal)
        if self.goal.ndim not in (1, 2):
            raise ValueError(
                f"GoalCost: `goal` must have shape (n,) or (T, n), but has shape {self.goal.shape}."
            )
        if self.weights.ndim != 1 or self.weights.shape[0] <= self.goal.shape[-1]:
            raise ValueError(
                f"GoalCost: `weights` must have shape (n+m,) with n = {self.goal.shape[-1]} taken "
                f"from `goal`, one weight for each state and control, but has shape "
                f"{self.weights.shape}."
            )

    def __call__(self, x, u, t):
        goal = _at_time(self.goal, t) if self.goal.ndim == 2 else self.goal
        n = goal.shape[0]
        return 0.5 * (self.weights[:n] @ (x - goal) ** 2 + self.weights[n:] @ u**2)

    def check(self, state_size, control_size, horizon):
        if self.goal.shape[-1] != state_size:
            raise ValueError(
                f"GoalCost: `goal` has shape {self.goal.shape}, but the problem has n = "
                f"{state_size} states."
            )
        if self.weights.shape[0] != state_size + control_size:
            raise ValueError(
                f"GoalCost: `weights` has shape {self.weights.shape}, but the problem has n+m = "
                f"{state_size + control_size} states and controls."
            )
        _check_stages("GoalCost: `goal`", self.goal, 2, horizon)

    def at_stage(self, k):
        return GoalCost(self.weights, self.goal[k] if self.goal.ndim == 2 else self.goal)


class Penalty(AbstractStageCost):
    """`weight/2 * sum(max(0, g)^2)` for a constraint `g(x, u, t) <= 0`; see `penalty`."""

    constraint: Callable
    weight: Float[Array, ""]

    def __call__(self, x, u, t):
        violation = jnp.maximum(self.constraint(x, u, t), 0.0)
        return 0.5 * self.weight * jnp.sum(violation**2)

    def at_stage(self, k):
        return self


class LogBarrier(AbstractStageCost):
    """`-gamma * sum(log(-g))` for a constraint `g(x, u, t) <= 0`; see `log_barrier`."""

    constraint: Callable
    gamma: Float[Array, ""]

    def __call__(self, x, u, t):
        slack = -jnp.asarray(self.constraint(x, u, t))
        # Outside the feasible set the barrier is infinite, which a line search rejects. The inner
        # `where` keeps the derivative of the logarithm finite where it is not used.
        inside = slack > 0
        value = -self.gamma * jnp.log(jnp.where(inside, slack, 1.0))
        return jnp.sum(jnp.where(inside, value, jnp.inf))

    def at_stage(self, k):
        return self


def penalty(constraint: Callable, weight: Numbers = 1e3) -> Penalty:
    r"""Stage cost `weight/2 sum(max(0, g)^2)` that discourages `g(x, u, t) > 0`.

    The constraint is violated by about its multiplier divided by `weight`. The term is once
    continuously differentiable: its curvature jumps where `g = 0`.

    Args:
        constraint: `(x, u, t) -> scalar or vector`, meant to be `<= 0`.
        weight: [cost / unit of g^2]; has a gradient.

    Source: quadratic exterior penalty, Nocedal and Wright, Numerical Optimization, eq. 17.1.
    """
    return Penalty(_constraint("penalty", constraint), as_floats("weight", weight))


def log_barrier(constraint: Callable, gamma: Numbers = 1e-2) -> LogBarrier:
    r"""Stage cost `-gamma sum(log(-g))` that keeps `g(x, u, t) < 0`.

    Infinite where the constraint is violated, so the first guess must satisfy it. The solution is
    that of a smoothed problem, off by O(`gamma`).

    Args:
        constraint: `(x, u, t) -> scalar or vector`, kept `< 0`.
        gamma: [cost]; has a gradient.

    Source: Safe-PDP (Jin et al. 2021), eq. 7.
    """
    return LogBarrier(_constraint("log_barrier", constraint), as_floats("gamma", gamma))


def _constraint(where: str, constraint: Callable) -> Callable:
    if not callable(constraint):
        raise TypeError(
            f"{where}: `constraint` must be a callable (x, u, t) -> g, got "
            f"{type(constraint).__name__}."
        )
    return constraint


def _at_time(array: Array, t: Array) -> Array:
    """The row of time `t`; NaN beyond the end, where indexing would repeat the last row."""
    return array.at[t].get(mode="fill", fill_value=jnp.nan)


def _check_stages(name: str, array: Array, ndim: int, horizon: int) -> None:
    """A time axis must have one entry a stage; indexing beyond it would clamp silently."""
    if array.ndim == ndim and array.shape[0] != horizon:
        raise ValueError(
            f"{name} has {array.shape[0]} stages but the horizon is {horizon}; give one entry for "
            "each of the stages 0 ... T-1."
        )
