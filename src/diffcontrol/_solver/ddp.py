"""Differential dynamic programming with control bounds."""

from typing import ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from .._control_problem import StageProblem
from .._iterate import AbstractSolver, Outcome
from .._optimality import Point
from . import box_ddp
from .settings import check_settings, default_tolerance

_CURVATURES = (1.0, 0.0)


class DDP(AbstractSolver):
    """Box-constrained DDP: the exact Hessian of the Lagrangian where it is safe.

    Where some stage's free control Hessian is not positive definite the iteration of that sample
    falls back to the Gauss-Newton Hessian of `ILQR`. Converges quadratically near a strict
    minimum, so few iterations are needed.

    Args:
        tolerance: bound on the relative stationarity at the returned point; None is 1e-8 in
            float64 and 1e-4 in float32.
        max_iterations: iterations before `RESULTS.not_converged`.

    Raises:
        ValueError: for a negative tolerance or fewer than one iteration.

    Source: Tassa, Mansard and Todorov, Control-limited differential dynamic programming, ICRA
    2014; curvature from the costates of the current trajectory.
    """

    promises_stationarity: ClassVar[bool] = True
    tolerance: float | None = eqx.field(static=True, default=None)
    max_iterations: int = eqx.field(static=True, default=500)

    def __check_init__(self):
        check_settings("DDP", self.tolerance, self.max_iterations)

    def init(self, problem: StageProblem, x0: Array, controls: Float[Array, "T m"]):
        return self._loop(x0).init(problem, x0, controls)

    def step(self, problem, x0, state):
        return self._loop(x0).step(problem, state)

    def differentiable_step(self, problem, x0, state):
        return self._loop(x0).differentiable_step(problem, state)

    def finish(self, problem, x0, state) -> tuple[Point, Outcome]:
        return box_ddp.finish(state)

    def _loop(self, x0: Array) -> box_ddp.BoxDDPStep:
        tolerance = default_tolerance(self.tolerance, x0.dtype)
        return box_ddp.BoxDDPStep(_CURVATURES, tolerance, self.max_iterations)
