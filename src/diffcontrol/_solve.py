"""The front door."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from ._adjoint.base import AbstractAdjoint, Solved, known_system
from ._adjoint.implicit import ImplicitAdjoint
from ._adjoint.unrolled import UnrolledAdjoint
from ._captured import remembered_jit
from ._control_problem import (
    ControlProblem,
    StageProblem,
    check_concrete_values,
    check_order,
    invalid,
    stage_problem,
)
from ._iterate import AbstractSolver, run_fixed, run_until_done
from ._kernel import riccati
from ._optimality import control_gradient, linearise, stage_costs
from ._planner.base import AbstractPlanner, Planned, Start
from ._result import RESULTS, choose, succeeded
from ._solution import Solution
from ._solver.ddp import DDP
from ._trajectory import rollout
from ._tree import stop_gradient
from ._types import Numbers, as_floats, check_key
from ._undifferentiable import STATS_REFUSE, without_cotangent


def solve(
    problem: ControlProblem,
    x0: Numbers,
    solver: AbstractSolver | AbstractPlanner = DDP(),
    *,
    guess: Numbers | Solution | None = None,
    adjoint: AbstractAdjoint | None = None,
    key: Array | None = None,
    throw: bool = True,
) -> Solution:
    """Find an optimal trajectory, differentiably.

    Args:
        problem: what to solve.
        x0: initial state, shape `(n,)`.
        solver: by which algorithm: a solver such as `DDP()`, which looks for an optimum, or a
            planner such as `CEM()`, which runs its iterations.
        guess: controls to start from, shape `(T, m)`, or an earlier `Solution`; None is zero.
            Its derivative is zero under an implicit adjoint. Of planners whose choice is hard the
            controls refuse one, and the cost has none by the guess.
        adjoint: how derivatives come out; None is the solver's own: `ImplicitAdjoint` where it
            promises stationarity, else `UnrolledAdjoint`.
        key: random key, for planners that sample; refused by others.
        throw: raise at run time unless the solve succeeds; under `jax.vmap` one bad sample
            raises for the batch. With False, read `solution.result`.

    Returns:
        The solution. Batch with `jax.vmap`.

    Raises:
        ValueError, TypeError: when traced, for arguments that do not fit together, and for NaN
            in values that are known then.
        RuntimeError: at run time, with the sentence of `RESULTS`, if `throw` and not successful.
    """
    check = check_planner if isinstance(solver, AbstractPlanner) else check_algorithms
    solver, adjoint = check(solver, adjoint, key)
    x0 = as_floats("x0", x0)
    controls = as_controls(guess)
    for name, values in (("problem", problem), ("x0", x0), ("guess", controls)):
        check_concrete_values(name, values)
    if isinstance(problem, ControlProblem) and problem.control_bounds is not None:
        check_order(problem.control_bounds.lower, problem.control_bounds.upper)
    if isinstance(solver, AbstractPlanner) and isinstance(problem, ControlProblem):
        solver.check(problem)
    if not isinstance(throw, bool):
        raise TypeError(f"`throw` must be True or False, got {throw!r}.")
    return _solve(problem, x0, solver, controls, adjoint, key, throw, 0)


def as_controls(guess: Numbers | Solution | None) -> Array | None:
    """The controls of a guess."""
    controls = guess.controls if isinstance(guess, Solution) else guess
    return None if controls is None else as_floats("guess", controls)


def solve_from(
    problem: ControlProblem,
    x0: Array,
    start: ArrayLike,
    solver: AbstractSolver,
    controls: Float[Array, "T m"] | None,
) -> Solution:
    """`solve` with stage 0 at absolute time `start`, never raising: for use in a loop."""
    solver, adjoint = check_algorithms(solver, None, None)
    return _solve(problem, x0, solver, controls, adjoint, None, False, start)


@remembered_jit
def _solve(problem, x0, solver, controls, adjoint, key, throw, start) -> Solution:
    stages, x0 = stage_problem(problem, x0, start)
    controls = initial_controls(stages, controls, x0.dtype)
    if isinstance(solver, AbstractPlanner):
        begin = solver.start(stages, controls)
        solution, _ = planned_by(solver, stages, x0, begin, key, adjoint.checkpoint)
    else:
        solution = _describe(stages, solved_by(solver, adjoint, stages, x0, controls))
    if throw:
        solution = solution.result.error_if(solution, ~succeeded(solution.result))
    return solution


def solved_by(
    solver: AbstractSolver, adjoint: AbstractAdjoint, problem: StageProblem, x0: Array, controls
) -> Solved:
    """The answer of a solver, with the derivatives of an adjoint."""
    return adjoint.solve(
        problem,
        x0,
        controls,
        # Traced here once, since derivative rules call it again.
        until_done=eqx.filter_closure_convert(
            eqx.Partial(run_until_done, solver), problem, x0, controls
        ),
        fixed=eqx.Partial(run_fixed, solver),
    )


def result_of(solved: Solved) -> RESULTS:
    """How a solve ended: a saddle is no success."""
    result = solved.outcome.result
    saddle = (result == RESULTS.successful) & solved.indefinite
    return choose(saddle, RESULTS.indefinite, result)


def _describe(problem: StageProblem, solved: Solved) -> Solution:
    """Everything else that a solution states follows from its point, differentiably."""
    point = solved.point
    x, u = point.states, point.controls
    held, factors = solved.held, solved.factors
    linear = linearise(problem, x, u)
    gradient = sum(control_gradient(linear, point.costates, problem.state_size))
    stats = stop_gradient(solved.outcome.stats)
    anchor = jnp.sum(x) + jnp.sum(u)
    return Solution(
        states=x,
        controls=u,
        costates=point.costates,
        multipliers=jnp.where(held.held, -gradient, 0.0),
        cost=jnp.sum(stage_costs(problem, x, u)),
        gains=riccati.gains(known_system(solved.system, problem, point, held), factors),
        result=result_of(solved),
        stats=without_cotangent(stats, anchor, STATS_REFUSE),
    )


def planned_by(
    planner: AbstractPlanner,
    problem: StageProblem,
    x0: Array,
    start: Start,
    key: Array | None,
    checkpoint: bool = False,
) -> tuple[Solution, Planned]:
    """A planner's answer as a solution, and as its next plan may go on from it."""
    found = planner.plan(problem, x0, start, key, checkpoint)
    controls = found.controls
    # Whatever one differentiates by, a cotangent of what is guarded must meet the refusal.
    leaves = jax.tree.leaves(eqx.filter((planner, problem, x0, start), eqx.is_inexact_array))
    anchor = jnp.sum(jnp.stack([jnp.sum(leaf).astype(x0.dtype) for leaf in leaves]))
    if planner.refuses is not None:
        controls = jax.lax.stop_gradient(controls)
    states = rollout(problem.dynamics, x0, controls)
    cost = jnp.sum(stage_costs(problem, states, controls))
    if planner.refuses is not None:
        controls = without_cotangent(controls, anchor, planner.refuses)
    finite = jnp.isfinite(cost) & jnp.all(jnp.isfinite(states))
    is_best = finite & (cost < found.stats.best_cost)
    stats = eqx.tree_at(
        lambda stats: (stats.best_controls, stats.best_cost),
        found.stats,
        (
            jnp.where(is_best, controls, found.stats.best_controls),
            jnp.where(is_best, cost, found.stats.best_cost),
        ),
    )
    # A guess that is finite is no plan where not one sample was.
    good = finite & jnp.isfinite(found.stats.best_cost)
    result = choose(good, RESULTS.fixed_iterations, RESULTS.non_finite)
    nonsense = invalid(problem, x0) | ~planner.sensible()
    result = choose(nonsense, RESULTS.invalid_input, result)
    stats = without_cotangent(stop_gradient(stats), anchor, STATS_REFUSE)
    return Solution(states, controls, None, None, cost, None, result, stats), found


def check_planner(planner, adjoint, key) -> tuple[AbstractPlanner, UnrolledAdjoint]:
    name = type(planner).__name__
    if planner.draws and key is None:
        raise ValueError(f"{name} draws samples: give `key`, such as key=jax.random.key(0).")
    if not planner.draws and key is not None:
        raise ValueError(f"`key` was given, but {name} does not sample; leave it out.")
    if key is not None:
        check_key(key)
    if adjoint is None:
        adjoint = UnrolledAdjoint()
    if not isinstance(adjoint, UnrolledAdjoint):
        raise ValueError(
            f"{name} does not promise a stationary answer, so its derivative is that of its "
            f"iterations. Use UnrolledAdjoint() in place of {adjoint!r}."
        )
    return planner, adjoint


def check_algorithms(solver, adjoint, key) -> tuple[AbstractSolver, AbstractAdjoint]:
    if not isinstance(solver, AbstractSolver):
        raise TypeError(
            f"`solver` must be a solver such as DDP() here, got {solver!r}."
            + " Planners promise no optimum." * isinstance(solver, AbstractPlanner)
            + " That is the class: call it." * isinstance(solver, type)
        )
    if key is not None:
        raise ValueError(
            f"`key` was given, but {type(solver).__name__} does not sample; leave it out."
        )
    if adjoint is None:
        adjoint = ImplicitAdjoint() if solver.promises_stationarity else UnrolledAdjoint()
    if not isinstance(adjoint, AbstractAdjoint):
        raise TypeError(f"`adjoint` must be an adjoint such as ImplicitAdjoint(), got {adjoint!r}.")
    if adjoint.needs_stationarity and not solver.promises_stationarity:
        raise ValueError(
            f"{type(adjoint).__name__} differentiates the optimality conditions, but {solver} "
            "does not promise to satisfy them. Use UnrolledAdjoint()."
        )
    return solver, adjoint


def initial_controls(problem: StageProblem, controls, dtype) -> Float[Array, "T m"]:
    """Controls that were given as a guess, checked; zero for None."""
    shape = (problem.horizon, problem.control_size)
    if controls is None:
        return jnp.zeros(shape, dtype)
    controls = jnp.asarray(controls)
    if controls.shape != shape:
        raise ValueError(
            f"`guess` must hold controls of shape (T, m) = {shape}, but has shape {controls.shape}."
        )
    return controls.astype(dtype)
