"""Value functions: first and second derivatives, their price, and what cannot be solved."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import diffcontrol as dc
from diffcontrol._kernel import native
from tests.problems import BY_NAME, TIGHT
from tests.problems import solution as solved

SOLVER = dc.DDP(tolerance=TIGHT)

# Of the pendulum and of `two_controls` bounds are active; one stage leaves `q_value` nothing to
# solve for. The first control lies within the bounds or, last, beyond them.
FIRST = {
    ("value", "pendulum"): None,
    ("value", "two_controls"): None,
    ("q_value", "pendulum"): [-1.0],
    ("q_value", "one_stage"): [0.1, -0.4, 0.7],
    ("q_value", "two_controls"): [0.9, 0.3],
}
# Two show what there is to see, at less cost than all.
both = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in list(FIRST)[::3] else [pytest.mark.slow])
        for name in FIRST
    ],
    ids=lambda name: "-".join(name),
)


def parameters(name):
    """Everything the value depends on as one vector, and the way back."""
    case, first = BY_NAME[name[1]], FIRST[name]
    return ravel_pytree((case.theta, case.x0, jnp.asarray(first or [], float)))


def value_of(name, flat):
    theta, x0, u0 = parameters(name)[1](flat)
    problem = BY_NAME[name[1]].build(theta)
    if name[0] == "value":
        return dc.value(problem, x0, SOLVER)
    return dc.q_value(problem, x0, u0, SOLVER)


def cost_of(name, flat):
    """The same without the envelope: what `solve` returns, of a problem with a fixed control."""
    theta, x0, u0 = parameters(name)[1](flat)
    problem = BY_NAME[name[1]].build(theta)
    if name[0] == "q_value":
        shape = (problem.horizon, problem.control_size)
        sides = (problem.control_bounds.lower, problem.control_bounds.upper)
        fixed = [jnp.broadcast_to(side, shape).at[0].set(u0) for side in sides]
        problem = eqx.tree_at(lambda p: p.control_bounds, problem, dc.Bounds(*fixed))
    return dc.solve(problem, x0, SOLVER).cost


@functools.cache
def derivatives(name):
    """Value, gradient, and by how much both change along a direction."""

    def compute(function, flat, direction):
        of = jax.value_and_grad(functools.partial(function, name))
        (value, gradient), (slope, product) = jax.jvp(of, (flat,), (direction,))
        return dict(value=value, slope=slope, gradient=gradient, product=product)

    return jax.jit(compute, static_argnums=0)


def point_and_direction(name):
    flat = parameters(name)[0]
    direction = np.random.default_rng(0).normal(size=flat.shape)
    return flat, jnp.asarray(direction) * jnp.maximum(0.1, jnp.abs(flat))


@both
def test_derivatives_equal_those_of_the_cost_of_a_solution(name):
    point = point_and_direction(name)
    found, generic = (derivatives(name)(of, *point) for of in (value_of, cost_of))
    for key, expected in generic.items():
        scale = np.abs(expected).max()
        assert scale > 1e-3
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=1e-10 * scale, err_msg=key)


@both
def test_derivatives_equal_differences(name):
    flat, direction = point_and_direction(name)
    at = lambda s: derivatives(name)(value_of, flat + s * direction, direction)
    found, h = at(0.0), 1e-3
    # Central differences at h and 2h, combined to fourth order: an error of about 1e-11.
    rows = {s: at(s * h) for s in (-2, -1, 1, 2)}
    apart = lambda key, s: (rows[s][key] - rows[-s][key]) / (2 * s * h)
    difference = lambda key: (4 * apart(key, 1) - apart(key, 2)) / 3
    np.testing.assert_allclose(found["gradient"] @ direction, difference("value"), rtol=1e-7)
    scale = np.abs(found["product"]).max()
    np.testing.assert_allclose(found["product"], difference("gradient"), atol=1e-7 * scale)


def test_first_derivatives_are_costates_and_multipliers():
    case = BY_NAME["pendulum"]
    solution = solved("pendulum")
    build, theta = case.build, case.theta
    by_problem, by_x0 = jax.jit(
        jax.grad(lambda bounds, x0: dc.value(build(theta | bounds), x0, SOLVER), argnums=(0, 1))
    )({side: theta[side] for side in ("lower", "upper")}, case.x0)
    np.testing.assert_allclose(by_x0, solution.costates[0], rtol=1e-9)
    held = solution.multipliers
    assert (held < 0).any() and (held > 0).any()
    np.testing.assert_allclose(by_problem["upper"], -held[held > 0].sum(), rtol=1e-9)
    np.testing.assert_allclose(by_problem["lower"], -held[held < 0].sum(), rtol=1e-9)


def test_at_the_optimal_control_the_two_agree():
    case, solution = BY_NAME["two_controls"], solved("two_controls")
    q_value = lambda u0: dc.q_value(case.problem, case.x0, u0, SOLVER)
    q, slope = jax.jit(jax.value_and_grad(q_value))(jnp.asarray(solution.controls[0]))
    np.testing.assert_allclose(q, solution.cost, rtol=1e-14)
    assert solution.multipliers[0, 0] != 0 and solution.multipliers[0, 1] == 0
    np.testing.assert_allclose(slope, -solution.multipliers[0], rtol=1e-9, atol=1e-9)


n, m, T = 3, 2, 6
rng = np.random.default_rng(0)
A, B = jnp.eye(n) + 0.3 * rng.normal(size=(n, n)), jnp.asarray(rng.normal(size=(n, m)))
ROOT = rng.normal(size=(n + m, n + m))
C, LAST = ROOT @ ROOT.T + jnp.eye(n + m), jnp.diag(jnp.array([1.0, 2.0, 3.0]))


def linear_quadratic(bounds=None):
    return dc.ControlProblem(
        dynamics=lambda x, u, t: A @ x + B @ u,
        stage_cost=dc.QuadraticCost(C),
        terminal_cost=lambda x: 0.5 * x @ LAST @ x,
        horizon=T,
        control_size=m,
        control_bounds=bounds,
    )


def test_linear_quadratic_values_equal_a_dense_oracle():
    """All controls at once: the cost is 1/2 z'H z with z = (x0, u_0, ..., u_T-1)."""
    at = np.eye(n, n + T * m)
    H = np.zeros((n + T * m, n + T * m))
    for t in range(T):
        control = np.eye(m, n + T * m, k=n + t * m)
        tau = np.concatenate([at, control])
        H += tau.T @ C @ tau
        at = A @ at + B @ control
    H += at.T @ LAST @ at

    def reduced(k):  # the Schur complement that minimises over all but the first k
        return H[:k, :k] - H[:k, k:] @ np.linalg.solve(H[k:, k:], H[k:, :k])

    x0, u0 = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, -0.8])
    start = np.concatenate([x0, u0])
    problem = linear_quadratic()
    value = lambda x0: dc.value(problem, x0)
    q_value = lambda start: dc.q_value(problem, start[:n], start[n:])
    for function, at, hessian in ((value, x0, reduced(n)), (q_value, start, reduced(n + m))):
        derivatives = (function, jax.grad(function), jax.hessian(function))
        of_zero, of_one, of_two = jax.jit(lambda at, d=derivatives: [f(at) for f in d])(at)
        np.testing.assert_allclose(of_zero, 0.5 * at @ hessian @ at, rtol=1e-10)
        np.testing.assert_allclose(of_one, hessian @ at, rtol=1e-8)
        np.testing.assert_allclose(of_two, hessian, rtol=1e-8)


def test_the_value_of_a_convex_problem_is_convex():
    problem = linear_quadratic(dc.Bounds(-0.5, 0.4))
    ends = jnp.asarray(rng.normal(size=(2, 20, n)))
    values = jax.jit(jax.vmap(lambda x0: dc.value(problem, x0)))
    left, right, middle = values(ends[0]), values(ends[1]), values(ends.mean(axis=0))
    assert jnp.all(middle < (left + right) / 2)


SMALL = dc.ControlProblem(
    dynamics=lambda x, u, t: 0.9 * x + jnp.sin(u),
    stage_cost=dc.QuadraticCost(jnp.eye(2)),
    terminal_cost=lambda x: jnp.cosh(x[0]),
    horizon=3,
    control_size=1,
    control_bounds=dc.Bounds(-1.0, 1.0),
)


@functools.cache
def small_gradient(most):
    """Value and slope of a small problem by `x0` and `u0`, in at most so many iterations."""
    solver = dc.DDP(max_iterations=most)
    function = lambda x0, u0: dc.q_value(SMALL, x0, u0, solver, throw=False)
    return jax.value_and_grad(function, argnums=(0, 1))


def test_vmap_equals_loop():
    starts = jnp.asarray(rng.normal(size=(2, 3, 1)))
    together = jax.jit(jax.vmap(small_gradient(100)))(*starts)
    alone = jax.jit(lambda *starts: jax.lax.map(lambda s: small_gradient(100)(*s), starts))
    for a, b in zip(*map(jax.tree.leaves, (together, alone(*starts))), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def test_forward_equals_reverse_in_every_order():
    function = lambda start: dc.q_value(SMALL, start[:1], start[1:], SOLVER)
    start = jnp.array([1.3, 0.4])
    forward, reverse = jax.jacfwd, jax.jacrev
    slopes = jax.jit(lambda start: [mode(function)(start) for mode in (forward, reverse)])
    np.testing.assert_allclose(*slopes(start), rtol=1e-12)
    pairs = ((forward, forward), (forward, reverse), (reverse, forward), (reverse, reverse))
    found = jax.jit(lambda start: [outer(inner(function))(start) for outer, inner in pairs])
    first, *others = found(start)
    assert jnp.abs(first).min() > 1e-3
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-10)


def test_float32():
    single = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_array(a) else a, SMALL)
    x0 = jnp.array([1.3])
    wide = jax.value_and_grad(lambda x0: dc.value(SMALL, x0))(x0)
    found = jax.value_and_grad(lambda x0: dc.value(single, x0))(x0.astype(jnp.float32))
    for narrow, exact in zip(found, wide, strict=True):
        assert narrow.dtype == jnp.float32
        np.testing.assert_allclose(narrow, exact, rtol=1e-4)


@pytest.mark.skipif(native.library() is None, reason="no compiled kernel here")
def test_the_gradient_needs_no_linear_solve():
    """Kernels of the compiled programs: the envelope adds none, the general derivative one."""
    x0 = jnp.array([2.0])

    def kernels(function):
        program = jax.jit(function).lower(x0).compile().as_text()
        return sorted(re.findall(r'"(diffcontrol_\w+)"', program))

    value = lambda x0: dc.value(SMALL, x0)
    cost = lambda x0: dc.solve(SMALL, x0).cost
    of_value = kernels(value)
    assert of_value and kernels(jax.value_and_grad(value)) == of_value
    assert kernels(lambda x0: jax.jvp(value, (x0,), (x0,))) == of_value
    assert len(kernels(jax.value_and_grad(cost))) > len(kernels(cost))


def test_a_failed_sample_is_nan_throughout_and_alone():
    # From the origin the guess of zero is optimal; from elsewhere one iteration is not enough.
    x0s, u0s = jnp.array([[0.0], [2.0]]), jnp.array([[0.0], [0.5]])
    values, slopes = jax.jit(jax.vmap(small_gradient(1)))(x0s, u0s)
    assert jnp.isfinite(values[0]) and all(jnp.isfinite(slope[0]) for slope in slopes)
    assert jnp.isnan(values[1]) and all(jnp.isnan(slope[1]) for slope in slopes)
    with pytest.raises(RuntimeError, match="stopped before its tolerance"):
        dc.q_value(SMALL, x0s[1], u0s[1], dc.DDP(max_iterations=1))


def test_a_saddle_has_no_value():
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x + u,
        stage_cost=lambda x, u, t: u[0] ** 2 - x[0] ** 2,
        terminal_cost=lambda x: -2 * x[0] ** 2,
        horizon=2,
        control_size=1,
    )
    assert jnp.isnan(dc.value(problem, [0.0], throw=False))
    with pytest.raises(RuntimeError, match="saddle"):
        dc.value(problem, [0.0])


def test_u0_beyond_its_bounds_is_applied_as_it_is():
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x + u,
        stage_cost=dc.QuadraticCost(jnp.eye(2)),
        terminal_cost=lambda x: 0.5 * x @ x,
        horizon=1,
        control_size=1,
        control_bounds=dc.Bounds(-1.0, 1.0),
    )
    x0, u0 = jnp.array([2.0]), jnp.array([3.0])
    by_problem, by_u0 = eqx.filter_jit(
        eqx.filter_grad(lambda args: dc.q_value(args[0], x0, args[1]))
    )((problem, u0))
    assert dc.q_value(problem, x0, u0) == 0.5 * (4 + 9 + 25)
    np.testing.assert_allclose(by_u0, u0 + x0 + u0)
    assert by_problem.control_bounds.lower == by_problem.control_bounds.upper == 0.0


@pytest.mark.parametrize(
    ("arguments", "settings", "complaint"),
    [
        (([0.0], [[1.0]]), {}, "`u0` must have shape"),
        (([0.0], [jnp.nan]), {}, "`u0\\[0\\]` holds NaN|`u0` holds NaN"),
        (([jnp.nan], [1.0]), {}, "`x0` holds NaN"),
        (([0.0], [1.0]), {"solver": dc.DDP(fixed_iterations=2)}, "envelope"),
        (([0.0], [1.0]), {"guess": [0.0]}, "`guess` must hold"),
    ],
    ids=["shape", "nan control", "nan state", "fixed iterations", "guess"],
)
def test_refusals(arguments, settings, complaint):
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x + u,
        stage_cost=dc.QuadraticCost(jnp.eye(2)),
        horizon=2,
        control_size=1,
    )
    with pytest.raises(ValueError, match=complaint):
        dc.q_value(problem, *arguments, **settings)


@pytest.fixture
def without_annotation_checks():
    """As users run it; under pytest the check of annotations would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_wrong_types(without_annotation_checks):
    for settings, complaint in (
        ({"solver": "DDP"}, "`solver` must be"),
        ({"throw": 1}, "`throw` must be"),
    ):
        with pytest.raises(TypeError, match=complaint):
            dc.value(SMALL, jnp.zeros(1), **settings)
