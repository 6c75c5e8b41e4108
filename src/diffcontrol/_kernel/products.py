r"""Products of the matrices of all stages with vectors.

    curvature:  a = H tau              with the symmetric part of H
    dynamics:   a = F' costate,  b = F tau

Both are linear in the matrix and linear in the vectors. Transposed in the vectors they are the same
products again; transposed in the matrix they are outer products,

    dH = 1/2 (a tau' + tau a'),        dF = costate a' + b tau',

which are most of what the gradient of a linear-quadratic problem has to write. XLA writes them in
several passes, `native/outer.h` in one: that is why these are primitives of JAX with rules of their
own.

Inside a primitive all arrays have the same number of leading batch axes, each of the batch's size
or of size one. The gradient of a matrix that several samples or stages share is summed over them
without being written out for each.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

from . import native


def curvature_product(H: Array, tau: Array) -> Array:
    """`sym(H) tau` of shape `(T, nm)`, for `H (T or 1, nm, nm)` and `tau (T, nm)`."""
    return _curvature.bind(H, tau)[0]


def dynamics_products(F: Array, costate: Array, tau: Array) -> tuple[Array, Array]:
    """`F' costate` and `F tau`, for `F (T or 1, n, nm)`, `costate (T, n)` and `tau (T, nm)`."""
    a, b = _dynamics.bind(F, costate, tau)
    return a, b


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def outer(scale: float, p: Array, q: Array, r: Array, s: Array) -> Array:
    """`scale (p q' + r s')` of every stage, for a scale that is a power of two.

    `p, r` have shape `(T, rows)`, `q, s` have shape `(T, columns)`; more axes may come before.
    """
    in_jax = functools.partial(_outer_in_jax, scale)
    return native.dispatch(functools.partial(native.outer, scale), in_jax, 0, p, q, r, s)


@outer.defjvp
def _outer_jvp(scale, primals, tangents):
    in_jax = lambda *vectors: native.batch_first(_outer_in_jax(scale, *vectors))
    return native.batch_first(outer(scale, *primals)), jax.jvp(in_jax, primals, tangents)[1]


def _outer_in_jax(scale, p, q, r, s):
    return scale * (p[..., :, None] * q[..., None, :]) + scale * (r[..., :, None] * s[..., None, :])


def _shared_outer(scale: float, shape: tuple[int, ...], p, q, r, s) -> Array:
    """`outer`, summed over the axes along which a matrix of this `shape` is shared."""
    leading = [v.shape[:-1] for v in (p, q, r, s)]
    if jnp.broadcast_shapes(*leading) == shape[:-2]:
        return outer(
            scale, *(jnp.broadcast_to(v, (*shape[:-2], v.shape[-1])) for v in (p, q, r, s))
        )

    # A product that itself does not vary along a shared axis counts once there.
    def sum_of_products(v, w):
        full = jnp.broadcast_shapes(v.shape[:-1], w.shape[:-1])
        v, w = (jnp.broadcast_to(a, (*full, a.shape[-1])) for a in (v, w))
        axes = list(range(len(full)))
        kept = [i for i in axes if full[i] == shape[i]]
        row, column = len(axes), len(axes) + 1
        return jnp.einsum(v, [*axes, row], w, [*axes, column], [*kept, row, column]).reshape(shape)

    return scale * sum_of_products(p, q) + scale * sum_of_products(r, s)


def _bilinear(name: str, in_jax: Callable, matrix_gradient: Callable) -> Primitive:
    """A primitive `(matrix, *vectors) -> as many vectors`, linear in both, self-adjoint in these.

    Args:
        name: how JAX prints it.
        in_jax: what it computes.
        matrix_gradient: `(shape, vectors, cotangents)` to the cotangent of the matrix.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True
    bind = primitive.bind

    def jvp(primals, tangents):
        (matrix, *vectors), (d_matrix, *d_vectors) = primals, tangents
        out = bind(matrix, *vectors)
        terms = []
        if not isinstance(d_matrix, ad.Zero):
            terms.append(bind(d_matrix, *vectors))
        if not all(isinstance(d, ad.Zero) for d in d_vectors):
            terms.append(bind(matrix, *map(ad.instantiate_zeros, d_vectors)))
        return out, [functools.reduce(jnp.add, parts) for parts in zip(*terms, strict=True)]

    def transpose(cotangents, matrix, *vectors):
        cotangents = [ad.instantiate_zeros(c) for c in cotangents]
        if ad.is_undefined_primal(matrix):
            return [
                matrix_gradient(matrix.aval.shape, vectors, cotangents),
                *(None for _ in vectors),
            ]
        gradients = reversed(bind(matrix, *reversed(cotangents)))
        return [None, *map(_cotangent, vectors, gradients)]

    def batch(args, axes):
        front = [
            jnp.expand_dims(arg, 0) if axis is None else jnp.moveaxis(arg, axis, 0)
            for arg, axis in zip(args, axes, strict=True)
        ]
        size = next(arg.shape[0] for arg, axis in zip(front, axes, strict=True) if axis is not None)
        out = [jnp.broadcast_to(a, (size, *a.shape[1:])) for a in bind(*front)]
        return out, [0] * len(out)

    primitive.def_impl(lambda *args: jax.jit(in_jax)(*args))
    primitive.def_abstract_eval(
        lambda *avals: [
            jax.core.ShapedArray(a.shape, a.dtype) for a in jax.eval_shape(in_jax, *avals)
        ]
    )
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, mlir.lower_fun(in_jax, multiple_results=True))
    return primitive


def _cotangent(vector, gradient: Array) -> Array | None:
    """`gradient`, summed over the axes along which `vector` is shared; none of a known vector."""
    if not ad.is_undefined_primal(vector):
        return None
    axes = tuple(i for i, size in enumerate(vector.aval.shape) if size != gradient.shape[i])
    return jnp.sum(gradient, axes, keepdims=True) if axes else gradient


def _rows(A: Array, b: Array) -> Array:
    return jnp.sum(A * b[..., None, :], axis=-1)


def _symmetric_part(H: Array) -> Array:
    return 0.5 * (H + jnp.swapaxes(H, -1, -2))


_curvature = _bilinear(
    "curvature_product",
    lambda H, tau: [_rows(_symmetric_part(H), tau)],
    lambda shape, vectors, out: _shared_outer(0.5, shape, out[0], vectors[0], vectors[0], out[0]),
)
_dynamics = _bilinear(
    "dynamics_products",
    lambda F, costate, tau: [_rows(jnp.swapaxes(F, -1, -2), costate), _rows(F, tau)],
    lambda shape, vectors, out: _shared_outer(1.0, shape, vectors[0], out[0], out[1], vectors[1]),
)
