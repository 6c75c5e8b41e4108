"""Closed loops: a policy driving a plant."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._captured import remembered_jit
from ._trajectory import Trajectory
from ._types import Numbers


@runtime_checkable
class Policy(Protocol):
    """Anything with a memory that turns states into controls; `MPC` is one."""

    def init(self, x0: Array) -> Any: ...

    def __call__(self, x: Array, memory: Any) -> tuple[Array, Any]: ...


class Memoryless(eqx.Module):
    """A plain function `x -> u` as a policy."""

    function: Callable

    def init(self, x0):
        return None

    def __call__(self, x, memory):
        return self.function(x), memory


def simulate(policy: Policy | Callable, plant: Callable, x0: Numbers, steps: int) -> Trajectory:
    """Run a policy on a plant in closed loop, differentiably end to end.

    Args:
        policy: `init(x0) -> memory` and `__call__(x, memory) -> (u, memory)`, or a plain function
            `x -> u`.
        plant: `(x, u, t) -> next x`, in JAX; `t` counts steps from 0. It need not be the model.
        x0: initial state, `(n,)`.
        steps: number of controls applied.

    Returns:
        States `(steps+1, n)` and controls `(steps, m)`.

    Raises:
        ValueError: for fewer than one step, or a plant whose output is not shaped like its state.
    """
    if steps < 1:
        raise ValueError(f"simulate: `steps` must be at least 1, got {steps}.")
    return _simulate(as_policy(policy), plant, jnp.asarray(x0), steps)


def as_policy(policy: Policy | Callable) -> Policy:
    """Wrap a plain function; leave a policy as it is."""
    return policy if callable(getattr(policy, "init", None)) else Memoryless(policy)  # type: ignore


@remembered_jit
def _simulate(policy: Policy, plant: Callable, x0: Array, steps: int) -> Trajectory:
    def advance(carry, t):
        x, memory = carry
        u, memory = policy(x, memory)
        x_next = jnp.asarray(plant(x, u, t), x.dtype)
        if x_next.shape != x.shape:
            raise ValueError(
                f"simulate: `plant` must return a state of shape {x.shape}, but returns shape "
                f"{x_next.shape}."
            )
        return (x_next, memory), (x_next, u)

    x0 = x0.astype(jnp.result_type(x0, float)) if not eqx.is_inexact_array(x0) else x0
    _, (following, controls) = jax.lax.scan(advance, (x0, policy.init(x0)), jnp.arange(steps))
    return Trajectory(jnp.concatenate([x0[None], following]), controls)


@remembered_jit
def _act(policy: Policy, x: Array, memory: Any) -> tuple[Array, Any]:
    return policy(x, memory)


class Episode(eqx.Module):
    """One run in an environment: `states (L+1, n)`, `controls (L, m)`, `rewards (L,)`."""

    states: np.ndarray
    controls: np.ndarray
    rewards: np.ndarray


def rollout_in(
    env: Any,
    policy: Policy | Callable,
    steps: int,
    seed: int,
    state_of: Callable[[np.ndarray], np.ndarray] = np.asarray,
    action_of: Callable[[np.ndarray], Any] = np.asarray,
) -> Episode:
    """Run a policy in an environment that is not JAX; not differentiable.

    Args:
        env: has Gymnasium's `reset(seed=...)` and `step(action)`.
        policy: as for `simulate`.
        steps: most steps; a terminated or truncated episode ends earlier.
        seed: of the environment's reset.
        state_of: maps an observation to the state `(n,)` that the policy knows.
        action_of: maps a control `(m,)` to an action of the environment.
    """
    policy = as_policy(policy)
    observation, _ = env.reset(seed=seed)
    states = [np.asarray(state_of(observation), dtype=float)]
    controls, rewards = [], []
    memory = policy.init(jnp.asarray(states[0]))
    for _ in range(steps):
        control, memory = _act(policy, jnp.asarray(states[-1]), memory)
        observation, reward, terminated, truncated, _ = env.step(action_of(np.asarray(control)))
        states.append(np.asarray(state_of(observation), dtype=float))
        controls.append(np.asarray(control))
        rewards.append(float(reward))
        if terminated or truncated:
            break
    return Episode(np.stack(states), np.stack(controls), np.asarray(rewards))
