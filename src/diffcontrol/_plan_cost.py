r"""What controls cost: roll-outs, of one plan or of many at once.

The derivative of many is taken along the states that the roll-out went through,

    dx_{t+1} = df_t(x_t, u_t)[dx_t, du_t],   dJ = sum_t dl_t(x_t, u_t)[dx_t, du_t] + dl_T(x_T)[dx_T]

so a stage is linearised when its derivative is asked for and not before. Nothing but the states is
kept for that, and they may be replaced: a plan whose cost is not finite has derivatives that are
not, and zero times these is NaN, not zero, so the best plan stands in for it and what comes of that
is dropped. Where there is none, `x0` and controls that the caller names do, at every stage.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._control_problem import StageProblem
from ._trajectory import stages


def plan_cost(problem: StageProblem, x0: Array, controls: Array) -> Float[Array, ""]:
    """Cost of controls `(T, m)` from `x0`; infinite where a state is not finite.

    Such a state may cost nothing, but it has no derivative.
    """

    def advance(carry, stage):
        x, total, fine = carry
        k, u = stage
        following, cost = _stage(problem, x, u, k)
        return (following, total + cost, fine & jnp.all(jnp.isfinite(following))), None

    start = (x0, jnp.zeros((), x0.dtype), jnp.all(jnp.isfinite(x0)))
    (x, total, fine), _ = jax.lax.scan(advance, start, (stages(problem.horizon), controls))
    return jnp.where(fine, total + problem.terminal_cost(x), jnp.inf)


def plan_costs(
    problem: StageProblem, x0: Array, plans: Array, otherwise: Array
) -> Float[Array, " N"]:
    """Costs of plans `(N, T, m)` in one batched roll-out; infinite, with no derivative, where the
    cost or a state is not finite. `otherwise`, `(T, m)`, are controls that are finite at `x0`."""
    otherwise = jax.lax.stop_gradient(otherwise)
    return _run(problem, x0, jnp.swapaxes(plans, 0, 1), otherwise)[0]


def _stage(problem: StageProblem, x: Array, u: Array, k: Array) -> tuple[Array, Array]:
    return problem.dynamics(x, u, k), problem.stage_cost(x, u, k)


def _stages(problem: StageProblem, x: Array, u: Array, k: Array) -> tuple[Array, Array]:
    """Of all plans."""
    return jax.vmap(lambda x, u: _stage(problem, x, u, k))(x, u)


def _ends(problem: StageProblem, x: Array) -> Array:
    return jax.vmap(problem.terminal_cost)(x)


@eqx.filter_custom_jvp
def _run(
    problem: StageProblem, x0: Array, plans: Array, otherwise: Array
) -> tuple[Array, tuple[Array, Array]]:
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
    # The sum of what is zero times a state is finite where all states are: one pass, in order.
    trace = jnp.sum(jnp.sum(0.0 * states, axis=0) + 0.0 * x, axis=1)
    return jnp.where(jnp.isfinite(costs + trace), costs, jnp.inf), (states, x)


@_run.def_jvp
def _run_jvp(primals, tangents):
    problem, x0, plans, otherwise = primals
    d_problem, d_x0, d_plans, _ = tangents
    costs, (states, last) = _run(problem, x0, plans, otherwise)
    finite = jnp.isfinite(costs)[:, None]
    best = jnp.argmin(costs)

    def safe(rows, otherwise):
        stand_in = jnp.where(finite[best], rows[..., best, :], otherwise)
        return jnp.where(finite, rows, jax.lax.stop_gradient(stand_in)[..., None, :])

    moving = lambda d, rows: jnp.zeros_like(rows) if d is None else d
    x, u, end = safe(states, x0), safe(plans, otherwise), safe(last, x0)
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
