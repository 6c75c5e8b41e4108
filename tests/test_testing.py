"""The published checks pass what is right and fail what is wrong."""

from typing import ClassVar

import equinox as eqx
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
