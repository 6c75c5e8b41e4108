"""The published checks pass what is right and fail what is wrong."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import diffcontrol as dc
from diffcontrol._iterate import Outcome
from diffcontrol._result import RESULTS


class Boaster(dc.DDP):
    """Calls whatever it has after two iterations a success."""

    promises_stationarity: ClassVar[bool] = True
    max_iterations: int = eqx.field(static=True, default=2)

    def finish(self, problem, x0, state):
        point, outcome = super().finish(problem, x0, state)
        return point, Outcome(
            RESULTS.where(jnp.asarray(True), RESULTS.successful, RESULTS.successful), outcome.stats
        )


def test_the_doctor_opens_closures_beside_arrays():
    slope = jnp.asarray([0.2, 0.4])
    A, B = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([0.0, 0.1])
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: A @ x + B * u[0],
        stage_cost=dc.GoalCost([1, 1, 0.1], [0.2, 0.0]) + (lambda x, u, t: slope @ x),
        horizon=4,
        control_size=1,
    )
    report = dc.testing.check_gradients(problem, [1.0, 0.2], entries_per_leaf=2)
    names = {entry.name for entry in report.entries}
    assert report.passed
    assert "problem.stage_cost.closed_over[0][1]" in names
    assert "problem.stage_cost.terms[0].goal[0]" in names
    with pytest.raises(TypeError, match="`x0` must be real"):
        dc.testing.check_gradients(problem, [1j, 0.0])


@pytest.mark.slow
def test_check_solver():
    dc.testing.check_solver(dc.DDP())
    with pytest.raises(AssertionError, match="stationarity"):
        dc.testing.check_solver(Boaster())


@pytest.mark.slow
def test_check_adjoint():
    dc.testing.check_adjoint(dc.ImplicitAdjoint())
    with pytest.raises(AssertionError, match="wrong derivatives"):
        dc.testing.check_adjoint(dc.GaussNewtonAdjoint())


def test_python_numbers_are_named_as_not_differentiated():
    """A number that is no array has no gradient; the doctor says so instead of passing over it."""

    class Spring(eqx.Module):
        stiffness: float
        damping: jax.Array

        def __call__(self, x, u, t):
            return x + 0.1 * jnp.stack([x[1], u[0] - self.stiffness * x[0] - self.damping * x[1]])

    problem = dc.ControlProblem(
        dynamics=Spring(2.0, jnp.asarray(0.1)),
        stage_cost=lambda x, u, t: x @ x + u @ u,
        horizon=3,
        control_size=1,
    )
    report = dc.testing.check_gradients(problem, jnp.ones(2))
    assert report.passed
    assert report.left_out == ["problem.dynamics.stiffness"]
    assert "stiffness" in str(report)
