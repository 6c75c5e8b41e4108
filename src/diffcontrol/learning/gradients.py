"""Gradients sample by sample, so that one bad sample spoils no other."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._tree import all_finite, select
from .loss import AbstractLoss
from .parametrisation import Parametrisation


class SampleGradients(eqx.Module):
    """Losses and gradients of a minibatch of B samples.

    Attributes:
        value: `(B,)`.
        gradient: shaped as the coordinates, with a leading axis B.
        usable: `(B,)`: the loss said so, and value and gradient are finite.
        memory: what each sample should start from next time, leading axis B.
    """

    value: Float[Array, "*B"]
    gradient: PyTree
    usable: Bool[Array, "*B"]
    memory: PyTree


def sample_gradients(
    loss: AbstractLoss,
    parametrisation: Parametrisation,
    coordinates: PyTree,
    batch: Any,
    memory: PyTree,
) -> SampleGradients:
    """Loss and gradient of every sample on its own.

    Args:
        loss: judges one sample.
        parametrisation, coordinates: where the model is; gradients are by the coordinates.
        batch, memory: B samples and what each starts from, stacked along axis 0.

    Returns:
        Values, gradients and memories of all B samples, and which of them are usable.
    """

    def objective(coordinates, sample, memory):
        judged = loss(parametrisation.model(coordinates), sample, memory)
        return judged.value, judged

    def one(sample, memory):
        (value, judged), gradient = jax.value_and_grad(objective, has_aux=True)(
            coordinates, sample, memory
        )
        usable = judged.usable & jnp.isfinite(value) & all_finite(gradient)
        # A solve that ran out of iterations goes on next time from where it stopped; one that met
        # NaN starts afresh.
        kept = select(all_finite(judged.memory), judged.memory, loss.start(sample))
        return SampleGradients(value, gradient, usable, kept)

    return jax.vmap(one)(batch, memory)


def mean_of_usable(
    samples: SampleGradients, present: Bool[Array, " B"], clip: float | None = None
) -> tuple[PyTree, Float[Array, ""], Int[Array, ""]]:
    """Mean gradient, sum of losses and number, over the samples that are usable and `present`.

    A bad sample is replaced by zero before the sum. Multiplying it by zero would not do, since
    zero times NaN is NaN. With no sample left the gradient is zero.

    Args:
        samples: from `sample_gradients`.
        present: `(B,)`; False for rows that only fill up a minibatch.
        clip: gradients of samples longer than this are shortened to it first; None for no limit.

    Raises:
        ValueError: if `clip` is not a positive number.
    """
    check_clip(clip)
    used = samples.usable & present
    number = jnp.sum(used)
    if clip is not None:
        gradient = jax.vmap(_shortened, (0, None))(samples.gradient, clip)
        samples = eqx.tree_at(lambda s: s.gradient, samples, gradient)

    def mean(leaf):
        mask = used.reshape((-1,) + (1,) * (leaf.ndim - 1))
        return jnp.sum(jnp.where(mask, leaf, 0.0), axis=0) / jnp.maximum(number, 1)

    total = jnp.sum(jnp.where(used, samples.value, 0.0))
    return jax.tree.map(mean, samples.gradient), total, number


def check_clip(clip: float | None) -> None:
    """Raise `ValueError` for a longest gradient that is no length."""
    if clip is not None and not 0.0 < clip < float("inf"):
        raise ValueError(f"`clip` must be a positive number, or None for no limit, got {clip}.")


def _shortened(gradient: PyTree, longest: float) -> PyTree:
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    return jax.tree.map(lambda leaf: leaf * (longest / jnp.maximum(length, longest)), gradient)
