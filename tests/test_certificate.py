"""Certificates and the gradient doctor, on good points and on points made bad on purpose."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol.systems import Clamped, Pendulum, pendulum

PROBLEM = pendulum.problem(horizon=20)
STARTS = jax.vmap(pendulum.start)(jax.random.split(jax.random.key(3), 8))


def certificates(problem, solutions):
    return jax.vmap(lambda x0, s: dc.certify(problem, x0, s))(STARTS, solutions)


def solved(problem, solver=dc.DDP()):
    return jax.vmap(lambda x0: dc.solve(problem, x0, solver, throw=False))(STARTS)


def test_good_points_are_trusted():
    c = certificates(PROBLEM, solved(PROBLEM))
    assert np.all(c.trustworthy) and np.all(c.gradient_error < 1e-5)
    assert np.all(c.stationarity <= 1e-8) and np.all(c.smallest_curvature > 0)
    assert np.all(c.bound_violation == 0) and np.all(c.dynamics_gap < 1e-12)
    assert "8 of 8" in str(c)


def test_points_stopped_early_are_not():
    stopped = solved(PROBLEM, dc.DDP(max_iterations=1))
    c = certificates(PROBLEM, stopped)
    unfinished = np.asarray(stopped.stats.stationarity) > 1e-4
    assert unfinished.sum() >= 4 and not np.any(np.asarray(c.trustworthy)[unfinished])


def test_a_maximiser_is_not():
    hanging = jnp.array([-1.0, 0.0, 0.0])
    saddle = dc.solve(PROBLEM, hanging, throw=False)
    assert saddle.result == dc.RESULTS.indefinite
    c = dc.certify(PROBLEM, hanging, saddle)
    assert not c.trustworthy and c.smallest_curvature < 0 and "saddle" in str(c)


def test_a_kink_is_not():
    """Saturation inside the model, at the very bound of the problem: a halved derivative."""
    model = Clamped(Pendulum(), pendulum.bounds())
    problem = pendulum.problem(horizon=20, dynamics=model)
    solutions = solved(problem)
    c = certificates(problem, solutions)
    at_bound = np.any(np.abs(np.asarray(solutions.controls)) >= 2.0, axis=(1, 2))
    assert at_bound.sum() >= 3 and not np.any(np.asarray(c.trustworthy)[at_bound])


def quadratic(target, bound=1.0):
    """`min (u - target)^2 / 2` over `u <= bound`: everything about it is known."""
    return dc.ControlProblem(
        dynamics=lambda x, u, t: x,
        stage_cost=lambda x, u, t: 0.5 * jnp.sum((u - target) ** 2) + 0.0 * jnp.sum(x),
        terminal_cost=lambda x: 0.5 * x @ x,
        horizon=1,
        control_size=1,
        control_bounds=dc.Bounds(-jnp.inf, bound),
    )


def test_a_weakly_active_bound_is_not():
    x0 = jnp.ones(1)
    exactly = dc.certify(quadratic(1.0), x0, dc.solve(quadratic(1.0), x0))
    assert not exactly.trustworthy and exactly.strict_complementarity_margin < 1e-6
    assert "free and clamped" in str(exactly)
    for target, curvature in ((0.5, 1.0), (2.0, np.inf)):
        c = dc.certify(quadratic(target), x0, dc.solve(quadratic(target), x0))
        assert c.trustworthy and c.strict_complementarity_margin > 0.1
        np.testing.assert_allclose(c.smallest_curvature, curvature)


def test_broken_dynamics_and_bounds_are_measured():
    x0 = STARTS[0]
    solution = dc.solve(PROBLEM, x0)
    gap = eqx.tree_at(lambda s: s.states, solution, solution.states.at[3, 1].add(0.1))
    c = dc.certify(PROBLEM, x0, gap)
    relative = 0.1 / (1.0 + abs(solution.states[3, 1] + 0.1))
    assert c.dynamics_gap >= relative - 1e-9 and not c.trustworthy
    outside = eqx.tree_at(lambda s: s.controls, solution, solution.controls + 5.0)
    c = dc.certify(PROBLEM, x0, outside)
    assert c.bound_violation >= 0.5 and not c.trustworthy


def test_complementarity_of_a_one_sided_bound():
    """A control at 1.5 over its bound of 1, where the gradient is 1.5 - 2."""
    x0, problem = jnp.ones(1), quadratic(2.0)
    solution = dc.solve(problem, x0)
    assert dc.certify(problem, x0, solution).complementarity == 0.0
    outside = eqx.tree_at(lambda s: s.controls, solution, solution.controls + 0.5)
    np.testing.assert_allclose(dc.certify(problem, x0, outside).complementarity, 0.5 * 0.5)


@pytest.mark.slow
def test_what_is_trusted_in_single_precision_is_right():
    single = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf, PROBLEM
    )

    def loss(problem, x0):
        solution = dc.solve(problem, x0, throw=False)
        return jnp.sin(1.0 + jnp.arange(20)) @ solution.controls[:, 0], solution

    def judged(problem, x0, nudge):
        gradient, solution = eqx.filter_grad(loss, has_aux=True)(problem, x0)
        moved = eqx.tree_at(lambda s: s.controls, solution, solution.controls * (1 - nudge))
        return gradient, dc.certify(problem, x0, moved).trustworthy

    run = jax.vmap(judged, in_axes=(None, 0, None))
    exact, _ = run(PROBLEM, STARTS, 0.0)
    gradient, trusted = run(single, STARTS.astype(jnp.float32), 0.0)
    largest = lambda leaf: np.max(np.abs(leaf).reshape(8, -1), axis=1)
    error = lambda a, b: largest(a - b) / np.maximum(largest(a), 1e-9)
    errors = np.max(jax.tree.leaves(jax.tree.map(error, exact, gradient)), axis=0)
    assert trusted.dtype == bool and trusted.sum() >= 4
    assert np.all(errors[trusted] <= 1e-3)
    assert not np.any(run(single, STARTS.astype(jnp.float32), 0.02)[1])


@pytest.mark.parametrize("scale", [1e-4, 1e6])
def test_the_unit_of_cost_does_not_decide_what_is_clamped(scale):
    cost = pendulum.cost()
    scaled = eqx.tree_at(lambda p: p.stage_cost.weights, PROBLEM, scale * cost.weights)
    plain = jax.jacrev(lambda b: _controls(PROBLEM, b))(2.0)
    other = jax.jacrev(lambda b: _controls(scaled, b))(2.0)
    np.testing.assert_allclose(other, plain, atol=1e-4 * np.max(np.abs(plain)))


def _controls(problem, bound):
    problem = eqx.tree_at(lambda p: p.control_bounds, problem, dc.Bounds(-bound, bound))
    return dc.solve(problem, STARTS[1], dc.DDP(tolerance=1e-9), throw=False).controls


def test_the_doctor_passes_the_exact_gradient_and_fails_the_gauss_newton_one(tmp_path):
    problem = pendulum.problem(horizon=8)
    start = jnp.array([jnp.cos(0.6), jnp.sin(0.6), 0.3])
    good = dc.testing.check_gradients(problem, start, entries_per_leaf=3)
    assert good.passed and "PASSED" in str(good)
    good.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    free = eqx.tree_at(lambda p: p.control_bounds, problem, dc.Bounds(-50.0, 50.0))
    bad = dc.testing.check_gradients(
        free, start, adjoint=dc.GaussNewtonAdjoint(), entries_per_leaf=2
    )
    assert not bad.passed and "WRONG" in str(bad)


def test_values_that_functions_see_may_be_replaced():
    gain = 1.0

    def dynamics(x, u, t):
        return x + gain * u

    problem = dc.ControlProblem(
        dynamics=dynamics, stage_cost=dc.GoalCost([1, 0.1], [0]), horizon=3, control_size=1
    )
    before = dc.solve(problem, [1.0]).cost
    gain = 2.0
    after = dc.solve(problem, [1.0]).cost
    fresh = dc.ControlProblem(
        dynamics=lambda x, u, t: x + 2.0 * u,
        stage_cost=dc.GoalCost([1, 0.1], [0]),
        horizon=3,
        control_size=1,
    )
    assert before != after
    np.testing.assert_allclose(after, dc.solve(fresh, [1.0]).cost)
