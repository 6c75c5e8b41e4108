"""The same KKT system as one dense matrix: the slow oracle that every kernel is tested against."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .riccati import System, Unknowns, multiply


def matrix(system: System) -> Float[Array, "N N"]:
    """The KKT matrix, built column by column from `multiply`."""
    flat, unflatten = ravel_pytree(_zeros(system))
    columns = jax.vmap(lambda e: ravel_pytree(multiply(system, unflatten(e)))[0])(
        jnp.eye(flat.shape[0], dtype=flat.dtype)
    )
    return columns.T


def solve_rows(system: System, rows: Unknowns) -> Unknowns:
    """Solve the system by LU factorisation; O((T (2n+m))^3)."""
    flat, unflatten = ravel_pytree(rows)
    return unflatten(jnp.linalg.solve(matrix(system), flat))


def _zeros(system: System) -> Unknowns:
    T, n = system.F.shape[:2]
    m = system.free.shape[1]
    zero: Array = jnp.zeros((T + 1, n), system.H.dtype)
    return Unknowns(zero, jnp.zeros((T, m), system.H.dtype), zero)
