"""Schedule of the Levenberg-Marquardt term `mu I` that is added to `Q_uu`."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

# Below the smallest value the term is dropped, so that accepted steps become pure Newton steps;
# above the largest, steps are so short that failing to improve means that nothing will.
SMALLEST = 1e-6
LARGEST = 1e10
_FACTOR = 8.0


def adapt(mu: Array, accepted: Bool[Array, ""]) -> Array:
    """Raise after a rejected step, lower after an accepted one."""
    raised = jnp.maximum(SMALLEST, mu * _FACTOR)
    lowered = jnp.where(mu / _FACTOR < SMALLEST, 0.0, mu / _FACTOR)
    return jnp.where(accepted, lowered, raised)
