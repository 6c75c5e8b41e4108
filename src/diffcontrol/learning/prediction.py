"""Prediction over several steps: a roll-out of the model against the recorded run."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._trajectory import rollout
from .._types import as_floats
from .loss import AbstractLoss, Judged
from .windows import Window


def _dynamics_of(model: Any) -> Callable:
    return model.dynamics


class PredictionLoss(AbstractLoss):
    r"""Mean squared error of a roll-out, `mean_{t, j} ((x_t+1,j - x*_t+1,j) / scale_j)^2`.

    The model starts at the first state of a window and sees no other, only the recorded controls.
    Errors add up as they do in the plan of a controller, so unlike `SystemIdentificationLoss` this
    tells apart models that drift from those that do not. A window of one step makes the two equal.

    Attributes:
        scale: `(n,)` or a scalar: what counts as an error of one [unit of x]. Held, not learned.
        dynamics_of: picks `(x, u, t) -> next x` out of the model; by default `model.dynamics`,
            as of a `ControlProblem`.

    Source: multi-step prediction error, e.g. Venkatraman, Hebert and Bagnell, "Improving
    multi-step prediction of learned time series models", AAAI 2015.
    """

    scale: Array = eqx.field(default=1.0, converter=lambda scale: as_floats("scale", scale))
    dynamics_of: Callable[[Any], Callable] = eqx.field(static=True, default=_dynamics_of)

    def start(self, sample: Window) -> None:
        return None

    def __call__(self, model: Any, sample: Window, memory: None) -> Judged:
        dynamics = self.dynamics_of(model)
        states = rollout(
            lambda x, u, k: dynamics(x, u, sample.time + k), sample.states[0], sample.controls
        )
        value = jnp.mean(((states[1:] - sample.states[1:]) / self.scale) ** 2)
        return Judged(value, jnp.isfinite(value), None)
