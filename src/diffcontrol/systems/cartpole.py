r"""Pole hinged on a cart that is pushed sideways: swing up and balance (DiffMPC, section 5).

State `(p, p', cos th, sin th, th')`: position of the cart [m] and its speed [m/s], angle of the
pole from upright [rad] and its speed [rad/s]; control: the horizontal force on the cart [N]. With
M = m_c + m_p and half length l of a uniform pole,

    a   = (u + m_p l th'^2 sin th) / M
    th'' = (g sin th - a cos th) / (l (4/3 - m_p cos^2 th / M))
    p''  = a - m_p l th'' cos th / M

(a torque at the hinge adds torque / (m_p l) to g sin th), advanced by explicit Euler: positions
move with the old speeds. Sine and cosine are read from the state itself, as the papers do; the
angle is `atan2(sin, cos)`.
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


class Cartpole(eqx.Module):
    """Dynamics `(x, u, t) -> next x` of the cartpole. The control is not clamped.

    Attributes:
        gravity: g [m/s^2].
        cart_mass: m_c [kg].
        pole_mass: m_p [kg].
        half_length: l, from the hinge to the middle of the pole [m].
        time_step: dt [s], fixed.

    Raises:
        TypeError: if a parameter is not a real number or the step not a Python number.
        ValueError: if a parameter is not a scalar or the step not positive.

    Source: Barto, Sutton and Anderson 1983 as in Gym's CartPole; Amos et al. 2018 (DiffMPC).
    """

    gravity: Float[Array, ""]
    cart_mass: Float[Array, ""]
    pole_mass: Float[Array, ""]
    half_length: Float[Array, ""]
    time_step: float = eqx.field(static=True)

    def __init__(
        self,
        gravity: ArrayLike = 9.8,
        cart_mass: ArrayLike = 1.0,
        pole_mass: ArrayLike = 0.1,
        half_length: ArrayLike = 0.5,
        time_step: float = 0.05,
    ):
        self.gravity = parameter("gravity", gravity)
        self.cart_mass = parameter("cart_mass", cart_mass)
        self.pole_mass = parameter("pole_mass", pole_mass)
        self.half_length = parameter("half_length", half_length)
        self.time_step = fixed_step(time_step)

    def __call__(self, x: Float[Array, "5"], u: Float[Array, "1"], t) -> Float[Array, "5"]:
        entries = jnp.unstack(x)
        accelerations = _accelerations(self, entries, u[0], self.gravity * entries[3])
        return _advance(entries, *accelerations, self.time_step)


class CartpoleWithFriction(eqx.Module):
    r"""A cartpole whose slider and hinge resist motion, which the simple `Cartpole` lacks.

    The resistance of a joint that moves at speed v is a force (of the hinge, a torque)

        - damping v - friction tanh(v / v_0),    v_0 = 0.02 [m/s] or [rad/s]

    Dry friction is -friction sign(v); the hyperbolic tangent is its smooth stand-in, which lets a
    joint at rest creep but has derivatives. Each step is divided into `substeps` of explicit Euler.

    Attributes:
        gravity: g [m/s^2].
        cart_mass: m_c [kg].
        pole_mass: m_p [kg].
        half_length: l, from the hinge to the middle of the pole [m].
        cart_damping: of the slider [N s/m].
        cart_friction: dry friction of the slider [N].
        pole_damping: of the hinge [N m s/rad].
        pole_friction: dry friction of the hinge [N m].
        time_step: dt [s], fixed.
        substeps: how many steps of integration make one of the system, fixed.

    Raises:
        TypeError: if a parameter is not a real number, the step not a Python number, or
            `substeps` not an integer.
        ValueError: if a parameter is not a scalar, the step not positive, or `substeps` below one.
    """

    gravity: Float[Array, ""]
    cart_mass: Float[Array, ""]
    pole_mass: Float[Array, ""]
    half_length: Float[Array, ""]
    cart_damping: Float[Array, ""]
    cart_friction: Float[Array, ""]
    pole_damping: Float[Array, ""]
    pole_friction: Float[Array, ""]
    time_step: float = eqx.field(static=True)
    substeps: int = eqx.field(static=True)

    def __init__(
        self,
        gravity: ArrayLike = 9.8,
        cart_mass: ArrayLike = 1.0,
        pole_mass: ArrayLike = 0.1,
        half_length: ArrayLike = 0.5,
        cart_damping: ArrayLike = 1.0,
        cart_friction: ArrayLike = 1.0,
        pole_damping: ArrayLike = 0.02,
        pole_friction: ArrayLike = 0.02,
        time_step: float = 0.05,
        substeps: int = 2,
    ):
        self.gravity = parameter("gravity", gravity)
        self.cart_mass = parameter("cart_mass", cart_mass)
        self.pole_mass = parameter("pole_mass", pole_mass)
        self.half_length = parameter("half_length", half_length)
        self.cart_damping = parameter("cart_damping", cart_damping)
        self.cart_friction = parameter("cart_friction", cart_friction)
        self.pole_damping = parameter("pole_damping", pole_damping)
        self.pole_friction = parameter("pole_friction", pole_friction)
        self.time_step = fixed_step(time_step)
        if isinstance(substeps, bool) or not isinstance(substeps, int):
            raise TypeError(f"`substeps` must be a Python integer, got {substeps!r}.")
        if substeps < 1:
            raise ValueError(f"`substeps` must be at least 1, got {substeps}.")
        self.substeps = substeps

    def __call__(self, x: Float[Array, "5"], u: Float[Array, "1"], t) -> Float[Array, "5"]:
        for _ in range(self.substeps):
            entries = jnp.unstack(x)
            _, velocity, _, sin, speed = entries
            force = u[0] - self.cart_damping * velocity - self.cart_friction * _sign(velocity)
            torque = -self.pole_damping * speed - self.pole_friction * _sign(speed)
            pull = self.gravity * sin + torque / (self.pole_mass * self.half_length)
            accelerations = _accelerations(self, entries, force, pull)
            x = _advance(entries, *accelerations, self.time_step / self.substeps)
        return x


def cost() -> GoalCost:
    """Distance to upright, centred and at rest, goal `(0, 0, 1, 0, 0)`.

    The papers' weights: 0.1 [cost / m^2] of position and [cost s^2 / m^2] of speed, 1 [cost] of
    cosine and sine, 0.1 [cost s^2 / rad^2] of the pole's speed, 0.001 [cost / N^2] of force.
    """
    return GoalCost(
        weights=jnp.array([0.1, 0.1, 1.0, 1.0, 0.1, 0.001]),
        goal=jnp.array([0.0, 0.0, 1.0, 0.0, 0.0]),
    )


def bounds() -> Bounds:
    """Force within 100 N."""
    return Bounds(-100.0, 100.0)


def start(key: PRNGKeyArray | Array) -> Float[Array, "5"]:
    """A random initial state, shape `(5,)`, uniform.

    Position and speed of the cart within 0.5 [m], [m/s], angle within pi [rad], angular speed
    within 1 [rad/s].
    """
    limits = jnp.array([0.5, 0.5, jnp.pi, 1.0])
    position, velocity, angle, speed = jax.random.uniform(key, (4,), minval=-limits, maxval=limits)
    return jnp.stack([position, velocity, jnp.cos(angle), jnp.sin(angle), speed])


def problem(horizon: int = 20, dynamics: Callable | None = None) -> ControlProblem:
    """The papers' cartpole problem: `cost`, `bounds`, and no terminal cost.

    Args:
        horizon: number of controls.
        dynamics: `(x, u, t) -> next x`; by default `Cartpole()`.
    """
    return ControlProblem(
        dynamics=Cartpole() if dynamics is None else dynamics,
        stage_cost=cost(),
        horizon=horizon,
        control_size=1,
        control_bounds=bounds(),
    )


def _accelerations(
    pole: Cartpole | CartpoleWithFriction, x: tuple[Array, ...], force: Array, pull: Array
) -> tuple[Array, Array]:
    """Of cart [m/s^2] and pole [rad/s^2]; `pull` is g sin th, and what torques add to it."""
    _, _, cos, sin, speed = x
    l, share = pole.half_length, pole.pole_mass / (pole.cart_mass + pole.pole_mass)  # m_p / M
    a = force / (pole.cart_mass + pole.pole_mass) + share * l * speed**2 * sin
    angular = (pull - a * cos) / (l * (4.0 / 3.0 - share * cos**2))
    return a - share * l * angular * cos, angular


def _advance(
    x: tuple[Array, ...], acceleration: Array, angular: Array, dt: float
) -> Float[Array, "5"]:
    position, velocity, cos, sin, speed = x
    cos, sin = turned(cos, sin, dt * speed)
    return jnp.stack(
        [position + dt * velocity, velocity + dt * acceleration, cos, sin, speed + dt * angular]
    )


def _sign(speed: Array) -> Array:
    return jnp.tanh(speed / 0.02)
