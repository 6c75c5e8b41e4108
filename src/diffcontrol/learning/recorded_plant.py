"""A plant that cannot be differentiated, along its recorded states."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Int

from .._tree import stop_gradient


class RecordedPlant(eqx.Module):
    r"""A recorded run of a plant, with the derivatives of a model.

        x_{t+1} = following_t + f(x_t, u_t, t) - stop_gradient(f(x_t, u_t, t))

    As the plant of a `TaskLoss` it makes the closed loop go where the true plant went, while the
    gradient flows through the model's derivatives by state and control there. So the states, the
    controls and the value are the plant's; only the derivatives are the model's. The model's
    parameters get no gradient from here, since the plant does not depend on them.

    Bias: that of the model's derivatives along the recorded states; none where the model is the
    plant. Derivatives of contacts and limits that the model lacks are missing. It holds for the
    controller that was recorded: after a step of the optimiser record anew. `train` does so
    if its `training` is a function.

    Attributes:
        model: `(x, u, t) -> next x`, differentiable.
        following: `(L, n)`: the recorded states after each of the L controls.
        length: the plant ended the run after so many steps, and stays there; L if it did not.

    Source: Abbeel, Quigley and Ng 2006, "Using inaccurate models in reinforcement learning".
    """

    model: Callable
    following: Float[Array, "*N L n"]
    length: Int[Array, "*N"]

    def __init__(
        self,
        model: Callable,
        following: Float[Array, "*N L n"],
        length: ArrayLike | None = None,
    ):
        self.model = model
        self.following = following
        steps = following.shape[-2]
        self.length = jnp.broadcast_to(
            jnp.asarray(steps if length is None else length), following.shape[:-2]
        )

    def __call__(self, x: Array, u: Array, t) -> Array:
        predicted = jnp.asarray(stop_gradient(self.model)(x, u, t), x.dtype)
        unmoved = predicted - jax.lax.stop_gradient(predicted)
        return jnp.where(t < self.length, self.following[t].astype(x.dtype) + unmoved, x)
