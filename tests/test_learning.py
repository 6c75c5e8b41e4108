"""Demonstrations, losses, gradients sample by sample, and the training loop."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffcontrol as dc
from diffcontrol import learning

from . import learners


@pytest.fixture(scope="module")
def demonstrations():
    return learners.demonstrations()


LOSS = learning.ImitationLoss(dc.DDP(max_iterations=40))


def small(N=3, L=4, n=2, m=1):
    rng = np.random.default_rng(0)
    return learning.Demonstrations(rng.normal(size=(N, L + 1, n)), rng.normal(size=(N, L, m)))


# Demonstrations


def test_demonstrations_survive_a_file(tmp_path, demonstrations):
    path = tmp_path / "runs.npz"
    demonstrations.save(path)
    back = learning.Demonstrations.load(path)
    np.testing.assert_array_equal(back.states, demonstrations.states)
    np.testing.assert_array_equal(back.controls, demonstrations.controls)
    assert (back.time_step, back.description) == (0.25, {"made": "here"})
    assert [file.name for file in tmp_path.iterdir()] == ["runs.npz"]


def test_time_step_and_description_may_be_missing(tmp_path):
    runs = small()
    np.savez(tmp_path / "bare.npz", states=runs.states, controls=runs.controls)
    back = learning.Demonstrations.load(tmp_path / "bare.npz")
    assert back.time_step is None and back.description == {}


GOOD = {"states": np.zeros((3, 5, 2)), "controls": np.zeros((3, 4, 1))}
WITH_NAN = np.where(np.arange(12).reshape(3, 4, 1) == 7, np.nan, 0.0)


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"states": GOOD["states"]}, "`controls` is missing"),
        ({}, "`states` is missing"),
        (GOOD | {"controls": WITH_NAN}, r"`controls` holds a value that is not finite at \[1, 3"),
        (GOOD | {"states": np.zeros((3, 4, 2))}, "one more state than controls"),
        (GOOD | {"states": np.zeros((5, 2))}, "`states` must have shape"),
        (GOOD | {"states": np.full((3, 5, 2), "a")}, "not real numbers"),
        (GOOD | {"states": np.full((3, 5, 2), None)}, "`states` holds Python objects"),
        (GOOD | {"time_step": np.array(-1.0)}, "`time_step` must be positive"),
        (GOOD | {"time_step": np.zeros(2)}, "`time_step` must be one number"),
        (GOOD | {"description": np.array("{")}, "`description` is not JSON"),
        (GOOD | {"description": np.array("[]")}, "`description` must be a JSON object"),
    ],
)
def test_bad_arrays_are_named_in_one_sentence(tmp_path, arrays, words):
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=words) as raised:
        learning.Demonstrations.load(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "empty", "cut", "flipped", "npy"])
def test_files_that_are_not_archives_are_refused(tmp_path, kind):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, states=np.random.default_rng(0).normal(size=(3, 90, 2)))
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        text = {"text": b"not an archive", "empty": b"", "cut": whole[:middle], "flipped": flipped}
        path.write_bytes(text[kind])
    with pytest.raises(ValueError, match="bad.npz"):
        learning.Demonstrations.load(path)


def test_split_divides_whole_runs():
    runs = small(N=10)
    parts = runs.split(seed=3)
    assert [part.runs for part in parts] == [6, 2, 2]
    starts = np.concatenate([part.states[:, 0, 0] for part in parts])
    assert sorted(starts) == sorted(runs.states[:, 0, 0])
    again = runs.split(seed=3)
    np.testing.assert_array_equal(again[0].states, parts[0].states)
    with pytest.raises(ValueError, match="record 3 or more"):
        small(N=2).split()


def test_every_step_becomes_a_window():
    runs = small(N=2, L=4)
    cut = learning.windows(runs, horizon=3, steps=2)
    assert cut.states.shape == (6, 3, 2) and cut.controls.shape == (6, 2, 1)
    np.testing.assert_array_equal(cut.time, [0, 1, 2, 0, 1, 2])
    np.testing.assert_allclose(cut.states[4], runs.states[1, 1:4], rtol=1e-6)
    # The guess of the last window runs past the end of the recording.
    np.testing.assert_allclose(
        cut.guess[2, :, 0], runs.controls[0, [2, 3, 3], 0].astype(cut.guess.dtype)
    )
    few = learning.windows(runs, horizon=3, most=3, seed=1)
    assert few.time.shape == (3,)
    with pytest.raises(ValueError, match="`steps`"):
        learning.windows(runs, horizon=3, steps=4)


# Losses


def test_losses_vanish_at_the_truth_and_only_there(demonstrations):
    cut = learning.windows(demonstrations, learners.HORIZON)
    for loss in (
        LOSS,
        learning.ImitationLoss(dc.DDP(max_iterations=40), states_weight=1.0),
        learning.SystemIdentificationLoss(),
    ):
        truth = learning.evaluate(loss, learners.problem(), cut, batch_size=32)
        wrong = learning.evaluate(loss, learners.problem(mass=2.0), cut, batch_size=32)
        assert truth.left_out == wrong.left_out == 0.0
        assert truth.loss < 1e-10 and wrong.loss > 1e-5


def test_evaluation_counts_what_it_leaves_out():
    class Odd(learning.AbstractLoss):
        def start(self, sample):
            return None

        def __call__(self, model, sample, memory):
            return learning.Judged(sample, sample > 2.0, None)

    seen = learning.evaluate(Odd(), None, jnp.array([1.0, 2.0, 3.0, 4.0, jnp.nan]), batch_size=2)
    assert seen.loss == 3.5 and seen.left_out == pytest.approx(0.6)


def test_lstm_emits_a_sequence_that_depends_on_the_state_and_learns():
    policy = learning.LSTMPolicy(2, 1, horizon=5, width=8, key=jax.random.key(0))
    here, there = policy(jnp.zeros(2)), policy(jnp.ones(2))
    assert here.shape == (5, 1) and not np.allclose(here, there)
    # Each control is the next input, so no two steps are the same.
    assert len(np.unique(np.asarray(here))) == 5
    cut = learning.windows(small(N=4, L=5), horizon=5, steps=5)
    coordinates, parametrisation = learning.parametrise(policy)
    trained = learning.train(
        learning.SequenceLoss(),
        parametrisation,
        coordinates,
        cut,
        cut,
        optimiser=optax.adam(3e-2),
        epochs=60,
        batch_size=8,
        key=jax.random.key(1),
    )
    assert trained.best_loss < 0.5 * trained.metrics[0]["validation_loss"]


# Coordinates


def test_parametrisation_maps_back_and_keeps_positive():
    model = {"mass": jnp.asarray(3.0), "goal": jnp.array([-1.0, 2.0]), "name": "cart"}
    coordinates, parametrisation = learning.parametrise(
        model, raw=lambda m: m["goal"], logarithmic=lambda m: m["mass"]
    )
    back = parametrisation.model(coordinates)
    assert back["name"] == "cart"
    np.testing.assert_allclose(back["mass"], 3.0, rtol=1e-6)
    np.testing.assert_array_equal(back["goal"], model["goal"])
    moved = parametrisation.model(jax.tree.map(lambda c: c - 50.0, coordinates))
    assert moved["mass"] > 0 and moved["goal"][0] == -51.0


@pytest.mark.parametrize(
    "raw, logarithmic, words",
    [
        (None, lambda m: m["goal"], "not positive"),
        (lambda m: m["mass"], lambda m: m["mass"], "both"),
        (lambda m: m["count"], None, "not a floating-point array"),
        (lambda m: (), None, "no array is chosen"),
    ],
)
def test_parametrisation_refuses(raw, logarithmic, words):
    model = {
        "mass": jnp.asarray(3.0), "goal": jnp.array([-1.0, 2.0]), "count": jnp.asarray(3)
    }  # fmt: skip
    with pytest.raises(ValueError, match=words):
        learning.parametrise(model, raw, logarithmic)


# Gradients


SAMPLE_GRADIENTS = eqx.filter_jit(learning.sample_gradients)


def gradients(demonstrations, spoil=None):
    cut = learning.windows(demonstrations, learners.HORIZON, most=8)
    if spoil is not None:
        cut = spoil(cut)
    coordinates, parametrisation = learning.parametrise(
        learners.problem(mass=2.0), logarithmic=learners.mass_and_drag
    )
    return eqx.filter_jit(learning.sample_gradients)(
        LOSS, parametrisation, coordinates, cut, cut.guess
    )


def test_sample_gradients_agree_with_differences(demonstrations):
    found = gradients(demonstrations)
    cut = learning.windows(demonstrations, learners.HORIZON, most=8)
    coordinates, parametrisation = learning.parametrise(
        learners.problem(mass=2.0), logarithmic=learners.mass_and_drag
    )
    double = jnp.result_type(float) == jnp.float64
    h = 1e-5 if double else 1e-2

    def values(shift):
        moved = eqx.tree_at(
            lambda c: c.dynamics.mass, coordinates, coordinates.dynamics.mass + shift
        )
        return SAMPLE_GRADIENTS(LOSS, parametrisation, moved, cut, cut.guess).value

    slope = (values(h) - values(-h)) / (2 * h)
    assert np.abs(slope).max() > 1e-3
    tolerance = {"rtol": 1e-5, "atol": 1e-9} if double else {"rtol": 5e-2, "atol": 5e-3}
    np.testing.assert_allclose(found.gradient.dynamics.mass, slope, **tolerance)


BAD = 3


def nan_state(cut):
    return eqx.tree_at(lambda w: w.states, cut, cut.states.at[BAD].set(jnp.nan))


def huge_state(cut):
    return eqx.tree_at(lambda w: w.states, cut, cut.states.at[BAD].set(1e200))


def nan_target(cut):
    return eqx.tree_at(lambda w: w.controls, cut, cut.controls.at[BAD].set(jnp.nan))


@pytest.mark.parametrize("spoil", [nan_state, huge_state, nan_target])
def test_a_bad_sample_touches_no_other(demonstrations, spoil):
    good, bad = gradients(demonstrations), gradients(demonstrations, spoil)
    others = np.arange(8) != BAD
    assert np.all(np.asarray(good.usable)) and not bad.usable[BAD]
    for a, b in zip(
        jax.tree.leaves((good.value, good.gradient)),
        jax.tree.leaves((bad.value, bad.gradient)),
        strict=True,
    ):
        assert np.asarray(a)[others].tobytes() == np.asarray(b)[others].tobytes()
    mean, total, number = learning.mean_of_usable(bad, jnp.ones(8, bool))
    assert number == 7 and np.isfinite(total)
    np.testing.assert_allclose(
        mean.dynamics.mass, np.asarray(good.gradient.dynamics.mass)[others].mean(), rtol=1e-5
    )


def test_long_gradients_are_shortened():
    samples = learning.SampleGradients(
        value=jnp.ones(3),
        gradient=(jnp.array([3.0, 0.3, jnp.nan]), jnp.array([4.0, 0.4, 1.0])),
        usable=jnp.array([True, True, False]),
        memory=None,
    )
    mean, _, number = learning.mean_of_usable(samples, jnp.ones(3, bool), clip=1.0)
    assert number == 2
    np.testing.assert_allclose(mean, [(0.6 + 0.3) / 2, (0.8 + 0.4) / 2], rtol=1e-6)


# Training


def fit(demonstrations, **settings):
    training, validation, _ = demonstrations.split(seed=0)
    cut = lambda runs: learning.windows(runs, learners.HORIZON)
    coordinates, parametrisation = learning.parametrise(
        learners.problem(mass=2.0, drag=0.1), logarithmic=learners.mass_and_drag
    )
    settings = {
        "optimiser": optax.adam(optax.cosine_decay_schedule(0.2, 60)),
        "epochs": 15,
        "batch_size": 8,
        "key": jax.random.key(0),
    } | settings
    return learning.train(
        settings.pop("loss", LOSS), parametrisation, coordinates, cut(training), cut(validation),
        **settings,
    )  # fmt: skip


def test_training_finds_the_truth(demonstrations, tmp_path):
    told = []
    trained = fit(
        demonstrations,
        folder=tmp_path,
        report=told.append,
        describe=lambda model: {"mass": float(model.dynamics.mass)},
    )
    assert trained.best_loss < 1e-2 * trained.metrics[0]["validation_loss"]
    assert abs(trained.model.dynamics.mass - 1.0) < 0.05
    # Every epoch is one line, and what is returned is what was written.
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == trained.metrics
    assert [line["epoch"] for line in lines] == list(range(16))
    assert lines[0]["parameters"] == {"mass": 2.0} and lines[0]["loss"] is None
    best = min(lines, key=lambda line: line["validation_loss"])
    assert trained.best_epoch == best["epoch"] and trained.best_loss == best["validation_loss"]
    assert lines[-1]["left_out"] == 0.0
    # 4 runs of 8 steps are 4 minibatches of 8.
    assert len(told) == 15 * 4
    assert told[0].seconds_left is None and told[-1].seconds_left == 0.0


def test_unusable_samples_change_nothing(demonstrations):
    class Hopeless(learning.AbstractLoss):
        def start(self, sample):
            return None

        def __call__(self, model, sample, memory):
            return learning.Judged(jnp.nan * model.dynamics.mass, jnp.asarray(False), None)

    trained = fit(demonstrations, loss=Hopeless(), epochs=2, restart_every=1)
    np.testing.assert_allclose(trained.last.dynamics.mass, 2.0, rtol=1e-6)
    assert trained.metrics[-1]["left_out"] == 1.0 and trained.metrics[-1]["loss"] is None


@pytest.mark.parametrize("name", ["epochs", "batch_size", "restart_every"])
def test_sizes_below_one_are_refused(demonstrations, name):
    with pytest.raises(ValueError, match=name):
        fit(demonstrations, **{name: 0})


def test_no_samples_are_refused(demonstrations):
    cut = learning.windows(demonstrations, learners.HORIZON)
    none = jax.tree.map(lambda leaf: leaf[:0], cut)
    with pytest.raises(ValueError, match="number of samples must be at least 1"):
        learning.evaluate(LOSS, learners.problem(), none)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        learning.evaluate(LOSS, learners.problem(), cut, batch_size=0)


@pytest.mark.parametrize("clip", [0.0, -1.0, np.inf, np.nan])
def test_a_clip_that_is_no_length_is_refused(demonstrations, clip):
    with pytest.raises(ValueError, match="`clip` must be a positive number"):
        fit(demonstrations, clip=clip)
