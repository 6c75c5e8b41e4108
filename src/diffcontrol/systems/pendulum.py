r"""Pendulum on a motor: swing up and balance with little torque (DiffMPC, section 5).

State `(cos th, sin th, th')`, with th the angle from upright [rad] and th' [rad/s]; control: the
torque at the pivot [N m]. A uniform rod of mass m and length l, advanced by semi-implicit Euler:

    th'+ = th' + dt (3 g / (2 l) sin th + 3 u / (m l^2)),    th+ = th + dt th'+

The gravity term reads the sine from the state itself, as the papers do, so derivatives are
defined also for states that are no longer on the circle; the angle is `atan2(sin, cos)`.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from .._control_problem import Bounds, ControlProblem
from .._cost import GoalCost
from ._parameter import fixed_step, parameter
from ._turn import turned


class Pendulum(eqx.Module):
    """Dynamics `(x, u, t) -> next x` of the pendulum. The control is not clamped.

    The motion depends on the parameters only through `gravity / length` and `mass * length^2`.

    Attributes:
        gravity: g [m/s^2].
        mass: m [kg].
        length: l [m].
        time_step: dt [s], fixed.

    Raises:
        TypeError: if a parameter is not a real number or the step not a Python number.
        ValueError: if a parameter is not a scalar or the step not positive.

    Source: the systems of Amos et al. 2018 (DiffMPC) and of DiLQR (2025), after Gym's Pendulum.
    """

    gravity: Float[Array, ""]
    mass: Float[Array, ""]
    length: Float[Array, ""]
    time_step: float = eqx.field(static=True)

    def __init__(
        self,
        gravity: ArrayLike = 10.0,
        mass: ArrayLike = 1.0,
        length: ArrayLike = 1.0,
        time_step: float = 0.05,
    ):
        self.gravity = parameter("gravity", gravity)
        self.mass = parameter("mass", mass)
        self.length = parameter("length", length)
        self.time_step = fixed_step(time_step)

    def __call__(self, x: Float[Array, "3"], u: Float[Array, "1"], t) -> Float[Array, "3"]:
        cos, sin, speed = jnp.unstack(x)
        speed = speed + self.time_step * _gravity_and_torque(self, sin, u[0])
        return jnp.stack([*turned(cos, sin, self.time_step * speed), speed])


class ComplexPendulum(eqx.Module):
    r"""The papers' "pendulum-complex", which the simple `Pendulum` cannot represent.

        th'+ = th' + dt (3 g / (2 l) sin(th + wind) + 3 u / (m l^2) - damping th)

    As in the papers, "damping" multiplies the angle, not the speed, so it acts as a spring
    about the upright, which jumps where the angle passes from pi to -pi.

    Attributes:
        gravity: g [m/s^2].
        mass: m [kg].
        length: l [m].
        damping: [1/s^2].
        wind: tilts the direction of gravity [rad].
        time_step: dt [s], fixed.

    Raises:
        TypeError: if a parameter is not a real number or the step not a Python number.
        ValueError: if a parameter is not a scalar or the step not positive.

    Source: Amos et al. 2018 (DiffMPC), section 5.4.
    """

    gravity: Float[Array, ""]
    mass: Float[Array, ""]
    length: Float[Array, ""]
    damping: Float[Array, ""]
    wind: Float[Array, ""]
    time_step: float = eqx.field(static=True)

    def __init__(
        self,
        gravity: ArrayLike = 10.0,
        mass: ArrayLike = 1.0,
        length: ArrayLike = 1.0,
        damping: ArrayLike = 1.0,
        wind: ArrayLike = 0.1,
        time_step: float = 0.05,
    ):
        self.gravity = parameter("gravity", gravity)
        self.mass = parameter("mass", mass)
        self.length = parameter("length", length)
        self.damping = parameter("damping", damping)
        self.wind = parameter("wind", wind)
        self.time_step = fixed_step(time_step)

    def __call__(self, x: Float[Array, "3"], u: Float[Array, "1"], t) -> Float[Array, "3"]:
        cos, sin, speed = jnp.unstack(x)
        angle = jnp.arctan2(sin, cos)
        acceleration = _gravity_and_torque(self, jnp.sin(angle + self.wind), u[0])
        speed = speed + self.time_step * (acceleration - self.damping * angle)
        angle = angle + self.time_step * speed
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])


def cost() -> GoalCost:
    """Distance to upright and at rest, goal `(1, 0, 0)`.

    The papers' weights: 1 [cost] of cosine and sine, 0.1 [cost s^2 / rad^2] of the speed, 0.001
    [cost / (N m)^2] of the torque.
    """
    return GoalCost(weights=jnp.array([1.0, 1.0, 0.1, 0.001]), goal=jnp.array([1.0, 0.0, 0.0]))


def bounds() -> Bounds:
    """Torque within 2 N m: too little to lift the pendulum without swinging."""
    return Bounds(-2.0, 2.0)


def start(key: PRNGKeyArray | Array) -> Float[Array, "3"]:
    """A random initial state, shape `(3,)`: th in +-pi/2 [rad], th' in +-1 [rad/s], uniform."""
    limits = jnp.array([jnp.pi / 2, 1.0])
    angle, speed = jax.random.uniform(key, (2,), minval=-limits, maxval=limits)
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])


def problem(horizon: int = 20, dynamics: Callable | None = None) -> ControlProblem:
    """The papers' pendulum problem: `cost`, `bounds`, and no terminal cost.

    Args:
        horizon: number of controls.
        dynamics: `(x, u, t) -> next x`; by default `Pendulum()`.
    """
    return ControlProblem(
        dynamics=Pendulum() if dynamics is None else dynamics,
        stage_cost=cost(),
        horizon=horizon,
        control_size=1,
        control_bounds=bounds(),
    )


def _gravity_and_torque(rod: Pendulum | ComplexPendulum, sin: Array, torque: Array) -> Array:
    # A uniform rod has the moment of inertia m l^2 / 3 about its end.
    return 3.0 * rod.gravity / (2.0 * rod.length) * sin + 3.0 * torque / (rod.mass * rod.length**2)
