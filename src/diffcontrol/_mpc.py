"""Receding-horizon control: solve, apply the first control, shift, repeat."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ._captured import remembered_jit
from ._control_problem import ControlProblem, StageProblem, stage_problem
from ._iterate import AbstractSolver
from ._optimality import stage_costs
from ._planner.base import AbstractPlanner, Planned, Start, cut_off
from ._result import RESULTS, as_array
from ._solution import Solution
from ._solve import (
    as_controls,
    check_algorithms,
    check_planner,
    initial_controls,
    planned_by,
    solve_from,
)
from ._solver.ddp import DDP
from ._trajectory import rollout, stages
from ._tree import stop_gradient
from ._types import Numbers, as_floats
from .models.latent_controls import LatentProblem

_RACE_ITERATIONS = 10


def _as_starts(starts: Numbers | None) -> Array | None:
    return None if starts is None else as_floats("starts", starts)


class MPCMemory(eqx.Module):
    """What a receding horizon remembers between two calls.

    Attributes:
        states, controls, gains, costates: the last solution shifted by one stage: what is
            expected from now on. Shapes as in `Solution`.
        time: absolute time of the next call, counted in calls from 0.
        result: outcome of the last solve; `successful` before the first.
        iterations: iterations of the last solve.
        kept: samples `(K, T, m)` of the last plan that take part in the next, where the solver is a
            planner that keeps some; `gains` and `costates` are None then.
        known: whether `kept` holds any.
    """

    states: Float[Array, "T1 n"]
    controls: Float[Array, "T m"]
    gains: Float[Array, "T m n"] | None
    costates: Float[Array, "T1 n"] | None
    time: Int[Array, ""]
    result: RESULTS
    iterations: Int[Array, ""]
    kept: Float[Array, "K T m"] | None = None
    known: Bool[Array, ""] | None = None


class MPC(eqx.Module):
    """Model predictive control as a policy.

    `memory = mpc.init(x0)`, then `control, memory = mpc(x, memory)` at every step. The control is
    differentiable with respect to `x` and every array of the problem; the memory of a solver is not
    (it is only a guess, on which a converged solution does not depend). A planner's plan does
    depend on the last one, so where plans have a derivative their memory has it, too.

    Each solve starts from the last solution moved on by one stage, as it is or with its feedback
    gains applied to the deviation of the state, whichever is cheaper. So a solver of one or two
    `fixed_iterations` is mostly enough (real-time iteration): every call then takes the same time,
    and derivatives hold the memory constant.

    Attributes:
        problem: what is solved at each step. Its callables see the absolute time `memory.time + k`
            at stage `k`; arrays with a leading time axis (bounds, goals) run from the current step
            and are given anew through `problem=`.
        solver: the solver; solves never raise, `memory.result` says how the last one went. Or a
            planner such as `CEM(keep=5)`: each call then starts from the last plan and the samples
            kept of it, shifted. For a `LatentProblem` a call returns the first decoded control,
            and the next starts from the same latent: it has one stage, so nothing is shifted.
        starts: further guesses, `(S, T, m)`, for problems with several minima. At every step they
            race against the warm start for a few iterations, and the cheapest is solved to the
            end. None for none.
        guess: controls `(T, m)`, or an earlier `Solution`, from which the very first solve starts;
            None is zero. With `fixed_iterations` give a solution, since few iterations from zero
            lead nowhere.
        key: random key, where the solver is a planner that samples; every call draws others.

    Raises:
        TypeError: if `starts` or `guess` is not made of real numbers.
        ValueError: for `starts` with a planner; when called, if `starts` does not have shape
            `(S, T, m)`; from `init`, if `guess` does not have shape `(T, m)`.
    """

    problem: ControlProblem
    solver: AbstractSolver | AbstractPlanner = DDP()
    starts: Array | None = eqx.field(default=None, converter=_as_starts)
    guess: Array | None = eqx.field(default=None, converter=as_controls)
    key: Array | None = None

    def __check_init__(self):
        if self.starts is not None and isinstance(self.solver, AbstractPlanner):
            raise ValueError("MPC: `starts` are for solvers; leave them out with a planner.")

    def init(self, x0: Numbers) -> MPCMemory:
        """The memory before the first call: the controls of `guess`, time 0.

        Args:
            x0: a state of the shape that calls will have, `(n,)`.

        Raises:
            ValueError, TypeError: for a problem, an `x0` and a `guess` that do not fit together, or
                a key that is missing, or given to a solver that does not sample.
        """
        planner = self.solver if isinstance(self.solver, AbstractPlanner) else None
        stage, x0 = stage_problem(self.problem, x0)
        if planner is not None:
            check_planner(planner, None, self.key)
            planner.check(self.problem)
        else:
            check_algorithms(self.solver, None, self.key)
        T, n, m = stage.horizon, stage.state_size, stage.control_size
        guess = initial_controls(stage, self.guess, x0.dtype)
        controls = cut_off(stage, guess)
        begin = None if planner is None else planner.start(stage, controls)
        memory = MPCMemory(
            states=jnp.broadcast_to(x0, (T + 1, n)),
            controls=controls,
            gains=None if planner is not None else jnp.zeros((T, m, n), x0.dtype),
            costates=None if planner is not None else jnp.zeros((T + 1, n), x0.dtype),
            time=jnp.zeros((), jnp.int32),
            result=as_array(RESULTS.successful),
            iterations=jnp.zeros((), jnp.int32),
            kept=None if begin is None else begin.kept,
            known=None if begin is None else begin.known,
        )
        return memory if _remembers(self.solver) else stop_gradient(memory)

    def __call__(
        self, x: Numbers, memory: MPCMemory, problem: ControlProblem | None = None
    ) -> tuple[Float[Array, " m"], MPCMemory]:
        """The control for state `x`, and the memory for the next call.

        Args:
            x: current state, `(n,)`.
            memory: from `init` or the last call.
            problem: replaces the problem for this call: a new reference, new parameters. Horizon
                and sizes must stay.

        Raises:
            ValueError, TypeError: for arguments that do not fit together, as from `solve`; or a
                memory made for another horizon or other sizes.
        """
        return _act(self, as_floats("x", x), memory, problem)

    def plan(
        self, x: Numbers, memory: MPCMemory, problem: ControlProblem | None = None
    ) -> Solution:
        """The whole solution of this step, whose first control `__call__` returns (decoded, where
        the problem is a `LatentProblem`).

        Arguments and errors are those of a call.
        """
        return _plan(self, as_floats("x", x), memory, problem)

    def _guess(self, problem: ControlProblem, x: Array, memory: MPCMemory) -> Array:
        """Controls to start from."""
        stage, x = stage_problem(problem, x, memory.time)
        shape = (stage.horizon, stage.control_size)
        if memory.controls.shape != shape or memory.states.shape[1:] != x.shape:
            raise ValueError(
                f"MPC: `memory` was made for controls of shape {memory.controls.shape} and states "
                f"of shape {memory.states.shape[1:]}, but problem and `x` have {shape} and "
                f"{x.shape}. Make it with `init` of an MPC of that problem."
            )
        if isinstance(self.solver, AbstractPlanner):
            check_planner(self.solver, None, self.key)
            if memory.kept is None:
                raise ValueError(
                    "MPC: `memory` was made for a solver, not a planner; make it with `init`."
                )
            if len(memory.kept) != self.solver.keep:
                raise ValueError(
                    f"MPC: `memory` holds {len(memory.kept)} samples, but the planner keeps "
                    f"{self.solver.keep}; make it with `init`."
                )
            # A plan that failed is no place to start from.
            last = jnp.where(jnp.isfinite(memory.controls), memory.controls, 0.0)
            return cut_off(stage, last)
        if memory.gains is None:
            raise ValueError(
                "MPC: `memory` was made for a planner, not a solver; make it with `init`."
            )
        warm = _warm_start(stage, x, memory)
        if self.starts is None:
            return warm
        if self.starts.ndim != 3 or self.starts.shape[1:] != shape:
            raise ValueError(
                f"MPC: `starts` must have shape (S, T, m) with (T, m) = {shape}, but has shape "
                f"{self.starts.shape}."
            )
        guesses = jnp.concatenate([warm[None], self.starts.astype(x.dtype)])
        # A short race decides which minimum to go for; the solve that follows goes there. Its
        # trajectories are feasible at every iteration, so their costs can be compared.
        most = min(_RACE_ITERATIONS, self.solver.max_iterations)
        racer = dataclasses.replace(self.solver, max_iterations=most)
        solutions = jax.vmap(lambda guess: solve_from(problem, x, memory.time, racer, guess))(
            jax.lax.stop_gradient(guesses)
        )
        cost = jnp.where(jnp.isfinite(solutions.cost), solutions.cost, jnp.inf)
        return stop_gradient(solutions.controls)[jnp.argmin(cost)]


@remembered_jit
def _plan(controller: MPC, x: Array, memory: MPCMemory, problem: ControlProblem | None) -> Solution:
    return _solved(controller, x, memory, controller.problem if problem is None else problem)[0]


@remembered_jit
def _act(
    controller: MPC, x: Array, memory: MPCMemory, problem: ControlProblem | None
) -> tuple[Array, MPCMemory]:
    problem = controller.problem if problem is None else problem
    solution, planned = _solved(controller, x, memory, problem)
    control = solution.controls[0]
    if isinstance(problem, LatentProblem):
        control = problem.decode(control)[0]  # a plant knows controls, not latents
    memory = _shift(solution, planned, memory)
    return control, memory if _remembers(controller.solver) else stop_gradient(memory)


def _remembers(solver: AbstractSolver | AbstractPlanner) -> bool:
    """Whether what is remembered has a derivative: where the next plan depends on it smoothly."""
    return isinstance(solver, AbstractPlanner) and solver.refuses is None


def _solved(controller, x, memory, problem) -> tuple[Solution, Planned | None]:
    """The plan of this step, and of a planner what its next goes on from."""
    held = (problem, x, memory)
    if not _remembers(controller.solver):
        held = stop_gradient(held)
    guess = controller._guess(*held)
    if not isinstance(controller.solver, AbstractPlanner):
        return solve_from(problem, x, memory.time, controller.solver, guess), None
    stage, x = stage_problem(problem, x, memory.time)
    kept = cut_off(stage, held[2].kept)
    key = None if controller.key is None else jax.random.fold_in(controller.key, memory.time)
    start = Start(guess, kept, memory.known)
    return planned_by(controller.solver, stage, x, start, key)


def _warm_start(problem: StageProblem, x: Array, memory: MPCMemory) -> Array:
    """The cheaper of the shifted controls and the shifted policy, rolled out from `x`."""

    def advance(x, inputs):
        x_expected, u_expected, K, lower, upper, k = inputs
        u = jnp.clip(u_expected + K @ (x - x_expected), lower, upper)
        return problem.dynamics(x, u, k), u

    _, corrected = jax.lax.scan(
        advance,
        x,
        (
            memory.states[:-1],
            memory.controls,
            memory.gains,
            problem.lower,
            problem.upper,
            stages(problem.horizon),
        ),
    )

    def cost(controls):
        total = jnp.sum(stage_costs(problem, rollout(problem.dynamics, x, controls), controls))
        return jnp.where(jnp.isfinite(total), total, jnp.inf)

    kept = jnp.clip(memory.controls, problem.lower, problem.upper)
    return jnp.where(cost(corrected) < cost(kept), corrected, kept)


def _shift(solution: Solution, planned: Planned | None, memory: MPCMemory) -> MPCMemory:
    """Move everything one stage on; the last stage is kept twice."""
    shift = lambda rows: jnp.concatenate([rows[1:], rows[-1:]])
    if_any = lambda rows: None if rows is None else shift(rows)
    return MPCMemory(
        states=shift(solution.states),
        controls=shift(solution.controls),
        gains=if_any(solution.gains),
        costates=if_any(solution.costates),
        time=memory.time + 1,
        result=solution.result,
        iterations=solution.stats.iterations,
        kept=None if planned is None else jax.vmap(shift)(planned.kept),
        known=None if planned is None else planned.known,
    )
