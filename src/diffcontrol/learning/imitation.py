"""Imitation: the plan of the learned controller against what the expert did."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._control_problem import ControlProblem
from .._iterate import AbstractSolver
from .._result import succeeded
from .._solve import solve_from
from .._solver.ddp import DDP
from .loss import AbstractLoss, Judged
from .windows import Window


def _itself(model: Any) -> Any:
    return model


class ImitationLoss(AbstractLoss):
    r"""Mean squared difference between a plan and the expert's controls, and states if wanted.

        mean_{t, i} (u_t,i - u*_t,i)^2  +  states_weight  mean_{t, j} (x_t+1,j - x*_t+1,j)^2

    over the stages that a window holds: one for closed-loop recordings, T for recorded plans. A
    sample whose solve is not successful is not usable. Each solve starts from the plan that the
    last visit to the sample found, the first from the recorded controls.

    Attributes:
        solver: finds the plan. A modest `max_iterations` keeps a batch from waiting long for a
            sample that will not converge.
        states_weight: [unit of u^2 / unit of x^2]; 0 compares controls only, as the papers do.
        problem_of: turns the model into the problem to be solved; by default the model is that
            `ControlProblem`.

    Source: DiffMPC (Amos et al. 2018), section 5.
    """

    solver: AbstractSolver = DDP(max_iterations=100)
    states_weight: float = eqx.field(static=True, default=0.0)
    problem_of: Callable[[Any], ControlProblem] = eqx.field(static=True, default=_itself)

    def start(self, sample: Window) -> Float[Array, "T m"]:
        return sample.guess

    def __call__(self, model: Any, sample: Window, memory: Float[Array, "T m"]) -> Judged:
        problem = self.problem_of(model)
        solution = solve_from(problem, sample.states[0], sample.time, self.solver, memory)
        steps = sample.controls.shape[0]
        value = jnp.mean((solution.controls[:steps] - sample.controls) ** 2)
        if self.states_weight:
            apart = jnp.mean((solution.states[1 : steps + 1] - sample.states[1:]) ** 2)
            value = value + self.states_weight * apart
        return Judged(
            value,
            succeeded(solution.result),
            jax.lax.stop_gradient(solution.controls),
        )
