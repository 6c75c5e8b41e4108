"""What an adjoint is."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._control_problem import StageProblem
from .._expansion import exact_system
from .._kernel.riccati import Factorisation, factor
from .._optimality import Clamped, Point, clamped, control_gradient, linearise
from .._tree import stop_gradient

# (problem, x0, controls) -> (point, outcome)
Run = Callable[[StageProblem, Array, Array], tuple[Point, Any]]


class Solved(eqx.Module):
    """A solver's answer and the factorised exact Hessian of the Lagrangian at it.

    `outcome` is whatever the run returned beside the point; it and `factors` carry no derivative.
    """

    point: Point
    outcome: Any
    factors: Factorisation

    @property
    def indefinite(self) -> Bool[Array, ""]:
        """Whether some free direction has clearly negative curvature: no minimum."""
        pivots = self.factors.pivots
        return jnp.any(pivots < -jnp.sqrt(jnp.finfo(pivots.dtype).eps))


class AbstractAdjoint(eqx.Module):
    """Runs a solver such that its answer has derivatives.

    `needs_stationarity` says whether the derivative is only right at a stationary point.
    """

    needs_stationarity: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def solve(
        self, problem: StageProblem, x0: Array, controls: Array, *, until_done: Run, fixed: Run
    ) -> Solved:
        """Run, differentiably.

        Args:
            problem, x0, controls: what to solve and the guess.
            until_done: runs until the solver says stop; has no derivative.
            fixed: the same run in a fixed number of steps; has derivatives.
        """


def held_controls(problem: StageProblem, point: Point) -> Clamped:
    """The controls that their bounds hold at `point`; piecewise constant, so no derivative."""
    problem, point = stop_gradient((problem, point))
    linear = linearise(problem, point.states, point.controls)
    cost_part, dynamics_part = control_gradient(linear, point.costates, problem.state_size)
    return clamped(problem, point.controls, cost_part + dynamics_part)


def exact_factors(problem: StageProblem, point: Point) -> Factorisation:
    """Factorise the exact Hessian of the Lagrangian; no derivative."""
    problem, point = stop_gradient((problem, point))
    return factor(exact_system(problem, point, held_controls(problem, point)))
