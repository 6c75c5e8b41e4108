"""The one training loop.

Every quantity that decides what comes next (parameters, optimiser, warm starts, position in the
epoch, sums so far, samples collected with the model) is an array of one `State`, and the order of
an epoch follows from the key and the epoch's number alone. So a run that is killed at any moment
and resumed from its last checkpoint does the same arithmetic, and ends in the same bits, as one
that was left alone.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._captured import remembered_jit
from .._tree import select
from .gradients import check_clip, mean_of_usable, sample_gradients
from .keeper import Clock, Keeper
from .loss import AbstractLoss, Evaluation, evaluate, minibatches, size_of, take_rows
from .parametrisation import Parametrisation

# A validation loss over fewer than this share of the samples selects nothing: a model whose hard
# samples all fail would look good on the rest.
_LEAST_SHARE_JUDGED = 0.5


# (model, key) -> samples stacked along axis 0
Collect: TypeAlias = Callable[[Any, Array], PyTree]


class State(eqx.Module):
    """Everything that training goes on from; a checkpoint holds exactly this."""

    coordinates: PyTree
    optimiser: PyTree
    collected: PyTree
    memory: PyTree
    epoch: Int[Array, ""]
    batch: Int[Array, ""]
    loss_sum: Float[Array, ""]
    used: Int[Array, ""]
    best: PyTree
    best_loss: Float[Array, ""]
    best_epoch: Int[Array, ""]


class Progress(eqx.Module):
    """What a reporting function is told after every minibatch.

    Attributes:
        epoch, epochs: finished epochs, and how many there will be.
        batch, batches: the same for the minibatches of the current epoch.
        loss: mean training loss of the current epoch so far; NaN before the first usable sample.
        validation_loss: at the end of the last epoch.
        left_out: share of this epoch's samples left out so far, mostly as unconverged.
        seconds_left: [s] estimate; None until something has been timed.
    """

    epoch: int = eqx.field(static=True)
    epochs: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)
    batches: int = eqx.field(static=True)
    loss: float = eqx.field(static=True)
    validation_loss: float = eqx.field(static=True)
    left_out: float = eqx.field(static=True)
    seconds_left: float | None = eqx.field(static=True)


class Trained(eqx.Module):
    """The outcome of training.

    Attributes:
        model: the model of the epoch with the lowest validation loss.
        best_epoch: that epoch; 0 is the start.
        best_loss: its validation loss.
        last: the model after the last epoch.
        metrics: one dictionary an epoch, beginning with the start as epoch 0; None stands for
            numbers that are not known or not finite.
    """

    model: Any
    best_epoch: int = eqx.field(static=True)
    best_loss: float = eqx.field(static=True)
    last: Any
    metrics: list[dict[str, Any]] = eqx.field(static=True)


def train(
    loss: AbstractLoss,
    parametrisation: Parametrisation,
    coordinates: PyTree,
    training: PyTree | Collect,
    validation: PyTree | Collect,
    *,
    optimiser: optax.GradientTransformation,
    epochs: int,
    batch_size: int,
    key: Array,
    folder: Path | None = None,
    resume: bool = False,
    checkpoint_every: float = 10.0,
    restart_every: int | None = None,
    clip: float | None = None,
    validation_loss: AbstractLoss | None = None,
    describe: Callable[[Any], dict[str, float]] | None = None,
    report: Callable[[Progress], None] | None = None,
) -> Trained:
    """Minimise the mean loss over `training`; keep the model that is best on `validation`.

    Samples that are not usable (an unconverged solve, NaN in value or gradient) are left out of
    the mean; a minibatch without any usable sample changes nothing.

    Args:
        loss: judges one sample.
        parametrisation, coordinates: from `parametrise`.
        training, validation: samples stacked along axis 0, or a function `(model, key) -> samples`
            that collects as many with the model of the moment, such as by driving a plant with it.
            It is called before every epoch for training, with a new key, and before every judgement
            for validation, always with the same key. What it collects is part of the checkpoint.
        optimiser: from optax; schedules count minibatches.
        epochs: passes over the training samples, in a new random order each.
        batch_size: samples a step.
        key: random key.
        folder: an existing folder for `checkpoint.eqx` and `metrics.jsonl`; None keeps none.
        resume: go on from the folder's checkpoint, if there is one. Without it the folder must
            hold neither file; nothing is overwritten.
        checkpoint_every: [s] between checkpoints; also one at the end and at Ctrl-C.
        restart_every: forget the warm starts every so many epochs; None never.
        clip: the longest gradient that one sample may contribute. Where plans are nearly chaotic
            a few samples have gradients a thousand times those of the others; this keeps them
            from outvoting the rest. None for no limit.
        validation_loss: judges the validation samples; None is `loss`.
        describe: named numbers of a model, stored with the metrics of each epoch.
        report: told of progress after every minibatch.

    Returns:
        The best model, the last one, and the metrics.

    Raises:
        ValueError: for sizes below one, a `clip` that is not positive, and collected samples that
            are not shaped like those before.
        CheckpointError: a `ValueError`, if `folder` holds a fit and `resume` is not asked for, or
            a checkpoint that is damaged or belongs to something else.
        KeyboardInterrupt: at Ctrl-C, after a checkpoint was written.
    """
    check_clip(clip)
    collect = functools.partial(_collect, parametrisation, training, key)
    judge = functools.partial(
        _evaluate, loss if validation_loss is None else validation_loss, validation, key, batch_size
    )
    # Also where a checkpoint replaces them: they say how the samples in it are shaped.
    first = collect(coordinates, 0)
    number = size_of(training if first is None else first)
    sizes = {
        "`epochs`": epochs,
        "`batch_size`": batch_size,
        "`restart_every`": restart_every,
        "the number of training samples": number,
        "the number of validation samples": 1 if callable(validation) else size_of(validation),
    }
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"train: {name} must be at least 1, got {value}.")
    batches = -(-number // batch_size)

    samples_of = lambda state: training if first is None else state.collected
    begin = functools.partial(_begin_epoch, loss, collect, samples_of, restart_every)
    keeper = Keeper(folder, _initial(loss, optimiser, coordinates, first, training), resume)
    state = keeper.state
    clock = Clock(epochs * batches)
    try:
        if not keeper.lines:
            model = parametrisation.model(state.coordinates)
            judged = judge(model)
            state = _keep_best(state, judged)
            keeper.epoch_done(state, _line(state, None, judged, describe, model))
            keeper.save()
        last_validation = _number(keeper.lines[-1])
        while int(state.epoch) < epochs:
            epoch = int(state.epoch)
            # The order is a function of key and epoch alone, so resuming needs no stored order.
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), number))
            rows_of = minibatches(order, batch_size)
            for batch in range(int(state.batch), batches):
                rows = jnp.asarray(rows_of[batch])
                state = _update(
                    loss, parametrisation, optimiser, clip, state, samples_of(state), rows
                )
                keeper.step_done(state)
                seen = min((batch + 1) * batch_size, number)
                used = int(state.used)
                clock.tick(epoch * batches + batch + 1)
                if report is not None:
                    report(
                        Progress(
                            epoch=epoch,
                            epochs=epochs,
                            batch=batch + 1,
                            batches=batches,
                            loss=float(state.loss_sum) / used if used else float("nan"),
                            validation_loss=last_validation,
                            left_out=1.0 - used / seen,
                            seconds_left=clock.left(),
                        )
                    )
                if time.monotonic() - keeper.saved_at >= checkpoint_every:
                    keeper.save()

            model = parametrisation.model(state.coordinates)
            judged = judge(model)
            last_validation = judged.loss
            finished = eqx.tree_at(lambda s: s.epoch, state, state.epoch + 1)
            finished = _keep_best(finished, judged)
            line = _line(finished, number, judged, describe, model)
            state = begin(finished)
            keeper.epoch_done(state, line)
        keeper.save()
    except KeyboardInterrupt:
        keeper.save()
        raise
    finally:
        keeper.close()
    return Trained(
        model=parametrisation.model(state.best),
        best_epoch=int(state.best_epoch),
        best_loss=float(state.best_loss),
        last=parametrisation.model(state.coordinates),
        metrics=keeper.lines,
    )


def _collect(parametrisation, training, key, coordinates, epoch: int) -> PyTree:
    """The training samples of an epoch that are collected with its model, else None."""
    if not callable(training):
        return None
    key = jax.random.fold_in(jax.random.fold_in(key, epoch), 1)
    return jax.tree.map(jnp.asarray, training(parametrisation.model(coordinates), key))


def _evaluate(loss, validation, key, batch_size: int, model) -> Evaluation:
    if callable(validation):
        validation = validation(model, jax.random.fold_in(jax.random.fold_in(key, 0), 2))
    return evaluate(loss, model, validation, batch_size)


def _initial(loss, optimiser, coordinates, collected, training) -> State:
    zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
    return State(
        coordinates=coordinates,
        optimiser=optimiser.init(coordinates),
        collected=collected,
        memory=_fresh(loss, training if collected is None else collected),
        epoch=none,
        batch=none,
        loss_sum=zero,
        used=none,
        best=coordinates,
        best_loss=zero + jnp.inf,
        best_epoch=none,
    )


def _fresh(loss: AbstractLoss, training: PyTree) -> PyTree:
    return jax.vmap(loss.start)(training)


@remembered_jit
def _update(loss, parametrisation, optimiser, clip, state: State, training, rows) -> State:
    """One optimiser step on the training samples `rows`."""
    batch, memory = take_rows(training, rows), take_rows(state.memory, rows)
    samples = sample_gradients(loss, parametrisation, state.coordinates, batch, memory)
    gradient, total, number = mean_of_usable(samples, rows < size_of(training), clip)

    steps, optimiser_state = optimiser.update(gradient, state.optimiser, state.coordinates)
    moved = optax.apply_updates(state.coordinates, steps)
    coordinates, optimiser_state = select(
        number > 0, (moved, optimiser_state), (state.coordinates, state.optimiser)
    )
    return State(
        coordinates=coordinates,
        optimiser=optimiser_state,
        collected=state.collected,
        memory=jax.tree.map(
            lambda table, new: table.at[rows].set(new, mode="drop"), state.memory, samples.memory
        ),
        epoch=state.epoch,
        batch=state.batch + 1,
        loss_sum=state.loss_sum + total.astype(state.loss_sum.dtype),
        used=state.used + number.astype(state.used.dtype),
        best=state.best,
        best_loss=state.best_loss,
        best_epoch=state.best_epoch,
    )


def _keep_best(state: State, judged: Evaluation) -> State:
    eligible = 1.0 - judged.left_out >= _LEAST_SHARE_JUDGED and math.isfinite(judged.loss)
    if not (eligible and judged.loss < float(state.best_loss)):
        return state
    return eqx.tree_at(
        lambda s: (s.best, s.best_loss, s.best_epoch),
        state,
        (state.coordinates, jnp.asarray(judged.loss, state.best_loss.dtype), state.epoch),
    )


def _begin_epoch(loss, collect, samples_of, restart_every: int | None, state: State) -> State:
    state = eqx.tree_at(
        lambda s: (s.batch, s.loss_sum, s.used),
        state,
        (jnp.zeros_like(state.batch), jnp.zeros_like(state.loss_sum), jnp.zeros_like(state.used)),
    )
    collected = collect(state.coordinates, int(state.epoch))
    if collected is not None:
        shaped = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        if shaped(collected) != shaped(state.collected):
            raise ValueError(
                "train: the samples that `training` collects must be as many and of the same "
                f"shapes and types in every epoch; those of epoch {int(state.epoch)} are not."
            )
        state = dataclasses.replace(state, collected=collected)
    # What was remembered belongs to samples that are gone.
    renewed = collected is not None
    if renewed or (restart_every is not None and int(state.epoch) % restart_every == 0):
        state = dataclasses.replace(state, memory=_fresh(loss, samples_of(state)))
    return state


def _line(state: State, number: int | None, judged, describe, model) -> dict[str, Any]:
    """The metrics of one epoch: no times, so that an interrupted run has the same ones."""
    used = int(state.used)
    training = {
        "loss": float(state.loss_sum) / used if used else None,
        "left_out": None if number is None else 1.0 - used / number,
    }
    return {
        "epoch": int(state.epoch),
        **training,
        "validation_loss": judged.loss,
        "validation_left_out": judged.left_out,
        "best_epoch": int(state.best_epoch),
        **({} if describe is None else {"parameters": describe(model)}),
    }


def _number(line: dict[str, Any]) -> float:
    value = line["validation_loss"]
    return float("nan") if value is None else value
