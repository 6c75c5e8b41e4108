"""What a loss is, and its mean over many samples."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._captured import remembered_jit


class Judged(eqx.Module):
    """A loss at one sample.

    Attributes:
        value: the loss.
        usable: whether it means anything; False leaves the sample out.
        memory: what the next visit to this sample should start from.
    """

    value: Float[Array, ""]
    usable: Bool[Array, ""]
    memory: Any


class AbstractLoss(eqx.Module):
    """Judges a model on one sample; `train` and `evaluate` batch it with `jax.vmap`."""

    @abc.abstractmethod
    def start(self, sample: Any) -> Any:
        """What the first visit to a sample starts from; None where a loss remembers nothing."""

    @abc.abstractmethod
    def __call__(self, model: Any, sample: Any, memory: Any) -> Judged:
        """Judge `model`. Must not raise for bad values: it says `usable=False`."""


class Evaluation(eqx.Module):
    """The mean loss over many samples.

    Attributes:
        loss: mean over the usable samples; NaN if there are none.
        left_out: the share of samples that were not usable, in [0, 1].
    """

    loss: float = eqx.field(static=True)
    left_out: float = eqx.field(static=True)


def evaluate(loss: AbstractLoss, model: Any, samples: PyTree, batch_size: int = 64) -> Evaluation:
    """Mean loss of `model`, every sample from a fresh start.

    Args:
        loss: by which measure.
        model: what to judge.
        samples: stacked along axis 0.
        batch_size: how many samples are judged at once.

    Returns:
        The mean over the usable samples, and the share of the others.

    Raises:
        ValueError: if there are no samples or `batch_size` is below one.
    """
    total, used = 0.0, 0
    number = size_of(samples)
    for name, size in (("the number of samples", number), ("`batch_size`", batch_size)):
        if size < 1:
            raise ValueError(f"evaluate: {name} must be at least 1, got {size}.")
    for rows in minibatches(np.arange(number), batch_size):
        # Rows are taken outside the compiled program, which so serves any number of samples.
        batch = take_rows(samples, jnp.asarray(rows))
        values, usable = _judge(loss, model, batch, jnp.asarray(rows < number))
        total += float(values)
        used += int(usable)
    return Evaluation(total / used if used else float("nan"), 1.0 - used / number)


@remembered_jit
def _judge(loss, model, batch, present):
    judged = jax.vmap(lambda sample: loss(model, sample, loss.start(sample)))(batch)
    usable = judged.usable & jnp.isfinite(judged.value) & present
    return jnp.sum(jnp.where(usable, judged.value, 0.0)), jnp.sum(usable)


def size_of(samples: PyTree) -> int:
    """The number of stacked samples."""
    return jax.tree.leaves(samples)[0].shape[0]


def minibatches(order: np.ndarray, batch_size: int) -> np.ndarray:
    """Row numbers of each minibatch, shape `(batches, batch_size)`.

    The last one is filled with the number of rows, which is past the end: `take_rows` clips it
    and writing there is dropped. So every minibatch has one shape and is compiled once.
    """
    batches = -(-order.size // batch_size)
    padding = np.full(batches * batch_size - order.size, order.size)
    return np.concatenate([order, padding]).reshape(batches, batch_size)


def take_rows(tree: PyTree, rows: Array) -> PyTree:
    """The given rows of every array."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), tree)
