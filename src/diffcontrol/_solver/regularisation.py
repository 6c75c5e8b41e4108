"""Schedule of the Levenberg-Marquardt term `mu I` that is added to `Q_uu`."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Below the smallest value the term is dropped, so that accepted steps become pure Newton steps;
# above the largest, steps are so short that failing to improve means that nothing will.
SMALLEST = 1e-6
LARGEST = 1e10
_FACTOR = 8.0


class Regularisation(eqx.Module):
    """The term `mu` and the factor by which it last changed."""

    mu: Float[Array, ""]
    change: Float[Array, ""]

    def adapted(self, accepted: Bool[Array, ""]) -> "Regularisation":
        """Raise after a rejected step, ever faster; after an accepted one hold, then lower.

        One that was just enough is held once, since the next lower one has just failed.
        """
        change = jnp.where(
            accepted,
            jnp.minimum(1.0, self.change / _FACTOR),
            jnp.maximum(_FACTOR, self.change * _FACTOR),
        )
        mu = self.mu * change
        # Whoever goes on beyond the largest finds it no larger, so that it stays finite.
        raised = jnp.clip(mu, SMALLEST, 2 * LARGEST)
        mu = jnp.where(accepted, jnp.where(mu < SMALLEST, 0.0, mu), raised)
        return Regularisation(mu, change)


def unregularised(like: Array) -> Regularisation:
    """No term, of the type of `like`."""
    return Regularisation(jnp.zeros_like(like), jnp.ones_like(like))
