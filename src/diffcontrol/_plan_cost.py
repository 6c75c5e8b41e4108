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
from ._lone_scalars import lone_scalars
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


# The compiler makes one loop of what is stacked into one array, and that loop computes what the
# entries share once for each of them. Apart they take a sixth off the whole gradient of a plan.
# Entries that come of one product with a matrix gain nothing, and many would be slow to compile.
_FEW = 16


def _parts(x: Array) -> tuple[Array, ...]:
    """Entries of states `(..., n)`, or the states as they are where they have many."""
    return tuple(jnp.unstack(x, axis=-1)) if x.shape[-1] <= _FEW else (x,)


def _whole(parts: tuple[Array, ...], ndim: int) -> Array:
    """`_parts` undone, to states with so many axes."""
    return jnp.stack(parts, axis=-1) if parts[0].ndim < ndim else parts[0]


def _stage_of_parts(
    problem: StageProblem, x: tuple[Array, ...], u: Array, k: Array
) -> tuple[tuple[Array, ...], Array]:
    """`_stage` of one plan; dynamics and cost have a stack each, so that nothing is summed before
    it is apart."""
    following = problem.dynamics(_whole(x, 1), u, k)
    return _parts(following), problem.stage_cost(_whole(x, 1), u, k)


def _one_each(
    problem: StageProblem, d_problem: StageProblem, x: Array, u: Array, number: int
) -> tuple[StageProblem, StageProblem]:
    """A tangent of the problem in two: of lone scalars, of which every plan has one, and the rest.

    So their cotangents are added stage by stage and summed over the plans once, at the end.
    """
    none = lambda leaf: leaf is None
    tangents, structure = jax.tree.flatten(d_problem, is_leaf=none)
    leaves = jax.tree.leaves(problem, is_leaf=none)
    moving = [i for i, d in enumerate(tangents) if d is not None and d.ndim == 0]

    def stage(scalars, at):
        moved = list(leaves)
        for i, scalar in zip(moving, scalars, strict=True):
            moved[i] = scalar
        # The plans share the stage too: a scalar that meets its index has met none of them.
        index = jnp.zeros((), int)
        return _stage_of_parts(jax.tree.unflatten(structure, moved), _parts(at[0]), at[1], index)

    lone = lone_scalars(stage, [leaves[i] for i in moving], (x, u), most=x.size)
    each = {i for i, is_lone in zip(moving, lone, strict=True) if is_lone}
    d_each = [jnp.broadcast_to(d, (number,)) if i in each else None for i, d in enumerate(tangents)]
    d_shared = [None if i in each else d for i, d in enumerate(tangents)]
    return jax.tree.unflatten(structure, d_each), jax.tree.unflatten(structure, d_shared)


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
        # What is zero times a state is finite where the state is.
        return (following, total + cost + jnp.sum(0.0 * x, axis=1)), x

    x = jnp.broadcast_to(x0, (plans.shape[1], *x0.shape))
    start = (x, jnp.zeros(plans.shape[1], x0.dtype))
    (x, costs), states = jax.lax.scan(advance, start, (stages(problem.horizon), plans))
    costs = costs + _ends(problem, x) + jnp.sum(0.0 * x, axis=1)
    return jnp.where(jnp.isfinite(costs), costs, jnp.inf), (states, x)


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
    d_each, d_shared = _one_each(problem, d_problem, x0, plans[0, 0], costs.size)

    # The inside of a stage is computed again in a backward pass: less than it costs to keep it.
    @jax.checkpoint
    def push(carry, stage):
        dx, d_cost = carry
        k, x, u, du = stage

        def one(d_each, x, u, dx, du):
            at = lambda problem, x, u: _stage_of_parts(problem, x, u, k)
            return eqx.filter_jvp(at, (problem, x, u), (eqx.combine(d_each, d_shared), dx, du))[1]

        d_next, d_more = jax.vmap(one)(d_each, x, u, dx, du)
        d_next = tuple(moving(d, rows) for d, rows in zip(d_next, x, strict=True))
        return (d_next, d_cost + moving(d_more, d_cost)), dx

    start = (_parts(dx), jnp.zeros_like(costs))
    along = (stages(problem.horizon), _parts(x), u, du)
    (parts, d_costs), all_parts = jax.lax.scan(push, start, along)
    dx, d_states = _whole(parts, end.ndim), _whole(all_parts, x.ndim)
    _, d_end = eqx.filter_jvp(_ends, (problem, end), (d_problem, dx))
    d_costs = jnp.where(finite[:, 0], d_costs + moving(d_end, costs), 0.0)
    still = lambda d: jnp.where(finite, d, 0.0)
    return (costs, (states, last)), (d_costs, (still(d_states), still(dx)))
