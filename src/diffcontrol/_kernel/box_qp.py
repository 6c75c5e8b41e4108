r"""Box-constrained quadratic programs of a few variables.

    minimise  1/2 k' R k + q' k   subject to  lower <= k <= upper,   R positive definite

by projected Newton (Bertsekas 1982; Tassa et al. 2014, algorithm 1): the variables at a bound and
pressed against it are clamped, a Newton step is taken in the others, and a backtracking search
along the projected path makes it globally convergent. The clamped set settles after finitely many
steps, and then one Newton step is exact.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .cholesky import cholesky, solve_factored
from .riccati import restrict

_SUFFICIENT_DECREASE = 0.1


class BoxQPSolution(eqx.Module):
    """Minimiser `k`, the free variables, Cholesky factor of `R` on them, relative pivots."""

    k: Float[Array, " m"]
    free: Bool[Array, " m"]
    L: Float[Array, "m m"]
    pivots: Float[Array, " m"]


def solve_box_qp(R: Array, q: Array, lower: Array, upper: Array) -> BoxQPSolution:
    """Minimise over the box. Differentiable with the set of clamped variables held."""
    fixed = [jax.lax.stop_gradient(a) for a in (R, q, lower, upper)]
    k = _minimise_scalar(*fixed) if q.shape[0] == 1 else _projected_newton(*fixed)
    free = ~_pressed(k, fixed[0] @ k + fixed[1], fixed[2], fixed[3])
    # One more solve on the free set: exact, and the place where derivatives flow.
    clamped_k = jnp.where(free, 0.0, jnp.where(k <= fixed[2], lower, upper))
    L, pivots = cholesky(restrict(R, free))
    newton = -solve_factored(L, jnp.where(free, q + R @ clamped_k, 0.0))
    k = jnp.where(free, jnp.clip(newton, lower, upper), clamped_k)
    return BoxQPSolution(k, free, L, pivots)


def _pressed(k: Array, gradient: Array, lower: Array, upper: Array) -> Bool[Array, " m"]:
    at_lower = (k <= lower) & (gradient > 0)
    at_upper = (k >= upper) & (gradient < 0)
    return at_lower | at_upper | (lower == upper)


def _minimise_scalar(R: Array, q: Array, lower: Array, upper: Array) -> Array:
    curvature = R[0]
    safe = jnp.where(curvature > 0, curvature, 1.0)
    return jnp.clip(-q / safe, lower, upper)


def _projected_newton(R: Array, q: Array, lower: Array, upper: Array) -> Array:
    m = q.shape[0]
    steps = 0.5 ** jnp.arange(12, dtype=q.dtype)

    def value(k):
        return 0.5 * k @ R @ k + q @ k

    def improve(state):
        k, _, iteration = state
        gradient = R @ k + q
        free = ~_pressed(k, gradient, lower, upper)
        L, _ = cholesky(restrict(R, free))
        direction = -solve_factored(L, jnp.where(free, gradient, 0.0))
        full = k + direction
        inside = jnp.all((full >= lower) & (full <= upper))

        candidates = jnp.clip(k + steps[:, None] * direction, lower, upper)
        decreases = value(k) - jax.vmap(value)(candidates)
        enough = decreases >= _SUFFICIENT_DECREASE * ((k - candidates) @ gradient)
        chosen = candidates[jnp.argmax(enough)]
        new = jnp.where(inside, full, jnp.where(jnp.any(enough), chosen, k))

        settled = jnp.all(free == ~_pressed(new, R @ new + q, lower, upper))
        done = (inside & settled) | jnp.all(new == k)
        return new, done, iteration + 1

    start = jnp.clip(jnp.zeros_like(q), lower, upper)
    k, _, _ = jax.lax.while_loop(
        lambda state: ~state[1] & (state[2] < 10 + 4 * m),
        improve,
        (start, jnp.asarray(False), jnp.asarray(0)),
    )
    return k
