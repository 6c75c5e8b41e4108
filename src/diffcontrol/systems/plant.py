"""What a plant does that a model should not: saturating actuators."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from .._control_problem import Bounds


class Clamped(eqx.Module):
    """Dynamics behind saturating actuators: `dynamics(x, clip(u, lower, upper), t)`.

    Use it as the plant of a simulation. The model inside a `ControlProblem` must not clamp; there
    the limits are `control_bounds`. A solver that keeps to its bounds needs no clamp, and
    `jnp.clip` has derivative one half exactly at its bound (zero beyond it), so a model that
    clamps quietly halves the gradients of every control at a bound, which is where bounded
    controllers spend their time.

    Attributes:
        dynamics: `(x, u, t) -> next x`.
        bounds: limits of the actuators, scalars or `(m,)`.

    Raises:
        TypeError: if `dynamics` is not callable or `bounds` not a `Bounds`.
        ValueError: if the bounds differ from stage to stage; actuators have no stages.
    """

    dynamics: Callable
    bounds: Bounds

    def __init__(self, dynamics: Callable, bounds: Bounds):
        if not callable(dynamics):
            raise TypeError(
                f"Clamped: `dynamics` must be a callable (x, u, t) -> next x, got {dynamics!r}."
            )
        if not isinstance(bounds, Bounds):
            raise TypeError(f"Clamped: `bounds` must be a Bounds, got {bounds!r}.")
        if max(bounds.lower.ndim, bounds.upper.ndim) > 1:
            raise ValueError(
                "Clamped: `bounds` must be scalars or of shape (m,), but differ between stages; "
                "actuators have no stages."
            )
        self.dynamics, self.bounds = dynamics, bounds

    def __call__(self, x: Array, u: Array, t) -> Array:
        return self.dynamics(x, jnp.clip(u, self.bounds.lower, self.bounds.upper), t)
