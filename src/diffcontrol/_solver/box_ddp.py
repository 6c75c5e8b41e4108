r"""The loop that `ILQR` and `DDP` share: differential dynamic programming with control bounds.

Each iteration expands cost and dynamics about the current trajectory, sweeps backwards for an
improved policy (`_kernel/box_sweep.py`), follows it through the true dynamics with a line search,
and keeps the result only if it is better. Where the predicted decrease is below what the cost can
resolve in floating point, "better" is judged by the stationarity instead; a stall there is the
limit of the precision and said to be so.

Curvatures are tried in parallel: `curvatures = (1, 0)` sweeps with the exact Hessian of the
Lagrangian and with the Gauss-Newton one, and takes the first whose control Hessians are positive
at every stage. One attempt is made an iteration; if none is positive the regularisation is raised
and the next iteration tries again, so that in a batch no sample waits for another's retries.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._control_problem import StageProblem, invalid
from .._expansion import cost_hessians, dynamics_hessians
from .._iterate import Outcome
from .._kernel.box_sweep import Policy, sweep
from .._optimality import (
    Linearisation,
    Point,
    Stationarity,
    control_gradient,
    costates_of,
    linearise,
    stationarity,
)
from .._result import RESULTS, choose
from .._solution import Stats
from .._trajectory import rollout
from .._tree import all_finite, select, stop_gradient
from .line_search import Search, Trial, backtrack, evaluate, follow
from .regularisation import LARGEST, adapt

# Differences of cost below this many roundings of its terms say nothing.
_UNRESOLVED_ROUNDINGS = 16
# Full steps in a row that neither cost nor stationarity credits, before giving up.
_MOST_STALLS = 3


class Expansion(eqx.Module):
    """Everything that a sweep and the convergence test need about a trajectory."""

    linear: Linearisation
    costates: Float[Array, "T+1 n"]
    H_cost: Float[Array, "T n+m n+m"]
    H_N: Float[Array, "n n"]
    H_dynamics: Float[Array, "T n+m n+m"] | None
    stationarity: Stationarity


class LoopState(eqx.Module):
    """The state between iterations; its trajectory is always an exact roll-out."""

    trial: Trial
    expansion: Expansion
    regularisation: Float[Array, ""]
    step_size: Float[Array, ""]
    iterations: Int[Array, ""]
    stalls: Int[Array, ""]
    result: RESULTS
    running: Bool[Array, ""]


def init(
    problem: StageProblem,
    x0: Array,
    controls: Array,
    tolerance: float,
    curvatures: tuple[float, ...],
) -> LoopState:
    """Roll out the guess, clipped to the bounds."""
    controls = jnp.clip(controls, problem.lower, problem.upper)
    trial = evaluate(problem, rollout(problem.dynamics, x0, controls), controls)
    expansion = expand(problem, trial, curvatures)
    bad_input = invalid(problem, x0)
    finite = jnp.isfinite(trial.cost) & all_finite(expansion)
    converged = expansion.stationarity.relative <= tolerance
    result = choose(converged, RESULTS.successful, RESULTS.not_converged)
    result = choose(finite, result, RESULTS.non_finite)
    result = choose(bad_input, RESULTS.invalid_input, result)
    zero = jnp.zeros((), x0.dtype)
    return LoopState(
        trial=trial,
        expansion=expansion,
        regularisation=zero,
        step_size=zero,
        iterations=jnp.zeros((), jnp.int32),
        stalls=jnp.zeros((), jnp.int32),
        result=result,
        running=finite & ~converged & ~bad_input,
    )


def expand(problem: StageProblem, trial: Trial, curvatures: tuple[float, ...]) -> Expansion:
    """Derivatives, costates and stationarity at a trajectory."""
    x, u = trial.states, trial.controls
    linear = linearise(problem, x, u)
    costates = costates_of(linear, problem.state_size)
    H_cost, H_N = cost_hessians(problem, x, u)
    needs_dynamics = any(curvature != 0 for curvature in curvatures)
    H_dynamics = dynamics_hessians(problem, x, u, costates) if needs_dynamics else None
    parts = control_gradient(linear, costates, problem.state_size)
    return Expansion(linear, costates, H_cost, H_N, H_dynamics, stationarity(problem, u, *parts))


def improve(problem: StageProblem, state: LoopState, curvatures: tuple[float, ...]) -> Policy:
    """Sweep with each curvature; the first that is positive definite, else the last."""
    e, u = state.expansion, state.trial.controls

    def with_hessian(H):
        return sweep(
            H,
            e.H_N,
            e.linear.F,
            e.linear.cost_gradient,
            e.linear.terminal_gradient,
            problem.lower - u,
            problem.upper - u,
            state.regularisation,
        )

    hessians = [
        e.H_cost if c == 0 or e.H_dynamics is None else e.H_cost + c * e.H_dynamics
        for c in curvatures
    ]
    if len(hessians) == 1:
        return with_hessian(hessians[0])
    policies = jax.vmap(with_hessian)(jnp.stack(hessians))
    first = jnp.argmax(policies.positive)
    return jax.tree.map(lambda leaf: leaf[first], policies)


def propose(
    problem: StageProblem, state: LoopState, curvatures: tuple[float, ...]
) -> tuple[Policy, Search, Bool[Array, ""]]:
    """A policy, a line search along it, and whether the cost could resolve the step."""
    policy = improve(problem, state, curvatures)
    predicted = -(policy.linear + 0.5 * policy.quadratic)
    eps = jnp.finfo(predicted.dtype).eps
    unresolved = predicted <= _UNRESOLVED_ROUNDINGS * eps * state.trial.magnitude
    return policy, backtrack(problem, state.trial, policy, unresolved), unresolved


def step(
    problem: StageProblem,
    state: LoopState,
    curvatures: tuple[float, ...],
    tolerance: float,
    most: int,
) -> LoopState:
    """One iteration."""
    policy, search, unresolved = propose(problem, state, curvatures)
    return _judge(problem, state, curvatures, tolerance, most, policy, search, unresolved)


def differentiable_step(
    problem: StageProblem,
    state: LoopState,
    curvatures: tuple[float, ...],
    tolerance: float,
    most: int,
) -> LoopState:
    """The same iteration with its choices (which step, which curvature) held constant."""
    policy = improve(problem, state, curvatures)
    fixed_problem, fixed_state, fixed_policy = stop_gradient((problem, state, policy))
    predicted = -(fixed_policy.linear + 0.5 * fixed_policy.quadratic)
    eps = jnp.finfo(predicted.dtype).eps
    unresolved = predicted <= _UNRESOLVED_ROUNDINGS * eps * fixed_state.trial.magnitude
    search = backtrack(fixed_problem, fixed_state.trial, fixed_policy, unresolved)
    trial = follow(problem, state.trial.states, state.trial.controls, policy, search.step)
    search = Search(trial, search.step, search.sufficient)
    return _judge(problem, state, curvatures, tolerance, most, policy, search, unresolved)


def _judge(
    problem: StageProblem,
    state: LoopState,
    curvatures: tuple[float, ...],
    tolerance: float,
    most: int,
    policy: Policy,
    search: Search,
    unresolved: Array,
) -> LoopState:
    """Keep the candidate if it is better, and decide whether to go on."""
    expansion = expand(problem, search.trial, curvatures)
    usable = policy.positive & search.sufficient & all_finite(expansion)
    closer = expansion.stationarity.relative < state.expansion.stationarity.relative
    accepted = usable & (~unresolved | closer)
    trial, expansion = select(accepted, (search.trial, expansion), (state.trial, state.expansion))

    mu = adapt(state.regularisation, accepted)
    stalls = jnp.where(accepted, 0, state.stalls + (unresolved & policy.positive))
    iterations = state.iterations + 1
    converged = expansion.stationarity.relative <= tolerance
    stalled = stalls >= _MOST_STALLS
    stuck = mu > LARGEST
    result = choose(stalled, RESULTS.precision_limit, RESULTS.not_converged)
    result = choose(converged, RESULTS.successful, result)
    return LoopState(
        trial=trial,
        expansion=expansion,
        regularisation=mu,
        step_size=jnp.where(accepted, search.step, state.step_size),
        iterations=iterations,
        stalls=stalls,
        result=result,
        running=~(converged | stalled | stuck) & (iterations < most),
    )


def finish(state: LoopState) -> tuple[Point, Outcome]:
    """The returned point, with costates from one exact backward sweep."""
    e = state.expansion
    point = Point(state.trial.states, state.trial.controls, e.costates)
    stats = Stats(
        iterations=state.iterations,
        stationarity=e.stationarity.relative,
        stationarity_raw=e.stationarity.raw,
        step_size=state.step_size,
        regularisation=state.regularisation,
    )
    return point, Outcome(state.result, stats)
