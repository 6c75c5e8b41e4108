"""The Cholesky factorisation against NumPy, and what its pivots say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcontrol._kernel.cholesky import (
    cholesky,
    convexify,
    solve_factored,
    solve_lower,
    solve_lower_transposed,
)

# Unrolled columns, then the size at which LAPACK takes over.
SIZES = [1, 2, 3, 5, 8, 9, 12]


def symmetric_with(eigenvalues, seed):
    size = len(eigenvalues)
    Q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    A = Q @ np.diag(eigenvalues) @ Q.T
    return (A + A.T) / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", SIZES)
def test_factor_and_solves(m, dtype):
    rng = np.random.default_rng(m)
    A = jnp.asarray(symmetric_with(rng.uniform(0.1, 10, m), m), dtype)
    b, B = jnp.asarray(rng.normal(size=m), dtype), jnp.asarray(rng.normal(size=(m, 3)), dtype)
    L, pivots = jax.jit(cholesky)(A)
    eps = 1e3 * np.finfo(dtype).eps
    assert L.dtype == dtype and pivots.dtype == dtype
    assert np.all(pivots > 0)
    np.testing.assert_allclose(L, np.linalg.cholesky(A), rtol=eps, atol=eps)
    np.testing.assert_allclose(A @ solve_factored(L, b), b, rtol=0, atol=100 * eps)
    np.testing.assert_allclose(A @ solve_factored(L, B), B, rtol=0, atol=100 * eps)
    np.testing.assert_allclose(L @ solve_lower(L, B), B, rtol=0, atol=eps)
    np.testing.assert_allclose(L.T @ solve_lower_transposed(L, B), B, rtol=0, atol=eps)


@pytest.mark.parametrize("m", SIZES)
def test_pivots_tell_definite_from_indefinite(m):
    rng = np.random.default_rng(100 + m)
    positive = [symmetric_with(rng.uniform(1e-6, 1, m), k) for k in range(20)]
    flipped = []
    for k in range(20):
        eigenvalues = rng.uniform(1e-3, 1, m)
        eigenvalues[rng.integers(m)] *= -1
        flipped.append(symmetric_with(eigenvalues, k))
    L, pivots = jax.jit(jax.vmap(cholesky))(jnp.asarray(np.stack(positive + flipped)))
    assert np.isfinite(L).all() and np.isfinite(pivots).all()
    definite = np.all(np.asarray(pivots) > 0, axis=1)
    assert definite[:20].all() and not definite[20:].any()


@pytest.mark.parametrize("m", SIZES)
def test_singular_is_not_positive(m):
    # Rows of whole numbers that sum to zero: singular without rounding, and otherwise far from it.
    between = np.triu(np.random.default_rng(200 + m).integers(5, 10, (m, m)), 1).astype(float)
    between = between + between.T
    for A in (np.diag(between.sum(axis=1)) - between, np.zeros((m, m))):
        L, pivots = cholesky(jnp.asarray(A))
        assert np.isfinite(L).all() and not np.all(np.asarray(pivots) > 0)
        assert np.isfinite(solve_factored(L, jnp.ones(m))).all()


@pytest.mark.parametrize("m", [3, 9])
def test_one_bad_matrix_leaves_the_others_alone(m):
    good = np.stack([symmetric_with(np.arange(1.0, m + 1), k) for k in range(3)])
    with_bad = good.copy()
    with_bad[1] = np.nan
    factor = jax.jit(jax.vmap(cholesky))
    (L, pivots), (L_bad, pivots_bad) = factor(jnp.asarray(good)), factor(jnp.asarray(with_bad))
    for k in (0, 2):
        assert np.array_equal(L[k], L_bad[k]) and np.array_equal(pivots[k], pivots_bad[k])
    assert not np.all(np.asarray(pivots_bad[1]) > 0)


@pytest.mark.parametrize("m", [3, 9])
def test_derivative(m):
    A = jnp.asarray(symmetric_with(np.linspace(1, 3, m), m))
    b = jnp.arange(1.0, m + 1)
    solve = lambda A: solve_factored(cholesky((A + A.T) / 2)[0], b)
    direct = lambda A: jnp.linalg.solve((A + A.T) / 2, b)
    np.testing.assert_allclose(jax.jacrev(solve)(A), jax.jacrev(direct)(A), atol=1e-10)


@pytest.mark.parametrize("m", [1, 2, 5])
def test_convexify(m):
    """Positive definite whatever comes in, by a diagonal; nothing changes where it was so."""
    rng = np.random.default_rng(m)
    A = rng.standard_normal((50, m, m))
    A = A + A.swapaxes(1, 2)
    out = np.asarray(jax.vmap(convexify)(jnp.asarray(A)))
    assert np.all(np.linalg.eigvalsh(out) > 0)
    added = out - A
    diagonal = np.einsum("bi,ij->bij", np.einsum("bii->bi", added), np.eye(m))
    np.testing.assert_array_equal(added, diagonal)
    definite = A @ A.swapaxes(1, 2) / (4 * m) + 3 * np.eye(m)
    np.testing.assert_allclose(jax.vmap(convexify)(jnp.asarray(definite)), definite, rtol=1e-14)
