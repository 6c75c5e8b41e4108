r"""When a trajectory is optimal: the Lagrangian, its derivative, and what is clamped.

    L = sum_t l(x_t, u_t, t) + l_T(x_T)
        + lambda_0' (x0 - x_0) + sum_t lambda_{t+1}' (f(x_t, u_t, t) - x_{t+1})

At a solution its derivative with respect to `(x, u, lambda)` vanishes, except for controls held
by a bound. This one statement serves solvers, adjoints, certificates and tests. The stage
Hamiltonian is `h_t(x, u) = l(x, u, t) + lambda_{t+1}' f(x, u, t)`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._control_problem import StageProblem
from ._trajectory import stages


class Point(eqx.Module):
    """A point in the space of the optimality conditions.

    Attributes:
        states: `(T+1, n)`.
        controls: `(T, m)`.
        costates: `(T+1, n)`.
    """

    states: Float[Array, "T1 n"]
    controls: Float[Array, "T m"]
    costates: Float[Array, "T1 n"]


def stage_costs(problem: StageProblem, states: Array, controls: Array) -> Float[Array, "T1"]:
    """Cost of every stage and, last, of the final state."""
    running = jax.vmap(problem.stage_cost)(states[:-1], controls, stages(problem.horizon))
    return jnp.append(running, problem.terminal_cost(states[-1]))


def lagrangian(problem: StageProblem, x0: Array, point: Point) -> Float[Array, ""]:
    """The Lagrangian of the equality-constrained problem; bounds enter by what is clamped."""
    x, u, costates = point.states, point.controls, point.costates
    predicted = jax.vmap(problem.dynamics)(x[:-1], u, stages(problem.horizon))
    gaps = jnp.concatenate([x0[None], predicted]) - x
    return jnp.sum(stage_costs(problem, x, u)) + jnp.sum(costates * gaps)


def optimality_residual(problem: StageProblem, x0: Array, point: Point) -> Point:
    """Derivative of the Lagrangian with respect to states, controls and costates."""
    return jax.grad(lagrangian, argnums=2)(problem, x0, point)


class Linearisation(eqx.Module):
    """First derivatives along a trajectory, with `tau = [x; u]`.

    Attributes:
        cost_gradient: `dl/dtau`, `(T, n+m)`.
        terminal_gradient: `dl_T/dx`, `(n,)`.
        F: dynamics Jacobians `[f_x f_u]`, `(T, n, n+m)`.
    """

    cost_gradient: Float[Array, "T nm"]
    terminal_gradient: Float[Array, " n"]
    F: Float[Array, "T n nm"]


def linearise(problem: StageProblem, states: Array, controls: Array) -> Linearisation:
    """First derivatives of cost and dynamics, all stages at once."""
    n = problem.state_size
    taus = jnp.concatenate([states[:-1], controls], axis=1)

    def stage(tau, k):
        x, u = tau[:n], tau[n:]
        gradient = jax.grad(lambda tau: problem.stage_cost(tau[:n], tau[n:], k))(tau)
        F_x, F_u = jax.jacfwd(problem.dynamics, argnums=(0, 1))(x, u, k)
        return gradient, jnp.concatenate([F_x, F_u], axis=1)

    gradients, F = jax.vmap(stage)(taus, stages(problem.horizon))
    return Linearisation(gradients, jax.grad(problem.terminal_cost)(states[-1]), F)


def costates_of(linearisation: Linearisation, n: int) -> Float[Array, "T1 n"]:
    """Costates by one backward sweep of `lambda_t = l_x + f_x' lambda_{t+1}` from `dl_T/dx`."""

    def stage(costate, inputs):
        gradient, F = inputs
        costate = gradient[:n] + F[:, :n].T @ costate
        return costate, costate

    last = linearisation.terminal_gradient
    _, earlier = jax.lax.scan(
        stage, last, (linearisation.cost_gradient, linearisation.F), reverse=True
    )
    return jnp.concatenate([earlier, last[None]])


def control_gradient(
    linearisation: Linearisation, costates: Array, n: int
) -> tuple[Float[Array, "T m"], Float[Array, "T m"]]:
    """The two parts of `d = l_u + f_u' lambda`: of the cost and of the dynamics."""
    through_dynamics = jnp.einsum("tij,ti->tj", linearisation.F[:, :, n:], costates[1:])
    return linearisation.cost_gradient[:, n:], through_dynamics


class Stationarity(eqx.Module):
    """How far a trajectory is from being stationary.

    `raw = max |clip(u - d, lower, upper) - u|` with the reduced gradient `d = l_u + f_u' lambda`;
    `relative` divides by `scale = max(1, max|l_u|, max|f_u' lambda|)`.
    """

    raw: Float[Array, ""]
    relative: Float[Array, ""]
    scale: Float[Array, ""]


def stationarity(
    problem: StageProblem, controls: Array, cost_part: Array, dynamics_part: Array
) -> Stationarity:
    """The one measure of convergence that solvers, certificates and tests share."""
    projected = jnp.clip(controls - (cost_part + dynamics_part), problem.lower, problem.upper)
    raw = jnp.max(jnp.abs(projected - controls))
    scale = jnp.maximum(jnp.max(jnp.abs(cost_part)), jnp.max(jnp.abs(dynamics_part)))
    scale = jnp.maximum(1.0, scale)
    return Stationarity(raw, raw / scale, scale)


class Clamped(eqx.Module):
    """Which controls are held by a bound: at it, and pressed against it by the gradient.

    `at_lower` and `at_upper`, `(T, m)`, are 1 where that side holds the control and 0 elsewhere.

    A control at a bound with zero multiplier is free. Where both bounds are equal the control is
    always held; the sign of the gradient then names the side that holds it, and both sides share
    it where the gradient vanishes.
    """

    at_lower: Float[Array, "T m"]
    at_upper: Float[Array, "T m"]

    @property
    def held(self) -> Bool[Array, "T m"]:
        return (self.at_lower + self.at_upper) > 0

    def of_bounds(self, lower: Array, upper: Array) -> Array:
        """Values at the bounds that hold, zero where none does."""
        return jnp.where(self.at_lower > 0, self.at_lower * lower, 0.0) + jnp.where(
            self.at_upper > 0, self.at_upper * upper, 0.0
        )


def clamped(problem: StageProblem, controls: Array, gradient: Array) -> Clamped:
    """The controls held by their bounds, given the reduced gradient `d`, `(T, m)`."""
    fixed = problem.lower == problem.upper
    shared = jnp.where(fixed & (gradient == 0.0), 0.5, 0.0)
    # At a bound up to rounding, never by the size of the gradient, whose unit is another: in a
    # problem whose cost is scaled up, what is left of a free control's gradient may be large.
    slack = 64 * jnp.finfo(controls.dtype).eps * (1.0 + jnp.abs(controls))
    at_lower = (controls - problem.lower <= slack) & (gradient > 0.0)
    at_upper = (problem.upper - controls <= slack) & (gradient < 0.0)
    one = jnp.ones_like(controls)
    return Clamped(jnp.where(at_lower, one, shared), jnp.where(at_upper, one, shared))
