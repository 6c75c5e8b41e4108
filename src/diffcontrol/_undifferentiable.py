"""Values that may be carried through forward mode but refuse a cotangent.

JAX has no function transformation for "zero in forward mode, an error in reverse mode", so this
is one primitive: the linear map that is zero, with a transpose that raises.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

STATS_REFUSE = (
    "`solution.stats` has no derivative. Take what you need through jax.lax.stop_gradient, or "
    "leave it out of the loss."
)


def without_cotangent(tree: PyTree, anchor: Array, message: str) -> PyTree:
    """`tree` with zero tangents; raises `TypeError(message)` when reverse mode reaches it.

    Args:
        tree: values to guard; arrays that are not floating point pass as they are.
        anchor: a scalar that depends on everything one might differentiate by. Its tangent is
            what makes reverse mode come by here.
        message: what to do instead.
    """
    floats, rest = eqx.partition(tree, eqx.is_inexact_array)
    guarded = jax.tree.map(lambda leaf: _guard(message, leaf, anchor), floats)
    return eqx.combine(guarded, rest)


@eqx.filter_custom_jvp
def _guard(message: str, value: Array, anchor: Array) -> Array:
    # The rule's result is batched as soon as the anchor is, and `custom_jvp` takes for granted that
    # so is this one. A choice between two equal values sees to it and costs nothing once compiled.
    return jnp.where(anchor == anchor, value, value)


@_guard.def_jvp
def _guard_jvp(primals, tangents):
    message, value, anchor = primals
    _, _, d_anchor = tangents
    out = _guard(message, value, anchor)
    if d_anchor is None:
        return out, None
    zero = _zero_p.bind(d_anchor, message=message)
    return out, jnp.broadcast_to(zero, value.shape).astype(value.dtype)


_zero_p = Primitive("zero_without_transpose")
_zero_p.def_impl(lambda x, *, message: jnp.zeros_like(x))
_zero_p.def_abstract_eval(lambda x, *, message: x)
mlir.register_lowering(
    _zero_p, mlir.lower_fun(lambda x, *, message: jnp.zeros_like(x), multiple_results=False)
)
batching.primitive_batchers[_zero_p] = lambda args, axes, *, message: (
    _zero_p.bind(*args, message=message),
    axes[0],
)


def _refuse(cotangent, x, *, message):
    raise TypeError(message)


ad.deflinear2(_zero_p, _refuse)
