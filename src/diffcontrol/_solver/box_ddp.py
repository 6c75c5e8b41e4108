r"""The loop that `ILQR` and `DDP` share: differential dynamic programming with control bounds.

Each iteration follows a policy through the true dynamics with a line search, expands cost and
dynamics about where it leads, keeps the result only if it is better, and sweeps backwards for the
next policy (`_kernel/box_sweep.py`). The first policy is the guess of the controls, so every part
is written, and compiled, once. Where the predicted decrease is below what the cost can
resolve in floating point, "better" is judged by the stationarity instead; a stall there is the
limit of the precision and said to be so.

The sweep uses the exact Hessian of the Lagrangian (`exact`) where that is safe; see there. One
attempt is made an iteration; after a rejected step the regularisation is raised and the next
iteration tries again, so that in a batch no sample waits for another's retries.

With `fixed_iterations` (real-time iteration) nothing stops the loop but NaN along the guess, and a
step too small for the cost to resolve is taken as it is. It does no harm, since what it can cost is
about the rounding of the cost, and without it the answer at a good guess would not depend on the
problem: its derivative, by unrolling, would be zero. With it that derivative is the exact one where
the guess already solves the problem, since DDP converges quadratically.

What an iteration hands on is kept small, since in a batch it is copied every time: Hessians are
computed where they are used and not carried along.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._control_problem import StageProblem, invalid
from .._expansion import cost_hessians, dynamics_hessians
from .._iterate import AbstractSolver, Outcome
from .._kernel.box_sweep import Expansion, Policy, sweep
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
from .._tree import all_finite, select, stop_gradient
from .line_search import (
    Search,
    Trial,
    attempt,
    backtrack,
    follow,
    may_shorten,
)
from .regularisation import LARGEST, Regularisation, unregularised
from .settings import check_settings, default_tolerance

# Differences of cost below this many roundings of its terms say nothing.
_UNRESOLVED_ROUNDINGS = 16
# A Gauss-Newton step that promises less than this share of the cost is creeping. On cartpole the
# figure may be three times as large or small without harm.
_WORTHWHILE = 1e-2
# Full steps in a row that neither cost nor stationarity credits, before giving up.
_MOST_STALLS = 3


class FirstOrder(eqx.Module):
    """What the acceptance and convergence tests need about a trajectory."""

    linear: Linearisation
    costates: Float[Array, "T1 n"]
    stationarity: Stationarity


class LoopState(eqx.Module):
    """The state between iterations; its trajectory is an exact roll-out once one was accepted.

    `attempt` is the step size to try next. `iterations` counts sweeps that were followed: -1 before
    the guess itself has been rolled out.
    """

    trial: Trial
    first_order: FirstOrder
    policy: Policy
    attempt: Float[Array, ""]
    regularisation: Regularisation
    step_size: Float[Array, ""]
    iterations: Int[Array, ""]
    stalls: Int[Array, ""]
    result: RESULTS
    running: Bool[Array, ""]


class BoxDDP(AbstractSolver):
    """The loop. `exact` tries the curvature of the dynamics before the sweep without it."""

    exact: eqx.AbstractClassVar[bool]
    tolerance: float | None = eqx.field(static=True, default=None)
    max_iterations: int = eqx.field(static=True, default=500)
    fixed_iterations: int | None = eqx.field(static=True, default=None)

    def __post_init__(self):
        # One number says how long a run is, whoever asks.
        if self.fixed_iterations is not None:
            self.max_iterations = self.fixed_iterations

    def __check_init__(self):
        name = type(self).__name__
        check_settings(name, self.tolerance, self.max_iterations, self.fixed_iterations)

    @property
    def promises_stationarity(self) -> bool:
        """Whether a successful run has passed a test of convergence."""
        return self.fixed_iterations is None

    def init(self, problem: StageProblem, x0: Array, controls: Array) -> LoopState:
        """Make the guess, clipped to the bounds, the first policy to follow."""
        T, n, m = problem.horizon, problem.state_size, problem.control_size
        zero = jnp.zeros((), x0.dtype)
        controls = jnp.clip(controls, problem.lower, problem.upper)
        trial = Trial(jnp.broadcast_to(x0, (T + 1, n)), controls, zero + jnp.inf, zero)
        shapes = eqx.filter_eval_shape(first_order, problem, trial)
        bad_input = invalid(problem, x0)
        return LoopState(
            trial=trial,
            first_order=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
            policy=Policy(
                K=jnp.zeros((T, m, n), x0.dtype),
                k=jnp.zeros((T, m), x0.dtype),
                linear=zero,
                quadratic=zero,
                positive=jnp.asarray(True),
            ),
            attempt=zero + 1,
            regularisation=unregularised(zero),
            step_size=zero,
            iterations=jnp.full((), -1, jnp.int32),
            stalls=jnp.zeros((), jnp.int32),
            result=choose(bad_input, RESULTS.invalid_input, RESULTS.not_converged),
            running=~bad_input,
        )

    def step(self, problem: StageProblem, x0: Array, state: LoopState) -> LoopState:
        """Try one step size, and only if that settles the line search, expand and sweep.

        So in a batch no sample waits for the line search of another.
        """
        unresolved = self.unresolved(state)
        search = attempt(problem, state.trial, state.policy, state.attempt, unresolved)
        again = state.policy.positive & may_shorten(search, unresolved)

        def shorten():
            return eqx.tree_at(lambda state: state.attempt, state, search.next_step)

        def go_on():
            after = self.judge(problem, state, search, unresolved)
            policy = self.improve(problem, after, after.running & ~again)
            return eqx.tree_at(lambda state: state.policy, after, policy)

        return jax.lax.cond(again, shorten, go_on)

    def differentiable_step(self, problem: StageProblem, x0: Array, state: LoopState) -> LoopState:
        """The same iteration with its choices (step size, curvature, clamping) held constant."""
        unresolved = self.unresolved(state)
        fixed_problem, fixed = stop_gradient((problem, state))
        search = backtrack(fixed_problem, fixed.trial, fixed.policy, unresolved)
        trial = follow(problem, state.trial, state.policy, search.step)
        search = Search(trial, search.step, search.sufficient, search.next_step)
        state = self.judge(problem, state, search, unresolved)
        policy = self.improve(problem, state, state.running)
        return eqx.tree_at(lambda state: state.policy, state, policy)

    def unresolved(self, state: LoopState) -> Bool[Array, ""]:
        """Whether the predicted decrease is below what the cost resolves in floating point."""
        predicted = -(state.policy.linear + 0.5 * state.policy.quadratic)
        eps = jnp.finfo(predicted.dtype).eps
        return predicted <= _UNRESOLVED_ROUNDINGS * eps * state.trial.magnitude

    def judge(
        self, problem: StageProblem, state: LoopState, search: Search, unresolved: Array
    ) -> LoopState:
        """Keep where the policy led if that is better, and decide whether to go on."""
        first = state.iterations < 0
        fixed = jnp.asarray(self.fixed_iterations is not None)
        there = first_order(problem, search.trial)
        finite = jnp.isfinite(search.trial.cost) & all_finite(there)
        usable = state.policy.positive & search.sufficient & finite
        closer = there.stationarity.relative < state.first_order.stationarity.relative
        accepted = usable & (first | ~unresolved | closer | fixed)
        trial, here = select(accepted, (search.trial, there), (state.trial, state.first_order))

        regularisation = select(first, state.regularisation, state.regularisation.adapted(accepted))
        stalls = jnp.where(accepted, 0, state.stalls + (unresolved & state.policy.positive))
        iterations = state.iterations + 1
        unusable = first & ~accepted
        converged = ~unusable & (
            here.stationarity.relative <= default_tolerance(self.tolerance, trial.cost.dtype)
        )
        stalled = stalls >= _MOST_STALLS
        stuck = regularisation.mu > LARGEST
        result = choose(stalled, RESULTS.precision_limit, RESULTS.not_converged)
        result = choose(converged, RESULTS.successful, result)
        result = choose(fixed, RESULTS.fixed_iterations, result)
        result = choose(unusable, RESULTS.non_finite, result)
        done = unusable | (~fixed & (converged | stalled | stuck))
        return LoopState(
            trial=trial,
            first_order=here,
            policy=state.policy,
            attempt=jnp.ones_like(state.attempt),
            regularisation=regularisation,
            step_size=jnp.where(accepted & ~first, search.step, state.step_size),
            iterations=iterations,
            stalls=stalls,
            result=result,
            running=~done & (iterations < self.max_iterations),
        )

    def improve(self, problem: StageProblem, state: LoopState, wanted: Array) -> Policy:
        """Expand to second order about the current trajectory and sweep."""
        x, u = state.trial.states, state.trial.controls
        here = state.first_order
        H, H_N = cost_hessians(problem, x, u)
        D = dynamics_hessians(problem, x, u, here.costates) if self.exact else None
        expansion = Expansion(
            H,
            D,
            H_N,
            here.linear.F,
            here.linear.cost_gradient,
            here.linear.terminal_gradient,
            problem.lower - u,
            problem.upper - u,
        )
        worthwhile = _WORTHWHILE * state.trial.magnitude
        return sweep(expansion, state.regularisation.mu, worthwhile, wanted)

    def finish(self, problem: StageProblem, x0: Array, state: LoopState) -> tuple[Point, Outcome]:
        """The returned point, with costates from one exact backward sweep."""
        here = state.first_order
        point = Point(state.trial.states, state.trial.controls, here.costates)
        stats = Stats(
            iterations=jnp.maximum(state.iterations, 0),
            stationarity=here.stationarity.relative,
            stationarity_raw=here.stationarity.raw,
            step_size=state.step_size,
            regularisation=state.regularisation.mu,
        )
        return point, Outcome(state.result, stats)


def first_order(problem: StageProblem, trial: Trial) -> FirstOrder:
    """First derivatives, costates and stationarity at a trajectory."""
    n = problem.state_size
    linear = linearise(problem, trial.states, trial.controls)
    costates = costates_of(linear, n)
    parts = control_gradient(linear, costates, n)
    return FirstOrder(linear, costates, stationarity(problem, trial.controls, *parts))
