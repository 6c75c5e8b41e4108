"""The linear-quadratic regulator: dense solution, gradients of every input, bad data."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc

T, n, m = 5, 3, 2
rng = np.random.default_rng(0)
ROOT = rng.normal(size=(T, n + m, n + m))
PROBLEM = dc.LinearQuadraticProblem(
    C=np.einsum("tij,tkj->tik", ROOT, ROOT) + np.eye(n + m),
    c=rng.normal(size=(T, n + m)),
    F=rng.normal(size=(T, n, n + m)),
    f=rng.normal(size=(T, n)),
    C_terminal=2 * np.eye(n),
    c_terminal=rng.normal(size=n),
)
X0 = jnp.asarray(rng.normal(size=n))
WEIGHTS = [jnp.asarray(rng.normal(size=s)) for s in ((T + 1, n), (T, m), (T + 1, n), (T, m, n))]
LEAVES = ("C", "c", "F", "f", "C_terminal", "c_terminal")


@eqx.filter_jit
def loss(problem, x0):
    s = dc.lqr(problem, x0)
    fields = (s.states, s.controls, s.costates, s.gains)
    return sum(jnp.sum(w * a) for w, a in zip(WEIGHTS, fields, strict=True)) + s.cost


def along(name, direction, step):
    moved = lambda p: getattr(p, name)
    return loss(eqx.tree_at(moved, PROBLEM, moved(PROBLEM) + step * direction), X0)


def test_equals_the_general_solver():
    stages = PROBLEM
    general = dc.ControlProblem(
        dynamics=lambda x, u, t: stages.F[t] @ jnp.concatenate([x, u]) + stages.f[t],
        stage_cost=dc.QuadraticCost(stages.C, stages.c),
        terminal_cost=lambda x: 0.5 * x @ stages.C_terminal @ x + stages.c_terminal @ x,
        horizon=T,
        control_size=m,
    )
    exact, other = dc.lqr(PROBLEM, X0), dc.solve(general, X0)
    for field in ("states", "controls", "costates", "gains", "cost"):
        np.testing.assert_allclose(getattr(exact, field), getattr(other, field), atol=1e-9)
    assert exact.stats.stationarity < 1e-12


@pytest.mark.parametrize("name", LEAVES)
def test_gradient_equals_differences(name):
    direction = jnp.asarray(np.random.default_rng(1).normal(size=getattr(PROBLEM, name).shape))
    gradient = getattr(eqx.filter_grad(loss)(PROBLEM, X0), name)
    h = 1e-5
    difference = (along(name, direction, h) - along(name, direction, -h)) / (2 * h)
    assert abs(difference) > 1e-3
    np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-6)


def test_gradient_of_C_is_symmetric_and_of_x0_is_right():
    gradient = eqx.filter_grad(loss)(PROBLEM, X0)
    np.testing.assert_allclose(gradient.C, jnp.swapaxes(gradient.C, 1, 2), atol=1e-12)
    only_x0 = jax.grad(lambda x0: loss(PROBLEM, x0))(X0)
    h = 1e-6 * jnp.eye(n)
    difference = [(loss(PROBLEM, X0 + e) - loss(PROBLEM, X0 - e)) / 2e-6 for e in h]
    np.testing.assert_allclose(only_x0, difference, rtol=1e-6)


def test_forward_mode_and_second_derivatives():
    v = jnp.asarray(np.random.default_rng(2).normal(size=n))
    slope = jax.jvp(lambda x0: loss(PROBLEM, x0), (X0,), (v,))[1]
    np.testing.assert_allclose(slope, jax.grad(lambda x0: loss(PROBLEM, x0))(X0) @ v, rtol=1e-9)
    through_F = lambda s: along("F", jnp.ones_like(PROBLEM.F), s)
    second = jax.grad(jax.grad(through_F))(0.0)
    h = 1e-5
    difference = (jax.grad(through_F)(h) - jax.grad(through_F)(-h)) / (2 * h)
    np.testing.assert_allclose(second, difference, rtol=1e-5)


def test_bad_problems_are_reported():
    concave = eqx.tree_at(lambda p: p.C, PROBLEM, -PROBLEM.C)
    assert dc.lqr(concave, X0, throw=False).result == dc.RESULTS.indefinite
    with pytest.raises(RuntimeError, match="curvature"):
        dc.lqr(concave, X0)
    unknown = jax.jit(lambda c: dc.lqr(eqx.tree_at(lambda p: p.c, PROBLEM, c), X0, throw=False))
    assert unknown(PROBLEM.c * jnp.nan).result == dc.RESULTS.invalid_input
