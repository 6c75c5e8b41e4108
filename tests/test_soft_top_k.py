"""Soft choices of k: sums, a slow oracle, derivatives against extrapolated differences, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=9)
UPPER = RNG.uniform(0.1, 0.6, size=9)

# Name -> function of (scores, upper), scores, upper. `upper` is unused where there is none.
CASES = {
    "limited": (lambda x, k, b, s: dc.limited_multi_label(x, k, s), 2.5),
    "limited, whole k": (lambda x, k, b, s: dc.limited_multi_label(x, k, s), 3.0),
    "limited, saturated": (lambda x, k, b, s: dc.limited_multi_label(40.0 * x, k, s), 2.5),
    "softmax": (lambda x, k, b, s: dc.constrained_softmax(x / s, b, k), 1.2),
    "sparsemax": (lambda x, k, b, s: dc.constrained_sparsemax(x / s, b, k), 1.2),
}
ORACLE = {
    "limited": lambda x, nu, b: 1.0 / (1.0 + np.exp(-(x + nu))),
    "limited, whole k": lambda x, nu, b: 1.0 / (1.0 + np.exp(-(x + nu))),
    "limited, saturated": lambda x, nu, b: 1.0 / (1.0 + np.exp(-np.clip(40.0 * x + nu, -700, 700))),
    "softmax": lambda x, nu, b: np.minimum(b, np.exp(x + nu)),
    "sparsemax": lambda x, nu, b: np.clip(x + nu, 0.0, b),
}


def by_bisection(weights, k):
    low, high = -1e3, 1e3
    for _ in range(200):
        nu = 0.5 * (low + high)
        low, high = (nu, high) if np.sum(weights(nu)) < k else (low, nu)
    return weights(high)


def extrapolated(function, at, direction):
    """Central differences at two steps, extrapolated: an error of order h^4."""
    one = lambda h: (function(at + h * direction) - function(at - h * direction)) / (2 * h)
    return (4.0 * one(2e-4) - one(4e-4)) / 3.0


@pytest.mark.parametrize("name", CASES)
def test_is_the_projection(name):
    function, k = CASES[name]
    y = function(SCORES, k, UPPER, 1.0)
    assert abs(float(jnp.sum(y)) - k) < 1e-12
    assert jnp.all((y >= 0) & (y <= (1.0 if name.startswith("limited") else UPPER)))
    np.testing.assert_allclose(
        y, by_bisection(lambda nu: ORACLE[name](SCORES, nu, UPPER), k), atol=1e-11
    )


@pytest.mark.parametrize("name", ("softmax", "sparsemax"))
def test_any_bounds(name):
    function = jax.jit(CASES[name][0])
    rng = np.random.default_rng(1)
    for _ in range(200):
        x = rng.normal(size=7) * rng.choice([0.1, 1.0, 10.0])
        b = rng.uniform(0, 1, size=7) * rng.choice([1.0, 0.0], p=[0.8, 0.2], size=7)
        k = b.sum() * rng.choice([1.0, rng.uniform()])
        y = function(x, k, b, 1.0)
        np.testing.assert_allclose(
            y,
            by_bisection(lambda nu: ORACLE[name](x, nu, b), k),
            atol=1e-10,  # noqa: B023
        )
        assert abs(float(jnp.sum(y)) - k) < 1e-12


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("argument", ("scores", "k", "upper", "temperature"))
def test_derivatives(name, argument):
    function, k = CASES[name]
    at = [jnp.array(SCORES), jnp.array(k), jnp.array(UPPER), jnp.array(1.3)]
    place = ("scores", "k", "upper", "temperature").index(argument)
    of = lambda value: function(*at[:place], value, *at[place + 1 :])
    rng = np.random.default_rng(2)
    direction = jnp.array(rng.normal(size=at[place].shape))
    cotangent = jnp.array(rng.normal(size=SCORES.shape))
    tangent = jax.jit(lambda value: jax.jvp(of, (value,), (direction,))[1])(at[place])
    difference = extrapolated(jax.jit(of), at[place], direction)
    np.testing.assert_allclose(tangent, difference, atol=1e-8)
    scalar = lambda value: jnp.vdot(cotangent, of(value))
    gradient = jax.jit(jax.grad(scalar))
    pulled = gradient(at[place])
    assert abs(jnp.vdot(cotangent, tangent) - jnp.vdot(pulled, direction)) < 1e-12
    # Second order: symmetric, and the difference of first ones.
    if name == "limited, saturated":
        return
    hessian = jax.jit(jax.hessian(scalar))(at[place])
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    np.testing.assert_allclose(
        hessian @ direction if at[place].ndim else hessian * direction,
        extrapolated(gradient, at[place], direction),
        atol=1e-7,
    )


def test_vertices():
    """All weights at a bound: no derivative by scores, what there is to give goes to the next."""
    x, ones = jnp.array([3.0, -1.0, 2.0, 0.5]), jnp.ones(4)
    y = dc.constrained_sparsemax(x, 1.0, 2.0)
    np.testing.assert_array_equal(y, [1.0, 0.0, 1.0, 0.0])
    by_scores, by_upper, by_k = jax.jacobian(dc.constrained_sparsemax, (0, 1, 2))(x, ones, 2.0)
    np.testing.assert_array_equal(by_scores, np.zeros((4, 4)))
    np.testing.assert_array_equal(by_k, [0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(by_upper[:, 0], [1.0, 0.0, 0.0, -1.0])
    # Nothing waits where the bounds sum to k.
    for function in (dc.constrained_softmax, dc.constrained_sparsemax):
        np.testing.assert_allclose(function(x, 0.5 * ones, 2.0), 0.5 * ones, atol=1e-15)
        by_scores, by_upper = jax.jacobian(function, (0, 1))(x, 0.5 * ones, 2.0)
        np.testing.assert_array_equal(by_scores, np.zeros((4, 4)))
        assert jnp.all(jnp.isfinite(by_upper))


def test_limits_of_the_temperature():
    hard = np.zeros(9)
    hard[np.argsort(-SCORES)[:3]] = 1.0
    np.testing.assert_allclose(dc.limited_multi_label(SCORES, 3, 1e-9), hard, atol=1e-15)
    np.testing.assert_allclose(dc.limited_multi_label(SCORES, 3, 1e9), np.full(9, 3 / 9), rtol=1e-8)


def test_ends_of_k():
    np.testing.assert_array_equal(dc.limited_multi_label(SCORES, 9), np.ones(9))
    np.testing.assert_allclose(dc.limited_multi_label(SCORES, 0), np.zeros(9), atol=1e-300)
    by_scores, by_k = jax.jacobian(dc.limited_multi_label, (0, 1))(SCORES, 9.0)
    np.testing.assert_allclose(by_scores, np.zeros((9, 9)), atol=1e-300)
    # From the left: the smallest scores give way first.
    np.testing.assert_allclose(by_k, jax.nn.softmax(-SCORES), rtol=1e-10)
    one = dc.limited_multi_label(SCORES, 1)
    assert jnp.max(jnp.abs(one - jax.nn.softmax(SCORES))) > 0.01  # another entropy
    np.testing.assert_allclose(
        dc.constrained_softmax(SCORES, jnp.inf), jax.nn.softmax(SCORES), rtol=1e-13
    )


def test_ties_share():
    np.testing.assert_allclose(dc.limited_multi_label(jnp.zeros(5), 2), np.full(5, 0.4), rtol=1e-15)
    for function in (dc.constrained_softmax, dc.constrained_sparsemax):
        np.testing.assert_allclose(function(jnp.zeros(5), 1.0, 2.0), np.full(5, 0.4), rtol=1e-14)


def test_infinite_scores():
    inf = jnp.inf
    x = jnp.array([inf, 1.0, -inf, 0.3])
    y, by_scores = (
        dc.limited_multi_label(x, 2.0),
        jax.jacobian(dc.limited_multi_label)(x, 2.0),
    )
    rest = dc.limited_multi_label(x[jnp.array([1, 3])], 1.0)
    np.testing.assert_allclose(y, [1.0, rest[0], 0.0, rest[1]], rtol=1e-14)
    assert jnp.all(jnp.isfinite(by_scores))
    np.testing.assert_array_equal(by_scores[:, [0, 2]], np.zeros((4, 2)))
    two = jnp.array([inf, inf, 0.0])
    np.testing.assert_allclose(dc.limited_multi_label(two, 1.0), [0.5, 0.5, 0.0], atol=1e-300)
    assert jnp.all(jnp.isnan(dc.limited_multi_label(x, 3.5)))
    np.testing.assert_allclose(dc.constrained_softmax(x, 0.8)[0], 0.8)
    assert dc.constrained_softmax(x, 0.8)[2] == 0.0


@pytest.mark.parametrize("scale", (1.0, 1e6))
def test_large(scale):
    x = jnp.asarray(scale * np.random.default_rng(3).normal(size=100_000))
    for k in (5.0, 50_000.5):
        y = dc.limited_multi_label(x, k)
        assert abs(float(jnp.sum(y)) - k) < 1e-12 * k
    assert abs(float(jnp.sum(dc.constrained_sparsemax(x, 1.0, 5.0))) - 5.0) < 1e-10 * scale
    assert abs(float(jnp.sum(dc.constrained_softmax(x, 0.1, 5.0))) - 5.0) < 1e-12


def test_far_apart_scores_keep_their_digits():
    x = jnp.concatenate([jnp.zeros(5), -1e9 + jnp.arange(5.0)])
    y = dc.limited_multi_label(x, 7.0)
    near = dc.limited_multi_label(jnp.arange(5.0), 2.0)
    np.testing.assert_allclose(y[5:], near, rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_batches_and_single_precision(name):
    function, k = CASES[name]
    rows = np.random.default_rng(4).normal(size=(6, 9))
    together = jax.vmap(lambda x: function(x, k, UPPER, 1.0))(rows)
    alone = jnp.stack([function(row, k, UPPER, 1.0) for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-14)
    single = [jnp.asarray(value, jnp.float32) for value in (SCORES, k, UPPER, 1.0)]
    y = function(*single)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, function(SCORES, k, UPPER, 1.0), atol=3e-6)


@pytest.mark.parametrize(
    ("call", "said"),
    (
        (lambda: dc.limited_multi_label(jnp.zeros((2, 3)), 1), "shape \\(n,\\)"),
        (lambda: dc.limited_multi_label(jnp.zeros(3), 4), "`k` must lie in"),
        (lambda: dc.limited_multi_label(jnp.zeros(3), 1, 0.0), "must be positive"),
        (lambda: dc.limited_multi_label(jnp.zeros(3), jnp.ones(3)), "one number"),
        (lambda: dc.constrained_softmax(jnp.zeros(3), 0.1), "sum to"),
        (lambda: dc.constrained_sparsemax(jnp.zeros(3), jnp.ones(2)), "`upper` must have shape"),
        (lambda: dc.constrained_softmax(jnp.zeros(3), -jnp.ones(3)), "not be negative"),
        (lambda: dc.constrained_softmax(jnp.array([0.0, -jnp.inf]), 0.5), "sum to"),
        (lambda: dc.constrained_softmax(jnp.zeros(3), jnp.inf, jnp.inf), "`k` must lie in"),
        (lambda: dc.constrained_sparsemax(jnp.array([0.0, jnp.inf]), 1.0), "must be finite"),
    ),
)
def test_misuse(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_scores_that_a_temperature_makes_infinite_keep_the_sum():
    found = dc.limited_multi_label(jnp.array([1e300, 1.0, -1e300]), 1, 1e-10)
    np.testing.assert_allclose(found, [1.0, 0.0, 0.0], atol=1e-300)
    single = lambda *values: jnp.array(values, jnp.float32)
    found = dc.limited_multi_label(single(1e30, 1.0, 2.0), jnp.float32(2), jnp.float32(1e-10))
    np.testing.assert_allclose(found, [1.0, 0.0, 1.0], atol=1e-30)
    one = jnp.float32(1)
    found = dc.constrained_softmax(single(jnp.inf, 1e12, 0.0), one, one)
    np.testing.assert_array_equal(found, [1.0, 0.0, 0.0])


def test_what_is_wrong_and_only_known_later_is_nan():
    x = jnp.zeros(3)
    for function in (dc.constrained_softmax, dc.constrained_sparsemax):
        assert jnp.all(jnp.isnan(jax.jit(function)(x, 0.1)))
        assert jnp.all(jnp.isnan(jax.jit(function)(x, 1.0, -1.0)))
        assert jnp.all(jnp.isnan(jax.jit(function)(x, jnp.inf, jnp.inf)))
        assert jnp.all(jnp.isnan(jax.jit(function)(x.at[:2].set(-jnp.inf), 0.5, 1.0)))
    assert jnp.all(jnp.isnan(jax.jit(dc.limited_multi_label)(x, 4.0)))
    assert jnp.all(jnp.isnan(jax.jit(dc.limited_multi_label)(x, 1.0, -1.0)))
    assert jnp.all(jnp.isnan(jax.jit(dc.limited_multi_label)(x.at[1].set(jnp.nan), 1.0)))
