"""Checks and defaults of the settings that solvers share."""

import jax.numpy as jnp

from .._types import check_counts


def default_tolerance(tolerance: float | None, dtype) -> float:
    """The tolerance on the relative stationarity: as given, or what the precision allows."""
    if tolerance is not None:
        return tolerance
    return 1e-8 if jnp.finfo(dtype).bits == 64 else 1e-4


def check_settings(
    name: str, tolerance: float | None, max_iterations: int, fixed_iterations: int | None
) -> None:
    """Raise `ValueError` or `TypeError` for settings that make no sense."""
    if tolerance is not None and not isinstance(tolerance, (int, float)):
        raise TypeError(f"{name}: `tolerance` must be a number or None, got {tolerance!r}.")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"{name}: `tolerance` must not be negative, got {tolerance}.")
    if tolerance is not None and fixed_iterations is not None:
        raise ValueError(
            f"{name}: with `fixed_iterations` nothing is tested against a `tolerance`; leave one "
            "of them out."
        )
    if fixed_iterations is None:
        check_counts(name, max_iterations=max_iterations)
    else:
        check_counts(name, fixed_iterations=fixed_iterations)
