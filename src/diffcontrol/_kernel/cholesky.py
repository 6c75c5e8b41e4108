"""Cholesky factorisation of small matrices, without LAPACK calls.

XLA calls LAPACK once a matrix, which for the m-by-m blocks of a Riccati recursion costs far more
than the arithmetic. Written as column operations these factorisations fuse, batch under `vmap`,
differentiate, and tell by their pivots whether a matrix is positive definite instead of filling
the result with NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Beyond this size loops compile faster than unrolled columns.
_LARGEST_UNROLLED = 8


def cholesky(A: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """Lower factor `L` with `L L' = A`, and the pivots relative to the diagonal of `A`.

    Where a pivot is not positive (to rounding), it is taken as very large: solves then leave that
    direction alone, and nothing becomes NaN or grows. The caller reads off the pivots whether the
    factor is one of `A`.
    """
    m = A.shape[0]
    tiny = 4 * m * float(jnp.finfo(A.dtype).eps)
    scale = jnp.maximum(jnp.abs(jnp.diagonal(A)), jnp.finfo(A.dtype).tiny)
    index = jnp.arange(m)

    def eliminate(j, state):
        A, L, pivots = state
        relative = A[j, j] / scale[j]
        safe = jnp.where(relative > tiny, A[j, j], (1.0 + scale[j]) / tiny**2)
        root = jnp.sqrt(safe)
        column = jnp.where(index > j, A[:, j] / root, jnp.where(index == j, root, 0.0))
        pivot = jnp.where(jnp.abs(relative) > tiny, relative, 0.0)
        return A - jnp.outer(column, column), L.at[:, j].set(column), pivots.at[j].set(pivot)

    state = (A, jnp.zeros_like(A), jnp.zeros_like(scale))
    if m > _LARGEST_UNROLLED:
        state = jax.lax.fori_loop(0, m, eliminate, state)
    else:
        for j in range(m):
            state = eliminate(j, state)
    _, L, pivots = state
    return L, pivots


def convexify(A: Float[Array, "m m"]) -> Float[Array, "m m"]:
    """`A` plus a diagonal that makes it positive definite; `A` where it is clearly so already.

    Source: Gill, Murray and Wright, Practical Optimization (1981), section 4.4.2.2: pivots are
    taken by size and raised until no entry of the factor exceeds `beta`.
    """
    m = A.shape[0]
    index = jnp.arange(m)
    diagonal = jnp.max(jnp.abs(jnp.diagonal(A)))
    beside = jnp.max(jnp.where(index[:, None] == index, 0.0, jnp.abs(A)))
    info = jnp.finfo(A.dtype)
    # The root of the rounding, not the rounding itself, so that what comes out is positive definite
    # in floating point too.
    smallest = jnp.maximum(float(info.eps) ** 0.5 * jnp.maximum(diagonal, beside), float(info.tiny))
    spread = (m * m - 1) ** -0.5 if m > 1 else 0.0
    beta2 = jnp.maximum(jnp.maximum(diagonal, beside * spread), smallest)

    def eliminate(j, state):
        C, added = state
        column = jnp.where(index > j, C[:, j], 0.0)
        theta = jnp.max(jnp.abs(column))
        pivot = jnp.maximum(jnp.maximum(jnp.abs(C[j, j]), smallest), theta**2 / beta2)
        return C - jnp.outer(column, column) / pivot, added.at[j].set(pivot - C[j, j])

    _, added = jax.lax.fori_loop(0, m, eliminate, (A, jnp.zeros_like(A[0])))
    return A + jnp.diag(added)


def solve_lower(L: Float[Array, "m m"], b: Float[Array, "m *k"]) -> Float[Array, "m *k"]:
    """`L^-1 b`."""
    m = L.shape[0]
    if m > _LARGEST_UNROLLED:
        b2 = b if b.ndim == 2 else b[:, None]
        return jax.scipy.linalg.solve_triangular(L, b2, lower=True).reshape(b.shape)
    rows: list[Array] = []
    for i in range(m):
        rest = sum((L[i, j] * rows[j] for j in range(i)), start=jnp.zeros_like(b[i]))
        rows.append((b[i] - rest) / L[i, i])
    return jnp.stack(rows)


def solve_lower_transposed(L: Float[Array, "m m"], b: Float[Array, "m *k"]) -> Array:
    """`L'^-1 b`."""
    return solve_lower(L.T[::-1, ::-1], b[::-1])[::-1]


def solve_factored(L: Float[Array, "m m"], b: Float[Array, "m *k"]) -> Float[Array, "m *k"]:
    """`(L L')^-1 b`."""
    return solve_lower_transposed(L, solve_lower(L, b))
