"""Derivatives through the iterations of a solver."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array

from .._control_problem import StageProblem
from .base import AbstractAdjoint, Run, Solved, moving


class UnrolledAdjoint(AbstractAdjoint):
    """Automatic differentiation through the iterations.

    The derivative is that of what was computed, and so includes the dependence on the guess. From
    a guess near the solution one iteration of `DDP` gives nearly the exact derivative; but a solver
    that tests for convergence takes none from there, so use `fixed_iterations`. Time and memory of
    the backward pass grow with `max_iterations`; without differentiation it costs nothing.

    Args:
        checkpoint: keep only what is handed from iteration to iteration, and compute the inside of
            each again in the backward pass: less memory for one more forward pass.
    """

    checkpoint: bool = False

    needs_stationarity: ClassVar[bool] = False

    def solve(self, problem, x0, controls, *, until_done, fixed):
        return _run(
            problem, x0, controls, until_done, eqx.Partial(fixed, checkpoint=self.checkpoint)
        )


@eqx.filter_custom_jvp
def _run(problem: StageProblem, x0: Array, controls: Array, until_done: Run, fixed: Run) -> Solved:
    return until_done(problem, x0, controls)


@_run.def_jvp
def _run_jvp(primals, tangents):
    problem, x0, controls, _, fixed = primals
    solved, d_solved = eqx.filter_jvp(fixed, (problem, x0, controls), tangents[:3])
    return solved, moving(solved, d_solved.point)
