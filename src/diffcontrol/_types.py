"""Words for what users may give where arrays are wanted, and the one way to read it."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

# What constructors turn into arrays: arrays, numbers, and nested lists of them.
Numbers: TypeAlias = ArrayLike | Sequence[Any]


def as_floats(name: str, value: Numbers) -> Array:
    """`value` as a floating-point array.

    Raises:
        TypeError: if it is not made of real numbers.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError):
        seen = repr(value)
        raise TypeError(
            f"`{name}` must be an array of numbers, got {seen[:60]}{'...' * (len(seen) > 60)}."
        ) from None
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got {array.dtype}.")
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def is_concrete(array: ArrayLike) -> bool:
    """Whether the values of an array are known now, not only when a traced function is run."""
    return not isinstance(array, jax.core.Tracer)


def known_to(array: ArrayLike, predicate) -> bool:
    """Whether values that are known satisfy a NumPy predicate somewhere."""
    return is_concrete(array) and bool(np.any(predicate(np.asarray(array))))


def check_counts(name: str, least: int = 1, **counts: Any) -> None:
    """Raise for settings that are not whole numbers of at least `least`."""
    for setting, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name}: `{setting}` must be an integer, got {count!r}.")
        if count < least:
            raise ValueError(f"{name}: `{setting}` must be at least {least}, got {count}.")


def check_key(key) -> None:
    """Raise for what is not one random key."""
    if not isinstance(key, jax.Array):
        raise TypeError(f"`key` must be a random key such as jax.random.key(0), got {key!r}.")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != jnp.uint32:
        raise TypeError(
            f"`key` must be a random key such as jax.random.key(0), got an array of {key.dtype}."
        )
    if key.ndim != (0 if typed else 1):
        raise ValueError(
            f"`key` must be one random key, but has shape {key.shape}. Batch with jax.vmap."
        )
