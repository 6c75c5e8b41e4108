"""Small operations on pytrees of arrays."""

from collections.abc import Callable
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

_T = TypeVar("_T")


def select(predicate: Bool[Array, ""], if_true: _T, if_false: _T) -> _T:
    """Choose between two pytrees of the same structure, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(predicate, a, b), if_true, if_false)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every floating-point array of `tree` is finite throughout."""
    return _over_inexact_leaves(tree, lambda leaf: jnp.all(jnp.isfinite(leaf)))


def any_nan(tree: PyTree) -> Bool[Array, ""]:
    """Whether some floating-point array of `tree` holds a NaN."""
    return ~_over_inexact_leaves(tree, lambda leaf: ~jnp.any(jnp.isnan(leaf)))


def _over_inexact_leaves(tree: PyTree, holds: Callable) -> Bool[Array, ""]:
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
    outcome = jnp.asarray(True)
    for leaf in leaves:
        outcome = outcome & holds(leaf)
    return outcome


def stop_gradient(tree: _T) -> _T:
    """`jax.lax.stop_gradient` that lets callables and other non-arrays pass."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.lax.stop_gradient(arrays), rest)


def promoted_dtype(*trees: PyTree) -> jnp.dtype:
    """The one floating-point type of all arrays in `trees`; integers alone give the default."""
    leaves = jax.tree.leaves(eqx.filter(trees, eqx.is_inexact_array))
    return jnp.dtype(jnp.result_type(*leaves) if leaves else jnp.result_type(float))
