r"""A cartpole in MuJoCo whose joints resist motion, as a Gymnasium environment.

`import diffcontrol` does not bring this module; it needs `pip install "diffcontrol[sim]"`.
Gymnasium imports it by itself:

    gymnasium.make("diffcontrol.environments:MuJoCoCartpole-v0")

Masses, lengths, gravity, limits, starts and cost are those of `diffcontrol.systems.cartpole`, and
so is the state `(p, p', cos th, sin th, th')`. What that model lacks: slider and hinge have viscous
damping and dry friction, and the motion within a step is followed five times as finely, by the
fourth-order Runge-Kutta method, where the model takes one step of explicit Euler. With both
resistances zero the accelerations of the two are equal (the tests compare them).
"""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from gymnasium.spaces import Box

from ._mpc import MPC
from ._solver.ddp import DDP
from .systems import cartpole

TIME_STEP = 0.05  # [s]
_SUBSTEPS = 5

# Hinge axis y: a positive angle leans towards positive x. The pole is a thin uniform rod; MuJoCo
# wants some inertia also about its length, about which it never turns.
_MODEL = """
<mujoco model="cartpole with friction">
  <compiler angle="radian"/>
  <option timestep="{substep}" integrator="RK4" gravity="0 0 -{gravity}">
    <flag contact="disable"/>
  </option>
  <worldbody>
    <body name="cart">
      <joint name="slider" type="slide" axis="1 0 0"
             damping="{cart_damping}" frictionloss="{cart_friction}"/>
      <inertial pos="0 0 0" mass="{cart_mass}" diaginertia="1 1 1"/>
      <body name="pole">
        <joint name="hinge" type="hinge" axis="0 1 0"
               damping="{pole_damping}" frictionloss="{pole_friction}"/>
        <inertial pos="0 0 {half_length}" mass="{pole_mass}"
                  diaginertia="{inertia} {inertia} {axial}"/>
      </body>
    </body>
  </worldbody>
  <actuator>
    <motor joint="slider" ctrllimited="true" ctrlrange="{lower} {upper}"/>
  </actuator>
</mujoco>
"""


class MuJoCoCartpole(gymnasium.Env):
    """Swing up and balance a pole on a cart whose slider and hinge resist motion.

    Observation: the state `(p [m], p' [m/s], cos th, sin th, th' [rad/s])`, float64. Action: the
    force on the cart `(1,)` [N], cut at +-100. Reward: minus the stage cost of
    `systems.cartpole` at the state before the step and the force as cut. Episodes start as
    `systems.cartpole.start` says, or hanging at rest in the middle, and do not end by themselves;
    `gymnasium.make` cuts them at 200 steps of 0.05 s.

    Args:
        cart_damping: of the slider [N s/m].
        cart_friction: dry friction of the slider [N].
        pole_damping: of the hinge [N m s/rad].
        pole_friction: dry friction of the hinge [N m].

    Raises:
        ValueError: for a resistance that is negative or not finite.
    """

    metadata = {"render_modes": []}

    def __init__(
        self,
        cart_damping: float = 1.0,
        cart_friction: float = 1.0,
        pole_damping: float = 0.02,
        pole_friction: float = 0.02,
    ):
        resistances = {
            "cart_damping": cart_damping,
            "cart_friction": cart_friction,
            "pole_damping": pole_damping,
            "pole_friction": pole_friction,
        }
        for name, value in resistances.items():
            if not 0.0 <= value < float("inf"):
                raise ValueError(f"MuJoCoCartpole: `{name}` must be 0 or positive, got {value}.")
        known, bounds, cost = cartpole.Cartpole(), cartpole.bounds(), cartpole.cost()
        self._lower, self._upper = float(bounds.lower), float(bounds.upper)
        self._weights, self._goal = np.asarray(cost.weights), np.asarray(cost.goal)
        # About its middle; the model's 4/3 l is this and the distance to the hinge together.
        inertia = float(known.pole_mass * known.half_length**2) / 3.0
        self._model = mujoco.MjModel.from_xml_string(
            _MODEL.format(
                substep=TIME_STEP / _SUBSTEPS,
                gravity=float(known.gravity),
                cart_mass=float(known.cart_mass),
                pole_mass=float(known.pole_mass),
                half_length=float(known.half_length),
                inertia=inertia,
                axial=1e-3 * inertia,
                lower=self._lower,
                upper=self._upper,
                **resistances,
            )
        )
        self._data = mujoco.MjData(self._model)
        self.dt = TIME_STEP
        self.observation_space = Box(-np.inf, np.inf, (5,), np.float64)
        self.action_space = Box(self._lower, self._upper, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode.

        Args:
            seed: of the random start.
            options: `{"start": "hanging"}` starts at rest, hanging, in the middle;
                `{"state": x}` in the state `x`, `(5,)`; without either the start is random.

        Returns:
            The observation and an empty dictionary.

        Raises:
            ValueError: for other options.
        """
        super().reset(seed=seed)
        match options or {}:
            case {"state": state}:
                state = np.asarray(state, dtype=float)
                if state.shape != (5,):
                    raise ValueError(
                        f"MuJoCoCartpole: the state to start in must have shape (5,), but has "
                        f"shape {state.shape}."
                    )
            case {"start": "hanging"}:
                state = np.array([0.0, 0.0, -1.0, 0.0, 0.0])
            case given if not given:
                key = jax.random.key(int(self.np_random.integers(2**31)))
                state = np.asarray(cartpole.start(key), dtype=float)
            case given:
                raise ValueError(
                    f'MuJoCoCartpole: `options` may hold `start` as "hanging" or `state`, got '
                    f"{given}."
                )
        mujoco.mj_resetData(self._model, self._data)
        position, velocity, cos, sin, speed = state
        self._data.qpos[:] = position, np.arctan2(sin, cos)
        self._data.qvel[:] = velocity, speed
        return self._observation(), {}

    def step(self, action):
        """Apply a force for one time step; see the class for observation and reward."""
        force = float(
            np.clip(np.asarray(action, dtype=float).reshape(()), self._lower, self._upper)
        )
        distance = np.append(self._observation(), force) - np.append(self._goal, 0.0)
        self._data.ctrl[0] = force
        mujoco.mj_step(self._model, self._data, nstep=_SUBSTEPS)
        reward = -0.5 * float(self._weights @ distance**2)
        return self._observation(), reward, False, False, {}

    def _observation(self) -> np.ndarray:
        (position, angle), (velocity, speed) = self._data.qpos, self._data.qvel
        return np.array([position, velocity, np.cos(angle), np.sin(angle), speed])


def expert() -> MPC:
    """A controller that knows the friction of `MuJoCoCartpole`; its demonstrations ship with us.

    Its model integrates twice a step, by explicit Euler. Its first plan starts from a push to one
    side for 0.4 s, then to the other: to leave the pole where it hangs is locally optimal.
    """
    problem = cartpole.problem(dynamics=cartpole.CartpoleWithFriction())
    push = jnp.where(jnp.arange(problem.horizon)[:, None] < 8, -15.0, 15.0)
    return MPC(problem, DDP(max_iterations=50), guess=push)


gymnasium.register(
    id="MuJoCoCartpole-v0",
    entry_point="diffcontrol.environments:MuJoCoCartpole",
    max_episode_steps=200,
)
