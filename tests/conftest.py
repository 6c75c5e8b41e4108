"""Everything in float64; single precision is asked for by the tests that mean it."""

import jax

jax.config.update("jax_enable_x64", True)
