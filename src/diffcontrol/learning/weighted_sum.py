"""Several losses at once: fit the data and do well at the task."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from .loss import AbstractLoss, Judged


class WeightedSum(AbstractLoss):
    """`sum_i weights_i losses_i`, each loss with a sample of its own.

    A sample is a tuple with one sample for each loss: `(windows, situations)`, or `(w, w)` where
    two losses look at the same. It is usable if all of its parts are, so every loss counts in
    every sample that is not left out.

    Attributes:
        losses: what is added.
        weights: one number for each loss; they are not learned.

    Raises:
        ValueError: for no losses, or another number of weights.
    """

    losses: tuple[AbstractLoss, ...]
    weights: tuple[float, ...] = eqx.field(static=True)

    def __check_init__(self):
        if not self.losses or len(self.losses) != len(self.weights):
            raise ValueError(
                "WeightedSum: `losses` and `weights` must be tuples of one length, but there are "
                f"{len(self.losses)} losses and {len(self.weights)} weights."
            )

    def start(self, sample: tuple) -> tuple:
        self._check(sample)
        return tuple(loss.start(part) for loss, part in zip(self.losses, sample, strict=True))

    def __call__(self, model: Any, sample: tuple, memory: tuple) -> Judged:
        self._check(sample)
        parts = [
            loss(model, part, kept)
            for loss, part, kept in zip(self.losses, sample, memory, strict=True)
        ]
        value = sum(weight * part.value for weight, part in zip(self.weights, parts, strict=True))
        usable = jnp.all(jnp.stack([part.usable for part in parts]))
        return Judged(jnp.asarray(value), usable, tuple(part.memory for part in parts))

    def _check(self, sample: tuple) -> None:
        if not isinstance(sample, tuple) or len(sample) != len(self.losses):
            raise ValueError(
                f"WeightedSum: a sample must be a tuple of {len(self.losses)} samples, one for "
                f"each loss, got {type(sample).__name__}."
            )
