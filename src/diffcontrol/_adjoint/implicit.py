r"""Derivatives of a solution from the conditions that define it.

Let `G(z; theta) = dL/dz` be the derivative of the Lagrangian (`_optimality.py`) with respect to
`z = (states, controls, costates)`. At a solution `G = 0` on all rows but those of clamped
controls, where `u = b`, the bound. Along a tangent of the parameters (implicit function theorem)

    M dz = -(dG/dtheta) dtheta        M = dG/dz, symmetric, with the stages' structure
    du   = db                          on clamped controls

Clamped controls are known, so their columns go to the right-hand side and their rows and columns
in `M` become those of the identity: the operator stays symmetric and bounds keep their gradient.
Posed as a symmetric linear solve, this rule is its own transpose: reverse mode is one more
Riccati solve, whatever the number of iterations, followed by one vector-Jacobian product of `G`.
The rule calls itself for the solution, so differentiating it again is right too.

Source: mathematics of DiffMPC (Amos et al. 2018, eq. 8), with the exact Hessian in place of its
Gauss-Newton part; equal to the fixed-point derivative of DiLQR (ICML 2025, prop. A.1).
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._control_problem import StageProblem
from .._expansion import exact_system, gauss_newton_system
from .._kernel import riccati
from .._kernel.riccati import Factorisation, System, Unknowns
from .._optimality import Clamped, Point, optimality_residual
from .._tree import stop_gradient
from .base import AbstractAdjoint, Run, Solved, known_system, moving

SystemOf = Callable[[StageProblem, Point, Clamped], System]


class ImplicitAdjoint(AbstractAdjoint):
    """The exact derivative, by the implicit function theorem.

    Forward mode, reverse mode and higher orders; with respect to the initial state and every
    array in dynamics, costs and bounds. The derivative with respect to the guess is zero. Exact at
    a strict local minimum without weakly active bounds; `certify` tells.
    """

    needs_stationarity: ClassVar[bool] = True

    def solve(self, problem, x0, controls, *, until_done, fixed):
        return _solve(problem, x0, stop_gradient(controls), until_done, exact_system)


class GaussNewtonAdjoint(AbstractAdjoint):
    """The 2018 DiffMPC derivative: the curvature of the dynamics is dropped.

    Biased, except where dynamics are affine, costates vanish or every control is clamped. Kept to
    compare with.
    """

    needs_stationarity: ClassVar[bool] = True

    def solve(self, problem, x0, controls, *, until_done, fixed):
        return _solve(problem, x0, stop_gradient(controls), until_done, gauss_newton_system)


@eqx.filter_custom_jvp
def _solve(
    problem: StageProblem, x0: Array, controls: Array, run: Run, system_of: SystemOf
) -> Solved:
    return run(problem, x0, controls)


@_solve.def_jvp
def _solve_jvp(primals, tangents):
    problem, x0, controls, run, system_of = primals
    d_problem, d_x0, *_ = tangents
    solved = _solve(problem, x0, controls, run, system_of)
    point, held = solved.point, solved.held
    if system_of is exact_system:
        system, factors = known_system(solved.system, problem, point, held), solved.factors
    else:
        system = system_of(problem, point, held)
        factors = riccati.factor(stop_gradient(system))
    d_point = point_tangent(problem, x0, point, d_problem, d_x0, held, system, factors)
    return solved, moving(solved, d_point)


def point_tangent(
    problem: StageProblem,
    x0: Array,
    point: Point,
    d_problem: StageProblem,
    d_x0: Array | None,
    held: Clamped,
    system: System,
    factors: Factorisation,
) -> Point:
    """The tangent of the solution `point` along tangents of problem and initial state.

    Tangents of None are zero. `factors` are those of `system`, which is taken for `dG/dz`.
    """
    factors = stop_gradient(factors)

    d_x0 = jnp.zeros_like(x0) if d_x0 is None else d_x0
    residual, d_residual = eqx.filter_jvp(
        lambda problem, x0: optimality_residual(problem, x0, point),
        (problem, x0),
        (d_problem, d_x0),
    )
    # Parts of the residual that no perturbed array enters have the symbolic tangent None.
    d_residual = jax.tree.map(
        lambda part, d: jnp.zeros_like(part) if d is None else d, residual, d_residual
    )
    zeros = jnp.zeros_like(point.controls)
    d_lower = zeros if d_problem.lower is None else d_problem.lower
    d_upper = zeros if d_problem.upper is None else d_problem.upper
    d_held = held.of_bounds(d_lower, d_upper)

    moved = Unknowns(jnp.zeros_like(point.states), d_held, jnp.zeros_like(point.costates))
    pushed = riccati.full_product(system, moved, problem.state_size)
    rows = Unknowns(
        -(d_residual.states + pushed.x),
        jnp.where(system.free, -(d_residual.controls + pushed.u), d_held),
        -(d_residual.costates + pushed.costate),
    )
    d = riccati.differentiable_solve(system, factors, rows)
    return Point(d.x, d.u, d.costate)


def pullback(
    problem: StageProblem, x0: Array, point: Point, held: Clamped, cotangent: Point
) -> tuple[StageProblem, Array]:
    """The exact derivative in reverse mode, taking `point` for the solution.

    Returns cotangents of problem and initial state for a cotangent of the point. At a point that
    is not a solution this is what `ImplicitAdjoint` gives there, right or not.
    """
    point, held = stop_gradient((point, held))
    _, pull = eqx.filter_vjp(lambda problem, x0: _pinned(problem, x0, point, held), problem, x0)
    return pull(cotangent)


@eqx.filter_custom_jvp
def _pinned(problem: StageProblem, x0: Array, point: Point, held: Clamped) -> Point:
    return point


@_pinned.def_jvp
def _pinned_jvp(primals, tangents):
    problem, x0, point, held = primals
    d_problem, d_x0, *_ = tangents
    system = exact_system(problem, point, held)
    factors = riccati.factor(stop_gradient(system))
    return point, point_tangent(problem, x0, point, d_problem, d_x0, held, system, factors)
