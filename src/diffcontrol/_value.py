r"""The optimal cost as a function of where one starts, by the envelope theorem.

    V(x0; theta)     = min over u_0 ... u_{T-1} of the cost from x0
    Q(x0, u0; theta) = the same minimum with the first control fixed to u0

With `L` the Lagrangian (`_optimality.py`), `z = (states, controls, costates)` the solution and
held controls written as the bounds `b` that hold them, `L` does not depend on `z` to first order,
so along a tangent of the data

    dV = dL/dtheta dtheta + lambda_0' dx0 + (dL/du) db      at z held constant:

one directional derivative of `L` and no linear system. `dL/du` at a held control is minus its
multiplier. `z` itself is the differentiable solution of `_adjoint/implicit.py`, so to
differentiate this derivative is exact as well, at the price of that solution's tangent.

Source: envelope theorem with constraints, e.g. Fiacco, Introduction to Sensitivity and Stability
Analysis in Nonlinear Programming (1983), theorem 3.4.1.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._adjoint.implicit import ImplicitAdjoint
from ._captured import remembered_jit
from ._control_problem import (
    ControlProblem,
    StageProblem,
    check_concrete_values,
    check_order,
    stage_problem,
)
from ._iterate import AbstractSolver
from ._optimality import Clamped, Point, lagrangian, stage_costs
from ._result import RESULTS, succeeded
from ._solution import Solution
from ._solve import as_controls, initial_controls, result_of, solved_by
from ._solver.ddp import DDP
from ._tree import promoted_dtype
from ._types import Numbers, as_floats


def value(
    problem: ControlProblem,
    x0: Numbers,
    solver: AbstractSolver = DDP(),
    *,
    guess: Numbers | Solution | None = None,
    throw: bool = True,
) -> Float[Array, ""]:
    """The optimal cost from `x0`, with a cheap first derivative and exact higher ones.

    The number is `solve(problem, x0).cost`. Its gradient with respect to the initial state and
    every array of the problem, bounds included, costs no linear solve beyond the solution, as that
    of `solve` does; it is first order in the distance to the exact solution. Second derivatives
    are as dear and as exact as the first ones of `solve`. The derivative with respect to the guess
    is zero.

    Args:
        problem: what to solve.
        x0: initial state, shape `(n,)`.
        solver: by which algorithm; it must promise stationarity, without which there is no
            envelope.
        guess: controls to start from, shape `(T, m)`, or an earlier `Solution`; None is zero.
        throw: raise at run time unless the solve succeeds; under `jax.vmap` one bad sample
            raises for the batch. With False the value of a failed solve and all its derivatives
            are NaN; `solve` tells the reason.

    Returns:
        The optimal cost. Batch with `jax.vmap`.

    Raises:
        ValueError, TypeError: when traced, for arguments that do not fit together, and for NaN
            in values that are known then.
        RuntimeError: at run time, with the sentence of `RESULTS`, if `throw` and not successful.
    """
    return _value(problem, *_checked(problem, x0, None, solver, guess, throw))


def q_value(
    problem: ControlProblem,
    x0: Numbers,
    u0: Numbers,
    solver: AbstractSolver = DDP(),
    *,
    guess: Numbers | Solution | None = None,
    throw: bool = True,
) -> Float[Array, ""]:
    """The optimal cost from `x0` if the first control is `u0`; minimised over `u0` it is `value`.

    `u0` is applied as it is: the problem's control bounds hold for the later controls only, so that
    the function is smooth across them, and its minimiser has to be sought within them. Derivatives
    as for `value`, with respect to `u0` too.

    Args:
        problem, x0, solver, throw: as for `value`.
        u0: the first control, shape `(m,)`.
        guess: as for `value`; its first control counts for nothing.

    Returns:
        The optimal cost. Batch with `jax.vmap`.

    Raises:
        ValueError, TypeError, RuntimeError: as `value` does.
    """
    return _value(problem, *_checked(problem, x0, as_floats("u0", u0), solver, guess, throw))


def _checked(problem, x0, u0, solver, guess, throw):
    if not isinstance(solver, AbstractSolver):
        raise TypeError(
            f"`solver` must be a solver such as DDP(), got {solver!r}; a planner promises no "
            "optimum, whose cost this is."
        )
    if not solver.promises_stationarity:
        raise ValueError(
            f"{solver} does not promise a stationary point, and elsewhere the envelope theorem "
            "does not hold. Give a solver with a tolerance, or use solve(...).cost."
        )
    if not isinstance(throw, bool):
        raise TypeError(f"`throw` must be True or False, got {throw!r}.")
    x0, controls = as_floats("x0", x0), as_controls(guess)
    for name, values in (("problem", problem), ("x0", x0), ("u0", u0), ("guess", controls)):
        check_concrete_values(name, values)
    if isinstance(problem, ControlProblem):
        if problem.control_bounds is not None:
            check_order(problem.control_bounds.lower, problem.control_bounds.upper)
        if u0 is not None and u0.shape != (problem.control_size,):
            raise ValueError(
                f"`u0` must have shape (m,) = ({problem.control_size},), but has shape {u0.shape}. "
                "Batch with jax.vmap."
            )
    return x0, u0, solver, controls, throw


@remembered_jit
def _value(problem, x0, u0, solver, controls, throw) -> Float[Array, ""]:
    if u0 is not None:
        x0 = x0.astype(promoted_dtype(problem, x0, u0))
    stages, x0 = stage_problem(problem, x0)
    controls = initial_controls(stages, controls, x0.dtype)
    if u0 is not None:
        stages, controls = _with_first_control(stages, controls, u0.astype(x0.dtype))
    cost, result = _optimal_cost(stages, x0, controls, solver)
    if throw:
        return result.error_if(cost, ~succeeded(result))
    # A product, since of a choice the derivative would be zero and look like one.
    return cost * jnp.where(succeeded(result), 1.0, jnp.nan).astype(cost.dtype)


def _with_first_control(
    problem: StageProblem, controls: Array, u0: Array
) -> tuple[StageProblem, Array]:
    """Equal bounds make a control a parameter, with a derivative along both of them."""
    first = lambda rows: rows.at[0].set(u0)
    bounds = lambda p: (p.lower, p.upper)
    fixed = eqx.tree_at(bounds, problem, (first(problem.lower), first(problem.upper)))
    return fixed, first(controls)


@eqx.filter_custom_jvp
def _optimal_cost(
    problem: StageProblem, x0: Array, controls: Array, solver: AbstractSolver
) -> tuple[Float[Array, ""], RESULTS]:
    solved = solved_by(solver, ImplicitAdjoint(), problem, x0, controls)
    return _cost(problem, solved.point), result_of(solved)


@_optimal_cost.def_jvp
def _optimal_cost_jvp(primals, tangents):
    problem, x0, controls, solver = primals
    d_problem, d_x0, *_ = tangents
    # Not `_optimal_cost` again: the point is what this derivative is differentiated through.
    solved = solved_by(solver, ImplicitAdjoint(), problem, x0, controls)
    _, d_cost = eqx.filter_jvp(
        lambda problem, x0: lagrangian(problem, x0, _at_bounds(problem, solved.point, solved.held)),
        (problem, x0),
        (d_problem, d_x0),
    )
    cost, result = _cost(problem, solved.point), result_of(solved)
    return (cost, result), (d_cost, jax.tree.map(lambda _: None, result))


def _at_bounds(problem: StageProblem, point: Point, held: Clamped) -> Point:
    """The point with held controls written as the bounds that hold them."""
    bounds = held.of_bounds(problem.lower, problem.upper)
    return eqx.tree_at(lambda p: p.controls, point, jnp.where(held.held, bounds, point.controls))


def _cost(problem: StageProblem, point: Point) -> Float[Array, ""]:
    return jnp.sum(stage_costs(problem, point.states, point.controls))
