"""Iterative linear-quadratic regulator with control bounds: the algorithm of both papers."""

from typing import ClassVar

from .box_ddp import BoxDDP


class ILQR(BoxDDP):
    """Box-constrained iLQR: Gauss-Newton, the curvature of the dynamics is dropped.

    Its steps need no second derivatives of the dynamics. It converges linearly, at a rate that is
    poor where costates and curvature are large; `DDP` then needs far fewer iterations.

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
    2014; DiffMPC (Amos et al. 2018), module 2.
    """

    exact: ClassVar[bool] = False
