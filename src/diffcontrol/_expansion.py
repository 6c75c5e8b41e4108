"""Second-order expansion of a problem about a trajectory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._control_problem import StageProblem
from ._kernel.riccati import System
from ._optimality import Clamped, Point, linearise
from ._trajectory import stages

_MOST_UNROLLED = 8


def cost_hessians(
    problem: StageProblem, states: Array, controls: Array
) -> tuple[Float[Array, "T nm nm"], Float[Array, "n n"]]:
    """Hessians of the stage costs and of the terminal cost."""
    n = problem.state_size

    def stage(tau, k):
        return jax.hessian(lambda tau: problem.stage_cost(tau[:n], tau[n:], k))(tau)

    taus = jnp.concatenate([states[:-1], controls], axis=1)
    return (
        jax.vmap(stage)(taus, stages(problem.horizon)),
        jax.hessian(problem.terminal_cost)(states[-1]),
    )


def dynamics_hessians(
    problem: StageProblem, states: Array, controls: Array, costates: Array
) -> Float[Array, "T nm nm"]:
    """Hessians of `lambda_{t+1}' f`: the curvature that the dynamics add to the Lagrangian.

    The gradient is linearised once, so that its columns share sines and roots; column by column
    where that keeps the program small, which XLA turns into faster loops than `jax.hessian`.
    """
    n = problem.state_size

    def stage(tau, costate, k):
        gradient = jax.grad(lambda tau: costate @ problem.dynamics(tau[:n], tau[n:], k))
        along = jax.linearize(gradient, tau)[1]
        basis = jnp.eye(tau.shape[0], dtype=tau.dtype)
        if tau.shape[0] > _MOST_UNROLLED:
            return jax.vmap(along)(basis)
        return jnp.stack([along(direction) for direction in basis])

    taus = jnp.concatenate([states[:-1], controls], axis=1)
    return jax.vmap(stage)(taus, costates[1:], stages(problem.horizon))


def exact_system(problem: StageProblem, point: Point, held: Clamped) -> System:
    """The KKT matrix at `point`, with the exact Hessian of the Lagrangian."""
    x, u = point.states, point.controls
    H, H_N = cost_hessians(problem, x, u)
    H = H + dynamics_hessians(problem, x, u, point.costates)
    return System(H, H_N, linearise(problem, x, u).F, ~held.held)


def gauss_newton_system(problem: StageProblem, point: Point, held: Clamped) -> System:
    """The KKT matrix at `point` without the curvature of the dynamics."""
    H, H_N = cost_hessians(problem, point.states, point.controls)
    F = linearise(problem, point.states, point.controls).F
    return System(H, H_N, F, ~held.held)
