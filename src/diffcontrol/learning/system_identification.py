"""System identification: one predicted step against the recorded one."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .loss import AbstractLoss, Judged
from .windows import Window


def _dynamics_of(model: Any) -> Callable:
    return model.dynamics


class SystemIdentificationLoss(AbstractLoss):
    r"""Mean squared error of the next state, `mean_{t, j} (f(x_t, u_t, t) - x_t+1)_j^2`.

    Attributes:
        dynamics_of: picks `(x, u, t) -> next x` out of the model; by default `model.dynamics`,
            as of a `ControlProblem`.

    Source: baseline "sysid" of DiffMPC (Amos et al. 2018), section 5.
    """

    dynamics_of: Callable[[Any], Callable] = eqx.field(static=True, default=_dynamics_of)

    def start(self, sample: Window) -> None:
        return None

    def __call__(self, model: Any, sample: Window, memory: None) -> Judged:
        dynamics = self.dynamics_of(model)
        times = sample.time + jnp.arange(sample.controls.shape[0])
        following: Array = jax.vmap(dynamics)(sample.states[:-1], sample.controls, times)
        value = jnp.mean((following - sample.states[1:]) ** 2)
        return Judged(value, jnp.isfinite(value), None)
