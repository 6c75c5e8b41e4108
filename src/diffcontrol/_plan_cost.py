r"""What controls cost: roll-outs, of one plan or of many at once.

The derivative of many is taken along the states that the roll-out went through,

    dx_{t+1} = df_t(x_t, u_t)[dx_t, du_t],   dJ = sum_t dl_t(x_t, u_t)[dx_t, du_t] + dl_T(x_T)[dx_T]

so a stage is linearised when its derivative is asked for and not before. Nothing but the states is
kept for that, and they may be replaced: a plan whose cost is not finite has derivatives that are
not, and zero times these is NaN, not zero, so the best plan stands in for it and what comes of that
is dropped.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._control_problem import StageProblem
from ._trajectory import stages


def plan_cost(problem: StageProblem, x0: Array, controls: Array) -> Float[Array, ""]:
    """Cost of controls `(T, m)` from `x0`; infinite where the last state is not finite."""

    def advance(carry, stage):
        x, total = carry
        k, u = stage
        following, cost = _stage(problem, x, u, k)
        return (following, total + cost), None

    start = (x0, jnp.zeros((), x0.dtype))
    (x, total), _ = jax.lax.scan(advance, start, (stages(problem.horizon), controls))
    # A last state that is not finite may cost nothing, but it has no derivative.
    return jnp.where(jnp.all(jnp.isfinite(x)), total + problem.terminal_cost(x), jnp.inf)


def plan_costs(problem: StageProblem, x0: Array, plans: Array) -> Float[Array, " N"]:
    """Costs of plans `(N, T, m)` in one batched roll-out; infinite, with no derivative, where the
    cost or the last state is not finite."""
    return _run(problem, x0, jnp.swapaxes(plans, 0, 1))[0]


def _stage(problem: StageProblem, x: Array, u: Array, k: Array) -> tuple[Array, Array]:
    return problem.dynamics(x, u, k), problem.stage_cost(x, u, k)


def _stages(problem: StageProblem, x: Array, u: Array, k: Array) -> tuple[Array, Array]:
    """Of all plans."""
    return jax.vmap(lambda x, u: _stage(problem, x, u, k))(x, u)


def _ends(problem: StageProblem, x: Array) -> Array:
    return jax.vmap(problem.terminal_cost)(x)


@eqx.filter_custom_jvp
def _run(problem: StageProblem, x0: Array, plans: Array) -> tuple[Array, tuple[Array, Array]]:
    """Costs `(N,)` of plans `(T, N, m)`, and their states but the last, and the last."""

    def advance(carry, stage):
        x, total = carry
        k, u = stage
        following, cost = _stages(problem, x, u, k)
        return (following, total + cost), x

    x = jnp.broadcast_to(x0, (plans.shape[1], *x0.shape))
    start = (x, jnp.zeros(plans.shape[1], x0.dtype))
    (x, costs), states = jax.lax.scan(advance, start, (stages(problem.horizon), plans))
    costs = costs + _ends(problem, x)
    finite = jnp.isfinite(costs) & jnp.all(jnp.isfinite(x), axis=1)
    return jnp.where(finite, costs, jnp.inf), (states, x)


@_run.def_jvp
def _run_jvp(primals, tangents):
    problem, x0, plans = primals
    d_problem, d_x0, d_plans = tangents
    costs, (states, last) = _run(problem, x0, plans)
    finite = jnp.isfinite(costs)[:, None]
    best = jnp.argmin(costs)
    safe = lambda rows: jnp.where(
        finite, rows, jax.lax.stop_gradient(rows[..., best, :])[..., None, :]
    )
    moving = lambda d, rows: jnp.zeros_like(rows) if d is None else d
    x, u, end = safe(states), safe(plans), safe(last)
    dx = jnp.broadcast_to(moving(d_x0, x0), end.shape)
    du = jnp.where(finite, moving(d_plans, u), 0.0)

    # The inside of a stage is computed again in a backward pass: less than it costs to keep it.
    @jax.checkpoint
    def push(carry, stage):
        dx, d_cost = carry
        k, x, u, du = stage
        at = lambda problem, x, u: _stages(problem, x, u, k)
        _, (d_next, d_more) = eqx.filter_jvp(at, (problem, x, u), (d_problem, dx, du))
        return (moving(d_next, x), d_cost + moving(d_more, d_cost)), dx

    along = (stages(problem.horizon), x, u, du)
    (dx, d_costs), d_states = jax.lax.scan(push, (dx, jnp.zeros_like(costs)), along)
    _, d_end = eqx.filter_jvp(_ends, (problem, end), (d_problem, dx))
    d_costs = jnp.where(finite[:, 0], d_costs + moving(d_end, costs), 0.0)
    still = lambda d: jnp.where(finite, d, 0.0)
    return (costs, (states, last)), (d_costs, (still(d_states), still(dx)))
