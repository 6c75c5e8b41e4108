r"""Mass on a line moved by a bounded force: the smallest problem with bounds.

State `(p, p')`: position [m] and velocity [m/s]; control: the force [N]. Exact for a force held
over the step:

    p+ = p + dt p' + dt^2 u / (2 m),    p'+ = p' + dt u / m

The dynamics are linear, so without bounds every solver is done in one iteration.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._control_problem import Bounds, ControlProblem
from .._cost import GoalCost
from ._parameter import fixed_step, parameter


class DoubleIntegrator(eqx.Module):
    """Dynamics `(x, u, t) -> next x` of a mass on a line. The control is not clamped.

    Attributes:
        mass: m [kg].
        time_step: dt [s], fixed.

    Raises:
        TypeError: if a parameter is not a real number or the step not a Python number.
        ValueError: if a parameter is not a scalar or the step not positive.

    Source: the double integrator under a zero-order hold, as in textbooks on digital control.
    """

    mass: Float[Array, ""]
    time_step: float = eqx.field(static=True)

    def __init__(self, mass: ArrayLike = 1.0, time_step: float = 0.1):
        self.mass = parameter("mass", mass)
        self.time_step = fixed_step(time_step)

    def __call__(self, x: Float[Array, "2"], u: Float[Array, "1"], t) -> Float[Array, "2"]:
        position, velocity = jnp.unstack(x)
        dt, acceleration = self.time_step, u[0] / self.mass
        return jnp.stack(
            [position + dt * velocity + 0.5 * dt**2 * acceleration, velocity + dt * acceleration]
        )


def cost() -> GoalCost:
    """Distance to rest at the origin.

    Weights: 1 [cost / m^2] of position, 0.1 [cost s^2 / m^2] of velocity, 0.01 [cost / N^2] of
    the force.
    """
    return GoalCost(weights=jnp.array([1.0, 0.1, 0.01]), goal=jnp.zeros(2))


def bounds() -> Bounds:
    """Force within 1 N."""
    return Bounds(-1.0, 1.0)


def start(key: PRNGKeyArray | Array) -> Float[Array, "2"]:
    """A random initial state, shape `(2,)`: within 1 [m] and 1 [m/s], uniform."""
    return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)


def problem(horizon: int = 20, dynamics: Callable | None = None) -> ControlProblem:
    """Bring the mass to rest at the origin: `cost`, `bounds`, and no terminal cost.

    Args:
        horizon: number of controls.
        dynamics: `(x, u, t) -> next x`; by default `DoubleIntegrator()`.
    """
    return ControlProblem(
        dynamics=DoubleIntegrator() if dynamics is None else dynamics,
        stage_cost=cost(),
        horizon=horizon,
        control_size=1,
        control_bounds=bounds(),
    )
