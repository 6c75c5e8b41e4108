"""Trajectories and the one index convention of the library.

Time leads. With horizon `T`, state size `n` and control size `m`:

* states    `x_0 ... x_T`, shape `(T+1, n)`; row 0 is the given initial state;
* controls  `u_0 ... u_{T-1}`, shape `(T, m)`; `u_t` acts between `x_t` and `x_{t+1}`;
* costates  `lambda_0 ... lambda_T`, shape `(T+1, n)`; `lambda_t` is the derivative of the
  optimal cost with respect to `x_t`.

There is no batch axis anywhere: `jax.vmap` supplies it.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Trajectory(eqx.Module):
    """States and controls of one run.

    Attributes:
        states: shape `(T+1, n)`.
        controls: shape `(T, m)`.
        memory: what the policy remembered after each of the T steps, stacked along axis 0; None
            where no policy with a memory was run.
    """

    states: Float[Array, "T1 n"]
    controls: Float[Array, "T m"]
    memory: Any = None


def stages(horizon: int) -> Array:
    """Indices `0 ... T-1` of the stages, shape `(T,)`."""
    return jnp.arange(horizon)


def rollout(
    dynamics: Callable, x0: Float[Array, " n"], controls: Float[Array, "T m"]
) -> Float[Array, "T1 n"]:
    """States reached from `x0` under `controls`, shape `(T+1, n)`; `dynamics(x, u, t)`."""

    def advance(x, stage):
        t, u = stage
        x_next = dynamics(x, u, t)
        return x_next, x_next

    _, following = jax.lax.scan(advance, x0, (stages(controls.shape[0]), controls))
    return jnp.concatenate([x0[None], following])
