r"""The loop that `ILQR` and `DDP` share: differential dynamic programming with control bounds.

Each iteration follows a policy through the true dynamics with a line search, expands cost and
dynamics about where it leads, keeps the result only if it is better, and sweeps backwards for the
next policy (`_kernel/box_sweep.py`). The first policy is the guess of the controls, so every part
is written, and compiled, once. Where the predicted decrease is below what the cost can
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
from .._tree import all_finite, select, stop_gradient
from .line_search import Search, Trial, backtrack, follow
from .regularisation import LARGEST, adapt

# Differences of cost below this many roundings of its terms say nothing.
_UNRESOLVED_ROUNDINGS = 16
# Full steps in a row that neither cost nor stationarity credits, before giving up.
_MOST_STALLS = 3


class Expansion(eqx.Module):
    """Everything that a sweep and the convergence test need about a trajectory."""

    linear: Linearisation
    costates: Float[Array, "T1 n"]
    H_cost: Float[Array, "T nm nm"]
    H_N: Float[Array, "n n"]
    H_dynamics: Float[Array, "T nm nm"] | None
    stationarity: Stationarity


class LoopState(eqx.Module):
    """The state between iterations; its trajectory is an exact roll-out once one was accepted.

    `iterations` counts sweeps that were followed: -1 before the guess itself has been rolled out.
    """

    trial: Trial
    expansion: Expansion
    policy: Policy
    regularisation: Float[Array, ""]
    step_size: Float[Array, ""]
    iterations: Int[Array, ""]
    stalls: Int[Array, ""]
    result: RESULTS
    running: Bool[Array, ""]


class BoxDDPStep(eqx.Module):
    """The settings of the loop.

    Attributes:
        curvatures: weights of the dynamics' curvature, tried in this order.
        tolerance: on the relative stationarity.
        max_iterations: after which to stop.
    """

    curvatures: tuple[float, ...] = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)
    max_iterations: int = eqx.field(static=True)

    def init(self, problem: StageProblem, x0: Array, controls: Array) -> LoopState:
        """Make the guess, clipped to the bounds, the first policy to follow."""
        T, n, m = problem.horizon, problem.state_size, problem.control_size
        zero = jnp.zeros((), x0.dtype)
        controls = jnp.clip(controls, problem.lower, problem.upper)
        trial = Trial(jnp.broadcast_to(x0, (T + 1, n)), controls, zero + jnp.inf, zero)
        shapes = eqx.filter_eval_shape(self.expand, problem, trial)
        bad_input = invalid(problem, x0)
        return LoopState(
            trial=trial,
            expansion=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes),
            policy=Policy(
                K=jnp.zeros((T, m, n), x0.dtype),
                k=jnp.zeros((T, m), x0.dtype),
                linear=zero,
                quadratic=zero,
                positive=jnp.asarray(True),
            ),
            regularisation=zero,
            step_size=zero,
            iterations=jnp.full((), -1, jnp.int32),
            stalls=jnp.zeros((), jnp.int32),
            result=choose(bad_input, RESULTS.invalid_input, RESULTS.not_converged),
            running=~bad_input,
        )

    def step(self, problem: StageProblem, state: LoopState) -> LoopState:
        """One iteration."""
        unresolved = self.unresolved(state)
        search = backtrack(problem, state.trial, state.policy, unresolved)
        state = self.judge(problem, state, search, unresolved)
        policy = jax.lax.cond(
            state.running, lambda: self.improve(problem, state), lambda: state.policy
        )
        return eqx.tree_at(lambda state: state.policy, state, policy)

    def differentiable_step(self, problem: StageProblem, state: LoopState) -> LoopState:
        """The same iteration with its choices (step size, curvature, clamping) held constant."""
        unresolved = self.unresolved(state)
        fixed_problem, fixed = stop_gradient((problem, state))
        search = backtrack(fixed_problem, fixed.trial, fixed.policy, unresolved)
        trial = follow(problem, state.trial, state.policy, search.step)
        search = Search(trial, search.step, search.sufficient)
        state = self.judge(problem, state, search, unresolved)
        policy = self.improve(problem, state)
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
        expansion = self.expand(problem, search.trial)
        finite = jnp.isfinite(search.trial.cost) & all_finite(expansion)
        usable = state.policy.positive & search.sufficient & finite
        closer = expansion.stationarity.relative < state.expansion.stationarity.relative
        accepted = usable & (first | ~unresolved | closer)
        trial, expansion = select(
            accepted, (search.trial, expansion), (state.trial, state.expansion)
        )

        mu = jnp.where(first, state.regularisation, adapt(state.regularisation, accepted))
        stalls = jnp.where(accepted, 0, state.stalls + (unresolved & state.policy.positive))
        iterations = state.iterations + 1
        unusable = first & ~accepted
        converged = ~unusable & (expansion.stationarity.relative <= self.tolerance)
        stalled = stalls >= _MOST_STALLS
        stuck = mu > LARGEST
        result = choose(stalled, RESULTS.precision_limit, RESULTS.not_converged)
        result = choose(converged, RESULTS.successful, result)
        result = choose(unusable, RESULTS.non_finite, result)
        return LoopState(
            trial=trial,
            expansion=expansion,
            policy=state.policy,
            regularisation=mu,
            step_size=jnp.where(accepted & ~first, search.step, state.step_size),
            iterations=iterations,
            stalls=stalls,
            result=result,
            running=~(unusable | converged | stalled | stuck) & (iterations < self.max_iterations),
        )

    def expand(self, problem: StageProblem, trial: Trial) -> Expansion:
        """Derivatives, costates and stationarity at a trajectory."""
        x, u = trial.states, trial.controls
        linear = linearise(problem, x, u)
        costates = costates_of(linear, problem.state_size)
        H_cost, H_N = cost_hessians(problem, x, u)
        needs_dynamics = any(curvature != 0 for curvature in self.curvatures)
        H_dynamics = dynamics_hessians(problem, x, u, costates) if needs_dynamics else None
        parts = control_gradient(linear, costates, problem.state_size)
        return Expansion(
            linear, costates, H_cost, H_N, H_dynamics, stationarity(problem, u, *parts)
        )

    def improve(self, problem: StageProblem, state: LoopState) -> Policy:
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
            for c in self.curvatures
        ]
        if len(hessians) == 1:
            return with_hessian(hessians[0])
        policies = jax.vmap(with_hessian)(jnp.stack(hessians))
        first = jnp.where(jnp.any(policies.positive), jnp.argmax(policies.positive), -1)
        return jax.tree.map(lambda leaf: leaf[first], policies)


def finish(state: LoopState) -> tuple[Point, Outcome]:
    """The returned point, with costates from one exact backward sweep."""
    e = state.expansion
    point = Point(state.trial.states, state.trial.controls, e.costates)
    stats = Stats(
        iterations=jnp.maximum(state.iterations, 0),
        stationarity=e.stationarity.relative,
        stationarity_raw=e.stationarity.raw,
        step_size=state.step_size,
        regularisation=state.regularisation,
    )
    return point, Outcome(state.result, stats)
