"""Checks and defaults of the settings that solvers share."""

import jax.numpy as jnp


def default_tolerance(tolerance: float | None, dtype) -> float:
    """The tolerance on the relative stationarity: as given, or what the precision allows."""
    if tolerance is not None:
        return tolerance
    return 1e-8 if jnp.finfo(dtype).bits == 64 else 1e-4


def check_settings(name: str, tolerance: float | None, max_iterations: int) -> None:
    """Raise `ValueError` for settings that make no sense."""
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"{name}: `tolerance` must not be negative, got {tolerance}.")
    if max_iterations < 1:
        raise ValueError(f"{name}: `max_iterations` must be at least 1, got {max_iterations}.")
