"""Closed loops of several episodes at once, in any plant."""

import dataclasses
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import MPC
from .._result import succeeded
from .errors import UserError
from .plants import Plant


@dataclasses.dataclass(frozen=True)
class Episodes:
    """N episodes of L steps. One that ended early stays in its last state, with no reward.

    Attributes:
        states: `(N, L+1, n)`.
        controls: `(N, L, m)`.
        rewards: `(N, L)`.
        lengths: `(N,)`: steps until the plant ended the episode, else L.
        unsolved: `(N, L)`: where the solver did not meet its tolerance.
    """

    states: np.ndarray
    controls: np.ndarray
    rewards: np.ndarray
    lengths: np.ndarray
    unsolved: np.ndarray

    @property
    def returns(self) -> np.ndarray:
        """Sum of the rewards of each episode, `(N,)`."""
        return self.rewards.sum(axis=1)


def run_episodes(
    controller: MPC,
    plant: Plant,
    seeds: Sequence[int],
    steps: int,
    progress: Callable[[int], None] = lambda step: None,
) -> Episodes:
    """Drive a plant with a controller, one episode for each seed, all stepped together.

    Args:
        controller: with the state and control sizes of the plant.
        plant: what to drive.
        seeds: of the starts.
        steps: the number L of steps.
        progress: told the number of steps done after each.

    Raises:
        UserError: if the controller does not fit the plant's states.
    """
    state = plant.reset(seeds)
    states, controls, rewards, unsolved = [state], [], [], []
    lengths = np.full(len(seeds), steps)
    try:
        memory = jax.vmap(controller.init)(jnp.asarray(state, dtype=float))
    except (TypeError, ValueError) as problem:
        raise UserError(
            f"The controller does not fit the plant `{plant.name}`, whose states have "
            f"{state.shape[1]} entries ({problem})"
        ) from problem
    for step in range(steps):
        control, memory = _act(controller, jnp.asarray(state, dtype=float), memory)
        state, reward, ended = plant.step(np.asarray(control))
        lengths = np.where(ended & (lengths == steps), step + 1, lengths)
        states.append(state)
        controls.append(np.asarray(control))
        rewards.append(reward)
        unsolved.append(~np.asarray(succeeded(memory.result)))
        progress(step + 1)
    along = lambda rows: np.stack(rows, axis=1)
    return Episodes(along(states), along(controls), along(rewards), lengths, along(unsolved))


def seeds_of(first_seed: int, episodes: int, steps: int | None) -> list[int]:
    """The seed of each episode.

    Raises:
        UserError: for numbers of episodes or steps below one, or a negative seed.
    """
    for name, value in (("episodes", episodes), ("steps", steps)):
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}.")
    if first_seed < 0:
        raise UserError(f"--first-seed must not be negative, got {first_seed}.")
    return list(range(first_seed, first_seed + episodes))


def check_length(plant: Plant, steps: int) -> None:
    """Raise `UserError` if the plant ends its episodes before `steps`."""
    if plant.most_steps is not None and steps > plant.most_steps:
        raise UserError(
            f"An episode of {plant.name} ends after {plant.most_steps} steps; give --steps "
            f"{plant.most_steps} or fewer."
        )


@eqx.filter_jit
def _act(controller, states, memory):
    return jax.vmap(lambda x, memory: controller(x, memory))(states, memory)
