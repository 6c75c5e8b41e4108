"""Products of stage-wise matrices with vectors have the derivatives of what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcontrol._kernel.products import curvature_product, dynamics_products, outer

T, N, M, BATCH = 4, 3, 2, 3
CORES = {"H": (T, N + M, N + M), "F": (T, N, N + M), "tau": (T, N + M), "costate": (T, N)}
# Which of H, F, tau, costate have a batch axis.
BATCHED = {"all": "H F tau costate", "data": "tau costate", "tau": "tau", "H": "H", "F": "F tau"}


def mixed(H, F, tau, costate):
    """A function that is not linear in anything, by the products."""
    a, b = dynamics_products(F, costate, tau)
    return jnp.sum(jnp.sin(curvature_product(H, tau))) + jnp.sum(a**2) + jnp.sum(jnp.cos(b))


def plain(H, F, tau, costate):
    """The same by `einsum`."""
    H = jnp.broadcast_to(0.5 * (H + jnp.swapaxes(H, -1, -2)), CORES["H"])
    F = jnp.broadcast_to(F, CORES["F"])
    a, b = jnp.einsum("tij,ti->tj", F, costate), jnp.einsum("tij,tj->ti", F, tau)
    return jnp.sum(jnp.sin(jnp.einsum("tij,tj->ti", H, tau))) + jnp.sum(a**2) + jnp.sum(jnp.cos(b))


def gradient(function):
    return jax.grad(function, argnums=(0, 1, 2, 3))


def curvature(function, directions):
    def slope(*args):
        parts = zip(gradient(function)(*args), directions, strict=True)
        return sum(jnp.sum(g * d) for g, d in parts)

    return jax.grad(slope, argnums=(0, 1, 2, 3))


def draw(shapes, seed):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape)) for shape in shapes)


def agree(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def orders(function, directions):
    """Value, gradient, forward over reverse and reverse over reverse."""
    return {
        "value": function,
        "gradient": gradient(function),
        "forward over reverse": lambda *args: jax.jvp(gradient(function), args, directions)[1],
        "reverse over reverse": curvature(function, directions),
    }


@pytest.mark.parametrize("shared", ["", "H", "F"])
def test_derivatives_of_each_order(shared):
    shapes = [(1, *core[1:]) if name == shared else core for name, core in CORES.items()]
    args, directions = draw(shapes, 0), draw(shapes, 1)
    for name, function in orders(mixed, directions).items():
        agree(jax.jit(function)(*args), jax.jit(orders(plain, directions)[name])(*args))


@pytest.mark.parametrize("size", [BATCH, 1, 0])
@pytest.mark.parametrize("batched", BATCHED.values(), ids=BATCHED.keys())
def test_batches_and_gradients_of_what_they_share(batched, size):
    axes = tuple(0 if name in batched.split() else None for name in CORES)
    shapes = [(size, *c) if axis == 0 else c for c, axis in zip(CORES.values(), axes, strict=True)]
    args, directions = draw(shapes, 2), draw(CORES.values(), 3)
    for name, function in orders(mixed, directions).items():
        reference = orders(plain, directions)[name]
        agree(jax.vmap(function, in_axes=axes)(*args), jax.vmap(reference, in_axes=axes)(*args))

    def over_batch(function):
        return jax.grad(
            lambda *args: jnp.sum(jax.vmap(function, in_axes=axes)(*args)), argnums=(0, 1, 2, 3)
        )

    agree(jax.jit(over_batch(mixed))(*args), jax.jit(over_batch(plain))(*args))


def test_gradients_of_symmetric_matrices_are_symmetric_to_the_last_bit():
    H_gradient = jax.jit(gradient(mixed))(*draw(CORES.values(), 4))[0]
    np.testing.assert_array_equal(H_gradient, jnp.swapaxes(H_gradient, -1, -2))


@pytest.mark.parametrize("columns", [1, 5, 8, 17])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_outer_products_of_every_width(columns, dtype):
    shapes = [(T, N), (T, columns), (T, N), (T, columns)]
    p, q, r, s = (v.astype(dtype) for v in draw(shapes, 5))
    expected = 2 * (p[:, :, None] * q[:, None] + r[:, :, None] * s[:, None])
    np.testing.assert_allclose(outer(2.0, p, q, r, s), expected, rtol=1e-5)
