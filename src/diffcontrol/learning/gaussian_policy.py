"""A policy with a Gaussian head: it explores, and so can learn from nothing but costs."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._simulate import Policy


class GaussianMemory(eqx.Module):
    """What a `GaussianPolicy` remembers.

    Attributes:
        mean: the memory of the policy in the mean.
        time: the number of calls so far.
    """

    mean: Any
    time: Int[Array, ""]


class GaussianPolicy(eqx.Module):
    r"""`u = mean(x) + sigma * noise_t`, with `noise_t` drawn from a standard normal distribution.

    The noise is given for a whole run, so that a run is a function of its arguments; a `Situation`
    gives each run its own. Bounds hold for the mean only: a plant with limits has to clip.

    Attributes:
        mean: the policy in the mean, such as an `MPC`.
        log_sigma: `(m,)`: logarithms of the standard deviations [unit of the control]; may be
            learned.
        noise: `(L, m)` for a run of L steps; None is none, so that the mean controls.
    """

    mean: Policy
    log_sigma: Float[Array, " m"]
    noise: Float[Array, "*N L m"] | None = None

    def init(self, x0: Array) -> GaussianMemory:
        """The memory before the first call."""
        return GaussianMemory(self.mean.init(x0), jnp.zeros((), jnp.int32))

    def __call__(self, x: Array, memory: GaussianMemory) -> tuple[Array, GaussianMemory]:
        """The control for state `x`, and the memory for the next call."""
        control, mean = self.mean(x, memory.mean)
        if self.noise is not None:
            control = control + jnp.exp(self.log_sigma) * self.noise[memory.time]
        return control, GaussianMemory(mean, memory.time + 1)

    def log_probability(
        self, controls: Float[Array, "*L m"], means: Float[Array, "*L m"]
    ) -> Float[Array, "*L"]:
        """Logarithm of the density of controls, given what the mean policy does."""
        apart = (controls - means) * jnp.exp(-self.log_sigma)
        each = -0.5 * apart**2 - self.log_sigma - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.sum(each, axis=-1)
