"""Backtracking along an improved policy, over the true dynamics and cost."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._control_problem import StageProblem
from .._kernel.box_sweep import Policy
from .._optimality import stage_costs
from .._trajectory import stages

_SUFFICIENT_DECREASE = 1e-4  # Nocedal and Wright, section 3.1
# A step is shortened to where a parabola through what is known has its minimum, within these.
_LEAST_SHRINK, _MOST_SHRINK = 0.5, 0.35
_SMALLEST_STEP = 1e-3


class Trial(eqx.Module):
    """A candidate trajectory. `magnitude` is the sum of absolute stage costs, by whose rounding
    differences of `cost` are blurred; a roll-out that is not finite has infinite cost."""

    states: Float[Array, "T1 n"]
    controls: Float[Array, "T m"]
    cost: Float[Array, ""]
    magnitude: Float[Array, ""]


def evaluate(problem: StageProblem, states: Array, controls: Array) -> Trial:
    """Cost a trajectory."""
    costs = stage_costs(problem, states, controls)
    total = jnp.sum(costs)
    finite = jnp.isfinite(total) & jnp.all(jnp.isfinite(states))
    return Trial(states, controls, jnp.where(finite, total, jnp.inf), jnp.sum(jnp.abs(costs)))


def follow(problem: StageProblem, current: Trial, policy: Policy, step: Array) -> Trial:
    """Roll out `clip(u + step k + K (x_new - x))` through the true dynamics."""

    def advance(x, inputs):
        x_old, u_old, K, k, lower, upper, t = inputs
        u = _into_box(u_old + step * k + K @ (x - x_old), lower, upper)
        x_next = problem.dynamics(x, u, t)
        return x_next, (x_next, u)

    states = current.states
    inputs = (
        states[:-1],
        current.controls,
        policy.K,
        policy.k,
        problem.lower,
        problem.upper,
        stages(problem.horizon),
    )
    _, (following, new_controls) = jax.lax.scan(advance, states[0], inputs)
    return evaluate(problem, jnp.concatenate([states[:1], following]), new_controls)


def _into_box(u: Array, lower: Array, upper: Array) -> Array:
    """Clip, and put onto a bound what rounding left just inside it.

    `u + (upper - u)` need not be `upper`.
    """
    slack = 4 * jnp.finfo(u.dtype).eps * (1.0 + jnp.abs(u))
    return jnp.where(u >= upper - slack, upper, jnp.where(u <= lower + slack, lower, u))


class Search(eqx.Module):
    """The last trial, its step, whether it was good enough, and the step to try if it was not."""

    trial: Trial
    step: Float[Array, ""]
    sufficient: Bool[Array, ""]
    next_step: Float[Array, ""]


def attempt(
    problem: StageProblem, current: Trial, policy: Policy, step: Array, full_only: Array
) -> Search:
    """Follow the policy with one step size, and judge the fall of the cost.

    `full_only` takes the step without asking the cost, for where it cannot tell.
    """
    trial = follow(problem, current, policy, step)
    expected = step * policy.linear + 0.5 * step**2 * policy.quadratic
    rise = trial.cost - current.cost
    enough = -rise >= -_SUFFICIENT_DECREASE * expected
    slope = step * policy.linear
    shrink = -0.5 * slope / jnp.maximum(rise - slope, jnp.finfo(step.dtype).tiny)
    shrink = jnp.clip(jnp.nan_to_num(shrink, nan=_MOST_SHRINK), _MOST_SHRINK, _LEAST_SHRINK)
    sufficient = jnp.isfinite(trial.cost) & (enough | full_only)
    return Search(trial, step, sufficient, step * shrink)


def may_shorten(search: Search, full_only: Array) -> Bool[Array, ""]:
    """Whether a shorter step is worth an attempt."""
    return ~search.sufficient & ~full_only & (search.step > _SMALLEST_STEP)


def backtrack(problem: StageProblem, current: Trial, policy: Policy, full_only: Array) -> Search:
    """The full step first, then ever shorter ones, until the cost falls enough."""
    # The loop starts before the full step, so that an attempt is written once.
    full = jnp.ones_like(current.cost)
    before = Search(current, 2 * full, jnp.asarray(False), full)
    return jax.lax.while_loop(
        lambda search: (search.step > 1) | may_shorten(search, full_only),
        lambda search: attempt(problem, current, policy, search.next_step, full_only),
        before,
    )
