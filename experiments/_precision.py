"""Single precision, which the papers' code of DCEM runs in."""

import equinox as eqx
import jax
import jax.numpy as jnp


def single(tree):
    """Arrays in single precision."""
    cast = lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(cast, tree)
