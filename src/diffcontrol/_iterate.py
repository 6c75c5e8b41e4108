"""What a solver is, and the two ways to run one: until it is done, or a fixed number of steps.

A solver knows how to start, how to take one step and how to read the answer off its state. It
holds no derivative: adjoints differentiate the optimality conditions, or the fixed run below.
"""

import abc
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ._control_problem import StageProblem
from ._optimality import Point
from ._result import RESULTS
from ._solution import Stats
from ._tree import select


class Outcome(eqx.Module):
    """How a run ended: one of `RESULTS`, and the numbers behind it."""

    result: RESULTS
    stats: Stats


class AbstractSolver(eqx.Module):
    """An algorithm that looks for an optimal trajectory from a guess of the controls.

    `promises_stationarity` says whether a successful run satisfies the optimality conditions, so
    that an implicit adjoint may differentiate them.
    """

    promises_stationarity: eqx.AbstractClassVar[bool]
    max_iterations: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init(self, problem: StageProblem, x0: Array, controls: Float[Array, "T m"]) -> Any:
        """The state before the first step. Every state has a boolean field `running`."""

    @abc.abstractmethod
    def step(self, problem: StageProblem, x0: Array, state: Any) -> Any:
        """One step, as fast as possible. Need not be differentiable."""

    @abc.abstractmethod
    def differentiable_step(self, problem: StageProblem, x0: Array, state: Any) -> Any:
        """The same step with what it chose by search held constant under differentiation."""

    @abc.abstractmethod
    def finish(self, problem: StageProblem, x0: Array, state: Any) -> tuple[Point, Outcome]:
        """The answer."""


def run_until_done(
    solver: AbstractSolver, problem: StageProblem, x0: Array, controls: Array
) -> tuple[Point, Outcome]:
    """Step until the state says stop. Cannot be differentiated in reverse mode, by design."""
    state = jax.lax.while_loop(
        lambda state: state.running,
        lambda state: solver.step(problem, x0, state),
        solver.init(problem, x0, controls),
    )
    return solver.finish(problem, x0, state)


def run_fixed(
    solver: AbstractSolver, problem: StageProblem, x0: Array, controls: Array
) -> tuple[Point, Outcome]:
    """A plain scan over `max_iterations` steps, with the state frozen once it says stop."""

    def step(state, _):
        return select(state.running, solver.differentiable_step(problem, x0, state), state), None

    start = solver.init(problem, x0, controls)
    state, _ = jax.lax.scan(step, start, length=solver.max_iterations)
    return solver.finish(problem, x0, state)
