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
from ._types import Numbers, as_floats


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


def simulate(
    policy: Policy | Callable,
    plant: Callable,
    x0: Numbers,
    steps: int,
    *,
    disturbances: Numbers | None = None,
    keep_every: int | None = None,
) -> Trajectory:
    """Run a policy on a plant in closed loop, differentiably end to end.

    Args:
        policy: `init(x0) -> memory` and `__call__(x, memory) -> (u, memory)`, or a plain function
            `x -> u`.
        plant: `(x, u, t) -> next x`, in JAX; `t` counts steps from 0. It need not be the model.
        x0: initial state, `(n,)`.
        steps: number of controls applied.
        disturbances: `(steps, n)`: added to each next state; None is zero. They have gradients.
        keep_every: what the backward pass needs of a step is kept for so many steps at a time, and
            of the others only the state of the loop at every so many-th step, from which they are
            run again. It then takes one more forward pass and, where `keep_every` is about the
            root of `steps`, memory in proportion to that root. It divides `steps`; None keeps all.

    Returns:
        States `(steps+1, n)`, controls `(steps, m)`, and the policy's memory after every step. Of
        an `MPC`, `memory.result` so says of each step how its solve ended.

    Raises:
        TypeError: for an `x0` or `disturbances` that are not made of real numbers.
        ValueError: for an `x0` that is not `(n,)`, fewer than one step, disturbances that are not
            `(steps, n)`, a `keep_every` that does not divide `steps`, or a plant whose output is
            not shaped like its state.
    """
    x0 = as_floats("x0", x0)
    if x0.ndim != 1:
        raise ValueError(f"simulate: `x0` must have shape (n,), but has shape {x0.shape}.")
    _check_steps("simulate", steps)
    if disturbances is not None:
        disturbances = as_floats("disturbances", disturbances)
        if disturbances.shape != (steps, *x0.shape):
            raise ValueError(
                f"simulate: `disturbances` must have shape (steps, n) = {(steps, *x0.shape)}, but "
                f"has shape {disturbances.shape}."
            )
    if keep_every is not None and (keep_every < 1 or steps % keep_every):
        raise ValueError(f"simulate: `keep_every` must divide the {steps} steps, got {keep_every}.")
    return _simulate(as_policy(policy), plant, x0, steps, disturbances, keep_every)


def as_policy(policy: Policy | Callable) -> Policy:
    """Wrap a plain function; leave a policy as it is."""
    return policy if callable(getattr(policy, "init", None)) else Memoryless(policy)  # type: ignore


@remembered_jit
def _simulate(
    policy: Policy,
    plant: Callable,
    x0: Array,
    steps: int,
    disturbances: Array | None,
    keep_every: int | None,
) -> Trajectory:
    def advance(carry, inputs):
        x, memory = carry
        t, disturbance = inputs
        u, memory = policy(x, memory)
        x_next = jnp.asarray(plant(x, u, t), x.dtype)
        if x_next.shape != x.shape:
            raise ValueError(
                f"simulate: `plant` must return a state of shape {x.shape}, but returns shape "
                f"{x_next.shape}."
            )
        if disturbance is not None:
            x_next = x_next + disturbance.astype(x.dtype)
        return (x_next, memory), (x_next, u, memory)

    start, inputs = (x0, policy.init(x0)), (jnp.arange(steps), disturbances)
    if keep_every is None:
        _, ran = jax.lax.scan(advance, start, inputs)
    else:
        blocks = jax.tree.map(lambda rows: rows.reshape(-1, keep_every, *rows.shape[1:]), inputs)
        # Inside a loop nothing can merge the second run with the first.
        block = jax.checkpoint(
            lambda carry, inputs: jax.lax.scan(advance, carry, inputs), prevent_cse=False
        )
        _, ran = jax.lax.scan(block, start, blocks)
        ran = jax.tree.map(lambda rows: rows.reshape(steps, *rows.shape[2:]), ran)
    following, controls, memory = ran
    return Trajectory(jnp.concatenate([x0[None], following]), controls, memory)


@remembered_jit
def _act(policy: Policy, x: Array, memory: Any) -> tuple[Array, Any]:
    return policy(x, memory)


class Episode(eqx.Module):
    """One run of L steps in an environment.

    Attributes:
        states: `(L+1, n)` [units of the policy's state].
        controls: `(L, m)` [units of the policy's controls].
        rewards: `(L,)` [the environment's].
        memory: of the policy after every step, stacked along axis 0; None if it has none.
    """

    states: np.ndarray
    controls: np.ndarray
    rewards: np.ndarray
    memory: Any = None


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

    Returns:
        The episode, of at most `steps` steps.

    Raises:
        ValueError: for fewer than one step.
    """
    _check_steps("rollout_in", steps)
    policy = as_policy(policy)
    observation, _ = env.reset(seed=seed)
    states = [np.asarray(state_of(observation), dtype=float)]
    controls, rewards, memories = [], [], []
    memory = policy.init(jnp.asarray(states[0]))
    for _ in range(steps):
        control, memory = _act(policy, jnp.asarray(states[-1]), memory)
        observation, reward, terminated, truncated, _ = env.step(action_of(np.asarray(control)))
        states.append(np.asarray(state_of(observation), dtype=float))
        controls.append(np.asarray(control))
        rewards.append(float(reward))
        memories.append(memory)
        if terminated or truncated:
            break
    memory = jax.tree.map(lambda *leaves: np.stack(leaves), *memories)
    return Episode(np.stack(states), np.stack(controls), np.asarray(rewards), memory)


def _check_steps(where: str, steps: int) -> None:
    if steps < 1:
        raise ValueError(f"{where}: `steps` must be at least 1, got {steps}.")
