"""The papers' experiments; see README.md.

Double precision, also in the processes of a sweep, which import this but run no `main`.
"""

import jax

jax.config.update("jax_enable_x64", True)
