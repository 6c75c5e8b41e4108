"""Differential dynamic programming with control bounds."""

from typing import ClassVar

from .box_ddp import BoxDDP


class DDP(BoxDDP):
    """Box-constrained DDP: the exact Hessian of the Lagrangian where it is safe.

    Where some stage's free control Hessian is not positive definite the iteration of that sample
    falls back to the Gauss-Newton Hessian of `ILQR`, or near a saddle to a positive definite
    neighbour of the exact one. Converges quadratically near a strict
    minimum, so few iterations are needed.

    Args:
        tolerance: bound on the relative stationarity at the returned point; None is 1e-8 in
            float64 and 1e-4 in float32.
        max_iterations: iterations before `RESULTS.not_converged`.
        fixed_iterations: run so many, without a test of convergence, in place of `max_iterations`:
            real-time iteration, for closed loops in which the next solve goes on from this one.
            `RESULTS.fixed_iterations` is then a success and says nothing about the point;
            derivatives come from unrolling. None tests for convergence.

    Raises:
        ValueError: for a negative tolerance, fewer than one iteration, or a tolerance beside
            `fixed_iterations`.

    Source: Tassa, Mansard and Todorov, Control-limited differential dynamic programming, ICRA
    2014; curvature from the costates of the current trajectory. Real-time iteration: Diehl, Bock
    and Schloeder, SIAM J. Control Optim. 43 (2005).
    """

    exact: ClassVar[bool] = True
