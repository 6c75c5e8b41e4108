"""The box QP against brute force over all active sets, and against SciPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear

from diffcontrol._kernel.box_qp import solve_box_qp

INF = np.inf
solve_many = jax.jit(jax.vmap(solve_box_qp))


def brute_force(R, q, lower, upper):
    """The best point among the minimisers of all 3^m guesses of what is at which bound."""
    m = len(q)
    best, best_value = None, INF
    for sides in itertools.product("flu", repeat=m):
        free = np.array([side == "f" for side in sides])
        k = np.where([side == "l" for side in sides], lower, upper)
        k = np.where(free, 0.0, k)
        if not np.isfinite(k).all():
            continue
        if free.any():
            k[free] = np.linalg.solve(R[np.ix_(free, free)], -(q + R @ k)[free])
        value = 0.5 * k @ R @ k + q @ k
        if (k >= lower - 1e-12).all() and (k <= upper + 1e-12).all() and value < best_value:
            best, best_value = k, value
    return best


def definite(rng, m, condition):
    Q, _ = np.linalg.qr(rng.normal(size=(m, m)))
    return Q @ np.diag(condition ** rng.uniform(-0.5, 0.5, m)) @ Q.T


def random_problem(rng, m):
    """Bounds of all kinds: finite, one-sided, infinite, equal, with or without zero inside."""
    R, q = definite(rng, m, 100.0), 3 * rng.normal(size=m)
    lower, upper = np.sort(rng.normal(size=(2, m)), axis=0)
    kind = rng.integers(6, size=m)
    lower = np.where((kind == 0) | (kind == 1), -INF, lower)
    upper = np.where((kind == 0) | (kind == 2), INF, upper)
    equal = kind == 3
    lower = np.where(equal, upper, lower)
    return R, q, lower, upper


def stacked(problems):
    return [jnp.asarray(np.stack(part)) for part in zip(*problems, strict=True)]


@functools.cache
def random_solved(m):
    rng = np.random.default_rng(m)
    problems = [random_problem(rng, m) for _ in range(120)]
    return problems, jax.device_get(solve_many(*stacked(problems)))


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_equals_brute_force(m):
    problems, solved = random_solved(m)
    expected = np.stack([brute_force(*problem) for problem in problems])
    np.testing.assert_allclose(solved.k, expected, atol=1e-10)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_optimality_conditions(m):
    problems, solved = random_solved(m)
    R, q, lower, upper = map(np.asarray, stacked(problems))
    k, free = solved.k, solved.free
    gradient = np.einsum("bij,bj->bi", R, k) + q
    assert np.all((k >= lower) & (k <= upper))
    assert np.all(np.abs(gradient[free]) < 1e-10)
    # What is not free is exactly at a bound and pressed against it, or has equal bounds.
    held = ~free
    fixed = lower == upper
    assert np.all(held[fixed])
    pressed = ((k == lower) & (gradient > 0)) | ((k == upper) & (gradient < 0))
    assert np.all(pressed[held & ~fixed])
    assert np.all(solved.pivots > 0)
    # The factor is that of R on the free variables, of the identity elsewhere.
    both = free[:, :, None] & free[:, None, :]
    restricted = np.where(both, R, np.eye(m))
    np.testing.assert_allclose(solved.L @ solved.L.swapaxes(1, 2), restricted, atol=1e-12)


def test_equals_scipy_on_six_variables():
    rng = np.random.default_rng(0)
    problems = []
    for _ in range(40):
        lower, upper = np.sort(rng.normal(size=(2, 6)), axis=0)
        problems.append((definite(rng, 6, 1e4), 5 * rng.normal(size=6), lower, upper))
    solved = solve_many(*stacked(problems))
    for k, (R, q, lower, upper) in zip(np.asarray(solved.k), problems, strict=True):
        root = np.linalg.cholesky(R).T
        target = -np.linalg.solve(root.T, q)
        reference = lsq_linear(root, target, (lower, upper), method="bvls", tol=1e-14).x
        np.testing.assert_allclose(k, reference, atol=1e-7)


EYE2 = np.eye(2)
COUPLED = np.array([[2.0, 1.9], [1.9, 2.0]])

NAMED = {
    "the minimiser lies on a bound": (EYE2, [-1.0, 0.5], [0, 0], [1, 1], [1, 0]),
    "the gradient vanishes at a bound": (EYE2, [0.0, 0.0], [0, -1], [1, 0], [0, 0]),
    "everything is fixed": (COUPLED, [5.0, -5.0], [2, -1], [2, -1], [2, -1]),
    "one is fixed, away from zero": (COUPLED, [0.0, 0.0], [2, -INF], [2, INF], [2, -1.9]),
    "no bounds": (COUPLED, [1.0, 1.0], [-INF, -INF], [INF, INF], [-1 / 3.9, -1 / 3.9]),
    "zero lies outside the box": (EYE2, [0.0, 0.0], [1, -3], [2, -2], [1, -2]),
    "a first Newton step clamps the wrong one": (
        COUPLED,
        [-1.0, -3.0],
        [-1, -1],
        [1, 1],
        [-0.45, 1],
    ),
    "very stiff": (1e12 * COUPLED, [1e12, -1e12], [-1, -1], [1, 1], [-1, 1]),
    "very soft": (1e-12 * COUPLED, [1e-12, 1e-12], [-1, -1], [1, 1], [-1 / 3.9, -1 / 3.9]),
}


def test_named_problems():
    problems = [tuple(np.asarray(part, float) for part in case) for case in NAMED.values()]
    solved = jax.device_get(solve_many(*stacked([problem[:4] for problem in problems])))
    for name, k, (*_, expected) in zip(NAMED, solved.k, problems, strict=True):
        np.testing.assert_allclose(k, expected, atol=1e-9, err_msg=name)


def test_a_variable_at_a_bound_with_zero_gradient_is_free():
    solved = solve_box_qp(jnp.eye(2), jnp.zeros(2), jnp.array([0.0, -1.0]), jnp.array([1.0, 0.0]))
    assert solved.free.all()


@pytest.mark.parametrize("m", [1, 3])
def test_indefinite_is_told_by_the_pivots(m):
    R = jnp.diag(jnp.array([-1.0, 2.0, 3.0])[:m])
    unbounded = jnp.full(m, INF)
    solved = solve_box_qp(R, jnp.ones(m), -unbounded, unbounded)
    assert np.isfinite(solved.k).all() and not np.all(np.asarray(solved.pivots) > 0)


def test_single_precision():
    rng = np.random.default_rng(5)
    problems = [random_problem(rng, 3) for _ in range(50)]
    double = solve_many(*stacked(problems))
    single = solve_many(*[part.astype(jnp.float32) for part in stacked(problems)])
    assert single.k.dtype == jnp.float32
    np.testing.assert_allclose(single.k, double.k, atol=1e-3)


def test_derivatives_with_the_clamped_set_held():
    rng = np.random.default_rng(7)
    R, q, lower, upper = definite(rng, 3, 10.0), np.array([4.0, -0.3, 0.2]), -np.ones(3), np.ones(3)
    upper[2] = lower[2] = 0.4
    arguments = [jnp.asarray(part) for part in (R, q, lower, upper)]
    minimiser = jax.jit(lambda R, q, lower, upper: solve_box_qp((R + R.T) / 2, q, lower, upper).k)
    assert not np.all(solve_box_qp(*arguments).free)
    tangents = [jnp.asarray(rng.normal(size=part.shape)) for part in arguments]
    tangents[3] = tangents[3].at[2].set(tangents[2][2])  # both sides of the equal pair

    h = 1e-6
    plus, minus = (
        minimiser(*[a + s * d for a, d in zip(arguments, tangents, strict=True)]) for s in (h, -h)
    )
    _, derivative = jax.jvp(minimiser, arguments, tangents)
    np.testing.assert_allclose(derivative, (plus - minus) / (2 * h), atol=1e-7)
