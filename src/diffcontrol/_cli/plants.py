"""Plants: what a controller drives. Several episodes step together.

A plant is one of our systems, behind actuators that saturate, or a Gymnasium environment. What an
environment observes is mapped to a state explicitly, here or by the user; nothing is guessed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from ..systems import Clamped
from .errors import UserError
from .named import load_attribute, system_named

PREFIX = "gymnasium:"


@runtime_checkable
class Plant(Protocol):
    """Steps N episodes together.

    Attributes:
        name: as on the command line.
        time_step: [s], or None where it is not known.
        most_steps: where the environment ends its episodes, or None.
        lacks: what a model of it leaves out, in a sentence.
    """

    name: str
    time_step: float | None
    most_steps: int | None
    lacks: str

    def reset(self, seeds: Sequence[int]) -> np.ndarray:
        """Start one episode for each seed; their states, `(N, n)`."""

    def step(self, controls: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Apply controls `(N, m)`: states `(N, n)`, rewards `(N,)`, whether each ended `(N,)`."""

    def close(self) -> None:
        """Free what the plant holds."""


class EquationsPlant:
    """Equations in JAX; the reward is minus a stage cost.

    Args:
        name: as on the command line.
        dynamics: `(x, u, t) -> next x`.
        cost: `(x, u, t) -> cost`.
        start: random key -> initial state `(n,)`.
        time_step: [s], or None where it is not known.
        lacks: what a model of it leaves out, in a sentence.
    """

    def __init__(
        self,
        name: str,
        dynamics: Callable,
        cost: Callable,
        start: Callable,
        time_step: float | None,
        lacks: str = "The model lacks nothing: plant and model are the same equations.",
    ):
        self.name, self.lacks, self._start = name, lacks, start
        self.time_step = time_step
        self.most_steps: int | None = None
        self._step = jax.jit(
            jax.vmap(lambda x, u, t: (dynamics(x, u, t), -cost(x, u, t)), (0, 0, None))
        )

    def reset(self, seeds):
        keys = jnp.stack([jax.random.PRNGKey(seed) for seed in seeds])
        self._states, self._time = jax.vmap(self._start)(keys), 0
        return np.asarray(self._states)

    def step(self, controls):
        self._states, rewards = self._step(self._states, jnp.asarray(controls), self._time)
        self._time += 1
        return np.asarray(self._states), np.asarray(rewards), np.zeros(len(controls), bool)

    def close(self):
        pass


@dataclasses.dataclass(frozen=True)
class ObservationMapping:
    """How an environment is seen by a controller.

    Attributes:
        state_of: observation -> state `(n,)`.
        action_of: control `(m,)` -> action.
        time_step: [s], or None where it is not known.
        lacks: what our model of it leaves out.
    """

    state_of: Callable[[Any], Any]
    action_of: Callable[[Any], Any]
    time_step: float | None = None
    lacks: str = "What the model lacks is not known: the environment's mapping is your own."


def _single(control: np.ndarray) -> np.ndarray:
    return np.asarray(control, dtype=np.float32)


# The environments that our systems model, and how. Others are mapped by the user.
MAPPINGS = {
    "Pendulum-v1": ObservationMapping(
        state_of=np.asarray,  # it observes (cos th, sin th, th'), which is the state
        action_of=_single,
        time_step=0.05,
        lacks=(
            "Pendulum-v1 clips the speed at 8 rad/s and the torque at 2 N m and observes in single "
            "precision; the model has no limit on the speed."
        ),
    ),
    # Gymnasium imports the module before the colon, which registers the environment.
    "diffcontrol.environments:MuJoCoCartpole-v0": ObservationMapping(
        state_of=np.asarray,  # it observes the state
        action_of=np.asarray,
        time_step=0.05,
        lacks=(
            "In MuJoCoCartpole-v0 slider and hinge have damping and dry friction, and the motion "
            "within a step is followed finely; the model lacks friction and takes Euler steps."
        ),
    ),
}


class GymnasiumPlant:
    """A Gymnasium environment, one copy for each episode. Nothing is normalised.

    Raises:
        UserError: if Gymnasium is not installed, there is no such environment, or it is neither
            in the table nor mapped by the user.
    """

    def __init__(self, environment: str, state_of: str | None = None, action_of: str | None = None):
        try:
            import gymnasium
        except ImportError as problem:
            raise UserError(
                "Gymnasium is not installed; run `pip install 'diffcontrol[sim]'`."
            ) from problem
        self.name = PREFIX + environment
        known = MAPPINGS.get(environment)
        if known is None and state_of is None:
            raise UserError(
                f"It is not known how the observations of `{environment}` map to states; say so "
                "with --state-of module:function (`numpy:asarray` if the observation is the state)."
            )
        mapping = known or ObservationMapping(np.asarray, np.asarray)
        self._state_of = mapping.state_of if state_of is None else load_attribute(state_of)
        self._action_of = mapping.action_of if action_of is None else load_attribute(action_of)
        self.lacks, self.time_step = mapping.lacks, mapping.time_step
        self._make = lambda: gymnasium.make(environment)
        try:
            first = self._make()
        except Exception as problem:
            raise UserError(
                f"Gymnasium cannot make `{environment}` ({str(problem).splitlines()[0]})."
            ) from problem
        self.most_steps = None if first.spec is None else first.spec.max_episode_steps
        if self.time_step is None:
            self.time_step = getattr(first.unwrapped, "dt", None)
        self._environments = [first]

    def reset(self, seeds):
        while len(self._environments) < len(seeds):
            self._environments.append(self._make())
        self._running = self._environments[: len(seeds)]
        pairs = zip(self._running, seeds, strict=True)
        observations = [environment.reset(seed=int(seed))[0] for environment, seed in pairs]
        self._states = np.stack([self._state(observation) for observation in observations])
        self._ended = np.zeros(len(seeds), bool)
        return self._states.copy()

    def step(self, controls):
        rewards = np.zeros(len(controls))
        for i, (environment, control) in enumerate(zip(self._running, controls, strict=True)):
            if self._ended[i]:
                continue
            observation, rewards[i], terminated, truncated, _ = environment.step(
                self._action_of(control)
            )
            self._states[i] = self._state(observation)
            self._ended[i] = terminated or truncated
        return self._states.copy(), rewards, self._ended.copy()

    def close(self):
        for environment in self._environments:
            environment.close()

    def _state(self, observation: Any) -> np.ndarray:
        state = np.asarray(self._state_of(observation), dtype=float)
        if state.ndim != 1:
            raise UserError(
                f"--state-of must return one flat state of shape (n,), but returns shape "
                f"{state.shape}."
            )
        return state


def check_fit(start: Callable, name: str, dynamics: Callable, control_size: int) -> int:
    """The number n of states of a start and dynamics that the user has named.

    Raises:
        UserError: if they do not fit together.
    """
    try:
        x0 = jnp.asarray(start(jax.random.key(0)), float)
        following = dynamics(x0, jnp.zeros(control_size), jnp.asarray(0))
        if x0.ndim != 1 or following.shape != x0.shape:
            raise ValueError(f"from {x0.shape} the plant goes to {following.shape}")
    except Exception as wrong:
        said = (str(wrong).splitlines() or [""])[0]
        raise UserError(
            f"Starts and {name} do not fit together for states (n,) and controls ({control_size},) "
            f"({type(wrong).__name__}: {said})"
        ) from wrong
    return x0.size


def system_plant(name: str) -> EquationsPlant:
    """One of our systems with its usual parameters, its actuators saturated at its bounds.

    Raises:
        UserError: if there is none of that name.
    """
    system = system_named(name)
    plant = Clamped(system.dynamics(), system.module.bounds())
    cost, start = system.module.cost(), system.module.start
    return EquationsPlant(name, plant, cost, start, system.time_step)


def plant_named(name: str, state_of: str | None = None, action_of: str | None = None) -> Plant:
    """The plant of that name: one of our systems, or `gymnasium:ENVIRONMENT`.

    Args:
        name: as on the command line.
        state_of, action_of: `module:function` of the user's own mapping.

    Raises:
        UserError: if there is none, or it cannot be used.
    """
    if name.startswith(PREFIX):
        return GymnasiumPlant(name.removeprefix(PREFIX), state_of, action_of)
    return system_plant(name)


# Which plant a system is evaluated in, unless told otherwise, and which system models a plant.
USUAL_PLANT = {"pendulum": PREFIX + "Pendulum-v1"}


def usual_plant(system: str) -> str:
    """The name of the plant that a system's controllers are tried in."""
    return USUAL_PLANT.get(system, system)


def modelled_by(plant: str) -> str | None:
    """The name of the system that models a plant, or None where we have none."""
    if not plant.startswith(PREFIX):
        return plant
    return {usual: system for system, usual in USUAL_PLANT.items()}.get(plant)
