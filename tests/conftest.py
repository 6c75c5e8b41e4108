"""Everything in float64; single precision is asked for by the tests that mean it.

Programs of tests run for milliseconds and compile for seconds. So they are compiled without
optimisation, and loops in XLA's older way, which takes a quarter of the time together. `XLA_FLAGS`
in the environment, also an empty one, is left as it is: `make test-slow` runs what users run.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

jax.config.update("jax_enable_x64", True)

_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
_QUICKER = f"{_QUICK} --xla_cpu_use_fusion_emitters=false"


def _known(flags: str) -> bool:
    """Whether this XLA has them all; it ends a process that sets another."""
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    env = {**os.environ, "XLA_FLAGS": flags}
    return not subprocess.run(start, env=env, capture_output=True).returncode


# Workers have the environment of the process that starts them, so one asks.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = _QUICKER if _known(_QUICKER) else _QUICK

_MAPPINGS = Path("/proc/self/maps")
# Linux grants a process about 65,000, and ends one that JAX's compiler takes beyond.
_MOST_MAPPINGS = 30_000


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Every compiled program maps memory: many of them are let go between files of tests."""
    yield
    if _MAPPINGS.exists() and _MAPPINGS.read_text().count("\n") > _MOST_MAPPINGS:
        jax.clear_caches()
