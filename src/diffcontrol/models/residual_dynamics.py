"""Known dynamics, corrected by a network for what they lack."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._types import Numbers, as_floats
from .neural_dynamics import NeuralDynamics, changed


class ResidualDynamics(eqx.Module):
    r"""`x_next = known(x, u, t) (+) learned.change(x, u)`, with `(+)` as in `NeuralDynamics`.

    A network that adds nothing leaves the known dynamics, so wherever data are scarce the model is
    no worse than what was known; a fresh one adds next to nothing.

    Attributes:
        known: `(x, u, t) -> next x`. Its arrays are parameters too, and may be learned along with
            the correction or held (`learning.parametrise` says which).
        learned: the correction. A pair of cosine and sine among its `angles` is turned further.
    """

    known: Callable
    learned: NeuralDynamics

    def __init__(self, known: Callable, learned: NeuralDynamics):
        if not callable(known):
            raise TypeError(
                f"ResidualDynamics: `known` must be a callable (x, u, t) -> next x, got {known!r}."
            )
        if not isinstance(learned, NeuralDynamics):
            raise TypeError(
                f"ResidualDynamics: `learned` must be a NeuralDynamics, got {learned!r}."
            )
        self.known, self.learned = known, learned

    def fitted_to(self, states: Numbers, controls: Numbers) -> "ResidualDynamics":
        """The same, with normalisations fitted to recorded steps and to what `known` misses there.

        Args:
            states: `(N, L+1, n)`, as `learning.Demonstrations` holds them.
            controls: `(N, L, m)`. Step k of each run is taken for time k.

        Raises:
            ValueError: for other shapes.
        """
        states, controls = as_floats("states", states), as_floats("controls", controls)
        return ResidualDynamics(
            self.known, self.learned._fitted_to(states, controls, known=self.known)
        )

    def __call__(self, x: Float[Array, " n"], u: Float[Array, " m"], t) -> Float[Array, " n"]:
        predicted = jnp.asarray(self.known(x, u, t))
        return changed(predicted, self.learned.change(x, u), self.learned.angles)
