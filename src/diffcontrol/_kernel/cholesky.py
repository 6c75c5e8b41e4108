"""Cholesky factorisation of small matrices, without LAPACK calls.

XLA calls LAPACK once a matrix, which for the m-by-m blocks of a Riccati recursion costs far more
than the arithmetic. Written as column operations these factorisations fuse, batch under `vmap`,
differentiate, and tell by their pivots whether a matrix is positive definite instead of filling
the result with NaN.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Beyond this size LAPACK is faster and compiles faster than unrolled columns.
_LARGEST_UNROLLED = 8


def cholesky(A: Float[Array, "m m"]) -> tuple[Float[Array, "m m"], Float[Array, " m"]]:
    """Lower factor `L` with `L L' = A`, and the pivots relative to the diagonal of `A`.

    Where a pivot is not positive (to rounding), it is taken as very large: solves then leave that
    direction alone, and nothing becomes NaN or grows. The caller reads off the pivots whether the
    factor is one of `A`.
    """
    m = A.shape[0]
    tiny = 4 * m * float(jnp.finfo(A.dtype).eps)
    if m > _LARGEST_UNROLLED:
        return _lapack_cholesky(A, tiny)
    scale = jnp.maximum(jnp.abs(jnp.diagonal(A)), jnp.finfo(A.dtype).tiny)
    columns, pivots = [], []
    for j in range(m):
        pivot = A[j, j]
        relative = pivot / scale[j]
        safe = jnp.where(relative > tiny, pivot, (1.0 + scale[j]) / tiny**2)
        root = jnp.sqrt(safe)
        below = jnp.where(jnp.arange(m) > j, A[:, j] / root, 0.0)
        column = below.at[j].set(root)
        A = A - jnp.outer(column, column)
        columns.append(column)
        pivots.append(jnp.where(jnp.abs(relative) > tiny, relative, 0.0))
    return jnp.stack(columns, axis=1), jnp.stack(pivots)


def _lapack_cholesky(A: Array, tiny: float) -> tuple[Array, Array]:
    L = jnp.linalg.cholesky(A)
    pivots = jnp.diagonal(L) ** 2 / jnp.maximum(jnp.abs(jnp.diagonal(A)), jnp.finfo(A.dtype).tiny)
    failed = ~jnp.all(pivots > tiny)
    return (
        jnp.where(
            failed, (1.0 + jnp.max(jnp.abs(A))) / tiny * jnp.eye(A.shape[0], dtype=A.dtype), L
        ),
        jnp.where(failed, -jnp.ones_like(pivots), pivots),
    )


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
