"""Numbers become parameters: what the constructors of all systems share."""

from jaxtyping import Array, ArrayLike, Float

from .._types import as_floats


def parameter(name: str, value: ArrayLike) -> Float[Array, ""]:
    """`value` as a floating-point array scalar, hence a leaf with a gradient.

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is not a scalar.
    """
    array = as_floats(name, value)
    if array.shape != ():
        raise ValueError(
            f"`{name}` must be one number, but has shape {array.shape}. Batch with jax.vmap."
        )
    return array


def fixed_step(value: float) -> float:
    """A time step [s] that is part of the compiled program.

    Raises:
        TypeError, ValueError: if it is not a positive Python number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`time_step` must be a Python number of seconds, got {value!r}.")
    if not 0.0 < value < float("inf"):
        raise ValueError(f"`time_step` must be positive [s], got {value}.")
    return float(value)
