"""What an adjoint is."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._control_problem import StageProblem
from .._expansion import exact_system
from .._kernel.riccati import Factorisation, System, factor
from .._optimality import Clamped, Point, clamped, control_gradient, linearise
from .._tree import stop_gradient

# (problem, x0, controls) -> Solved
Run = Callable[[StageProblem, Array, Array], "Solved"]


class Solved(eqx.Module):
    """A solver's answer, and at it the exact KKT matrix, factorised.

    `outcome` is whatever the run returned beside the point. Only `point` carries a derivative;
    where that of `system` is wanted use `known_system`.
    """

    point: Point
    outcome: Any
    held: Clamped
    system: System
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


def solved_at(problem: StageProblem, point: Point, outcome: Any) -> Solved:
    """What a run found, expanded and factorised; only the point has a derivative."""
    fixed_problem, fixed = stop_gradient((problem, point))
    held = held_controls(fixed_problem, fixed)
    system = exact_system(fixed_problem, fixed, held)
    return Solved(point, outcome, held, system, factor(system))


def moving(solved: Solved, d_point: Point) -> Solved:
    """The tangent of an answer whose point moves along `d_point`."""
    none = lambda tree: jax.tree.map(lambda _: None, tree)
    return Solved(
        d_point, none(solved.outcome), none(solved.held), none(solved.system), none(solved.factors)
    )


@eqx.filter_custom_jvp
def known_system(system: System, problem: StageProblem, point: Point, held: Clamped) -> System:
    """`exact_system(problem, point, held)` where its value is known already.

    It has the derivatives of `exact_system`. Most programs never ask for them, and so expand the
    problem at its solution once.
    """
    return system


@known_system.def_jvp
def _known_system_jvp(primals, tangents):
    system, problem, point, held = primals
    _, d_problem, d_point, _ = tangents
    _, d_system = eqx.filter_jvp(
        lambda problem, point: exact_system(problem, point, held),
        (problem, point),
        (d_problem, d_point),
    )
    return known_system(system, problem, point, held), d_system
