"""Numbers of different units made comparable: what networks want to see and to give."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Numbers, as_floats, known_to

# A column that hardly varies in the data is divided by this share of the largest scale, not by
# next to nothing, which would make a network see noise and extrapolate wildly.
_LEAST_SHARE = 1e-3


class Normalisation(eqx.Module):
    """`(v - mean) / scale`, and back.

    Attributes:
        mean, scale: `(k,)` [unit of v].

    Raises:
        ValueError: unless both are vectors of one size, with every scale positive.
    """

    mean: Float[Array, " k"]
    scale: Float[Array, " k"]

    def __init__(self, mean: Numbers, scale: Numbers):
        self.mean, self.scale = as_floats("mean", mean), as_floats("scale", scale)
        if self.mean.ndim != 1 or self.mean.shape != self.scale.shape:
            raise ValueError(
                "Normalisation: `mean` and `scale` must both have shape (k,), but have shapes "
                f"{self.mean.shape} and {self.scale.shape}."
            )
        if known_to(self.scale, lambda scale: ~(scale > 0)):
            raise ValueError("Normalisation: every `scale` must be positive.")

    @staticmethod
    def none(size: int) -> "Normalisation":
        """Leaves `size` numbers as they are."""
        return Normalisation(jnp.zeros(size), jnp.ones(size))

    @staticmethod
    def fitted_to(rows: Float[Array, "N k"]) -> "Normalisation":
        """Mean zero and standard deviation one over `rows`."""
        deviation = jnp.std(rows, axis=0)
        least = _LEAST_SHARE * jnp.max(deviation)
        scale = jnp.maximum(deviation, jnp.where(least > 0, least, 1.0))
        return Normalisation(jnp.mean(rows, axis=0), scale)

    def apply(self, values: Float[Array, " k"]) -> Float[Array, " k"]:
        return (values - self.mean) / self.scale

    def restore(self, values: Float[Array, " k"]) -> Float[Array, " k"]:
        return self.mean + self.scale * values
