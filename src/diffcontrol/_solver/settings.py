"""Checks and defaults of the settings that solvers share."""

import jax.numpy as jnp


def default_tolerance(tolerance: float | None, dtype) -> float:
    """The tolerance on the relative stationarity: as given, or what the precision allows."""
    if tolerance is not None:
        return tolerance
    return 1e-8 if jnp.finfo(dtype).bits == 64 else 1e-4


def check_settings(name: str, tolerance: float | None, max_iterations: int) -> None:
    """Raise `ValueError` or `TypeError` for settings that make no sense."""
    if tolerance is not None and not isinstance(tolerance, (int, float)):
        raise TypeError(f"{name}: `tolerance` must be a number or None, got {tolerance!r}.")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"{name}: `tolerance` must not be negative, got {tolerance}.")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int):
        raise TypeError(f"{name}: `max_iterations` must be an integer, got {max_iterations!r}.")
    if max_iterations < 1:
        raise ValueError(f"{name}: `max_iterations` must be at least 1, got {max_iterations}.")
