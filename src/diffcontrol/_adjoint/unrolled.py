"""Derivatives through the iterations of a solver."""

from typing import ClassVar

from .base import AbstractAdjoint, Solved, exact_factors


class UnrolledAdjoint(AbstractAdjoint):
    """Automatic differentiation through a fixed number of iterations.

    Runs `max_iterations` of the solver, finished samples frozen; time and memory of the backward
    pass grow with that number. The derivative is that of what was computed: at a converged point
    it approaches the exact one, before that it includes the dependence on the guess. For
    comparison, and for planners that make no promise of stationarity.
    """

    needs_stationarity: ClassVar[bool] = False

    def solve(self, problem, x0, controls, *, until_done, fixed):
        point, outcome = fixed(problem, x0, controls)
        return Solved(point, outcome, exact_factors(problem, point))
