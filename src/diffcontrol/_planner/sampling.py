"""What planners that draw samples share."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._control_problem import Bounds, StageProblem
from .._types import as_floats, known_to


def normalised(costs: Float[Array, " N"]) -> Float[Array, " N"]:
    """Finite costs with mean zero and deviation one, so that units of the cost do not matter."""
    good = jnp.isfinite(costs)
    number = jnp.maximum(jnp.sum(good), 1)
    values = jnp.where(good, costs, 0.0)
    # In a unit in which no square over- or underflows.
    unit = jnp.max(jnp.abs(jax.lax.stop_gradient(values)), initial=0.0)
    values = values / jnp.where(unit > 0, unit, 1.0)
    centred = jnp.where(good, values - jnp.sum(values) / number, 0.0)
    variance = jnp.sum(centred**2) / number
    # All costs equal, to rounding, means that none is better.
    smallest = (4.0 * jnp.finfo(costs.dtype).eps) ** 2
    return jnp.where(good, centred / jnp.sqrt(variance + smallest), jnp.inf)


def draw(
    key: Array, mean: Array, spread: Array, number: int, colour: float, problem: StageProblem
) -> Float[Array, "N T m"]:
    """Gaussian samples around `mean`, cut off at the bounds; differentiable by mean, spread and
    bounds, with the random numbers held."""
    noise = jax.random.normal(key, (number, *mean.shape), mean.dtype)
    return jnp.clip(mean + spread * coloured(noise, colour), problem.lower, problem.upper)


def coloured(noise: Float[Array, "N T m"], colour: float) -> Float[Array, "N T m"]:
    """White noise made correlated in time: power in proportion to `1 / frequency**colour`.

    Unit variance at every stage. White noise moves a sluggish plant little, since it averages out.

    Source: Pinneri et al., Sample-efficient cross-entropy method for real-time planning (2020).
    """
    T = noise.shape[1]
    if colour == 0 or T == 1:
        return noise
    frequency = jnp.fft.rfftfreq(T).at[0].set(1.0 / T)
    scale = (frequency ** (-0.5 * colour)).astype(noise.dtype)
    # All but the first, and the last of an even number, stand for two frequencies.
    twice = jnp.full(scale.shape, 2.0).at[0].set(1.0)
    twice = twice.at[-1].set(1.0 if T % 2 == 0 else 2.0)
    scale = scale / jnp.sqrt(jnp.sum(twice * scale**2) / T)
    spectrum = jnp.fft.rfft(noise, axis=1) * scale[:, None]
    return jnp.fft.irfft(spectrum, n=T, axis=1).astype(noise.dtype)


def first_spread(name: str, spread: Array | None, problem: StageProblem) -> Float[Array, "T m"]:
    """The first standard deviation: as given, or half the range of the bounds."""
    shape, m = problem.lower.shape, problem.control_size
    if spread is None:
        half = 0.5 * (problem.upper - problem.lower)
        # Bounds that turn out to be infinite when run: no sample counts, and the result says so.
        return jnp.where(jnp.isfinite(half), half, jnp.nan)
    if spread.shape not in ((), (m,), shape):
        raise ValueError(
            f"{name}: `spread` must have shape (), ({m},) or {shape}, but has shape {spread.shape}."
        )
    return jnp.broadcast_to(spread.astype(problem.lower.dtype), shape)


def check_spread(name: str, spread: Array | None, bounds: Bounds | None) -> None:
    """Raise for a spread that is known to be negative, or missing where no bounds give one."""
    if spread is not None:
        if known_to(spread, lambda values: ~((values >= 0) & np.isfinite(values))):
            raise ValueError(f"{name}: `spread` must be finite and not negative, got {spread}.")
        return
    if bounds is None or any(
        known_to(side, lambda values: ~np.isfinite(values)) for side in (bounds.lower, bounds.upper)
    ):
        raise ValueError(
            f"{name}: without finite control bounds there is no usual `spread` of the samples; "
            f"give one: {name}(spread=...)."
        )


def sensible_spread(spread: Array | None) -> Bool[Array, ""]:
    """`check_spread` for a spread that is known only at run time."""
    return jnp.asarray(True) if spread is None else jnp.all((spread >= 0) & jnp.isfinite(spread))


def as_optional(name: str):
    """A converter: numbers to arrays, None as it is."""
    return lambda value: None if value is None else as_floats(name, value)


def check_colour(name: str, colour: float) -> None:
    """Raise for a colour that is not a finite Python number."""
    if isinstance(colour, bool) or not isinstance(colour, (int, float)):
        raise TypeError(f"{name}: `colour` must be a Python number, got {colour!r}.")
    if not math.isfinite(colour):
        raise ValueError(f"{name}: `colour` must be finite, got {colour}.")


def weighted(w: Float[Array, " N"], samples: Float[Array, "N T m"], otherwise: Array) -> Array:
    """Mean of the samples by weights that need not sum to one; `otherwise` where all are zero."""
    total = jnp.sum(w)
    some = total > 0
    mean = jnp.tensordot(w / jnp.where(some, total, 1.0), samples, axes=1)
    return jnp.where(some, mean, otherwise)


def within(problem: StageProblem, mean: Array) -> Array:
    """A mean of samples, which leaves the bounds by rounding alone: that is no part of its
    derivative."""
    kept = jnp.clip(mean, problem.lower, problem.upper)
    return mean + jax.lax.stop_gradient(kept - mean)
