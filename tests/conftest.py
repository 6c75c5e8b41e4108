"""Everything in float64; single precision is asked for by the tests that mean it."""

from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", True)

_MAPPINGS = Path("/proc/self/maps")
# Linux grants a process about 65,000, and ends one that JAX's compiler takes beyond.
_MOST_MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Every compiled program maps memory: many of them are let go between files of tests."""
    yield
    if _MAPPINGS.exists() and _MAPPINGS.read_text().count("\n") > _MOST_MAPPINGS:
        jax.clear_caches()
