"""Dynamics and costs with learned parts, and what solver and adjoint make of them."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffcontrol as dc
from diffcontrol import learning, testing
from diffcontrol.models import ConvexStageCost, ConvexTerminalCost, Normalisation
from diffcontrol.models.neural_dynamics import change, changed
from diffcontrol.systems import pendulum

KEY = jax.random.key(0)
rng = np.random.default_rng(0)


def recorded(runs=8, steps=20):
    """The pendulum under random torque."""
    starts = jax.vmap(pendulum.start)(jax.random.split(jax.random.key(1), runs))
    torques = jnp.asarray(rng.uniform(-2, 2, (runs, steps, 1)))

    def run(x, torques):
        advance = lambda x, u: (dc.systems.Pendulum()(x, u, 0),) * 2
        return jnp.concatenate([x[None], jax.lax.scan(advance, x, torques)[1]])

    states = jax.vmap(run)(starts, torques)
    return learning.Demonstrations(np.asarray(states), np.asarray(torques))


RECORDED = recorded()
KNOWN = dc.systems.Pendulum(gravity=7.0, mass=1.3)


def neural(**settings):
    settings = dict(angles=((0, 1),), width=8, depth=1, key=KEY) | settings
    network = dc.NeuralDynamics(3, 1, **settings)
    return network.fitted_to(RECORDED.states, RECORDED.controls)


def residual():
    network = dc.NeuralDynamics(3, 1, angles=((0, 1),), width=8, depth=1, key=KEY)
    return dc.ResidualDynamics(KNOWN, network).fitted_to(RECORDED.states, RECORDED.controls)


DYNAMICS = {"neural": neural, "residual": residual}
both = pytest.mark.parametrize("kind", DYNAMICS)


@both
def test_angles_stay_on_their_circle(kind):
    model, x = DYNAMICS[kind](), jnp.asarray(RECORDED.states[0, 0])
    states = jax.lax.scan(lambda x, u: (model(x, u, 0),) * 2, x, 3.0 * jnp.ones((200, 1)))[1]
    np.testing.assert_allclose(jnp.sum(states[:, :2] ** 2, axis=1), 1.0, atol=1e-12)
    assert jnp.abs(states[-1] - x).max() > 1e-3


def test_what_is_unseen_moves_along_and_has_no_influence():
    model, u = dc.NeuralDynamics(4, 1, unseen=(1,), key=KEY), jnp.array([0.4])
    x = jnp.asarray(rng.normal(size=4))
    jacobian = jax.jacfwd(lambda x: model(x, u, 0))(x)
    np.testing.assert_array_equal(jacobian[:, 1], jnp.eye(4)[1])
    assert jnp.all(jnp.delete(jacobian, 1, axis=1)[1] != 0)
    fitted = model.fitted_to(jnp.asarray(rng.normal(size=(2, 6, 4))), jnp.ones((2, 5, 1)))
    assert fitted.inputs.mean.shape == (4,)


@both
def test_an_untrained_network_predicts_about_the_mean_change(kind):
    model = DYNAMICS[kind]()
    x, u, after = (
        RECORDED.states[:, :-1].reshape(-1, 3),
        RECORDED.controls.reshape(-1, 1),
        RECORDED.states[:, 1:].reshape(-1, 3),
    )
    apart = jax.vmap(lambda x, u: model(x, u, 0))(x, u) - after
    base = jax.vmap(lambda x, u: KNOWN(x, u, 0))(x, u) if kind == "residual" else x
    assert jnp.mean(apart**2) < 1.2 * jnp.mean((base - after) ** 2)


def test_changed_undoes_change():
    before, after = jnp.asarray(rng.normal(size=(2, 7)))
    pairs = ((5, 1), (2, 6))
    unit = lambda x: functools.reduce(
        lambda x, pair: x.at[jnp.array(pair)].divide(jnp.hypot(x[pair[0]], x[pair[1]])), pairs, x
    )
    before, after = unit(before), unit(after)
    np.testing.assert_allclose(changed(before, change(before, after, pairs), pairs), after)


def test_normalisations_are_fitted_to_the_data():
    model = neural()
    seen = jnp.concatenate([RECORDED.states[:, :-1], RECORDED.controls], axis=2).reshape(-1, 4)
    normal = jax.vmap(model.inputs.apply)(seen)
    np.testing.assert_allclose(normal.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(normal.std(axis=0), 1.0)
    turn = np.diff(np.unwrap(np.arctan2(RECORDED.states[..., 1], RECORDED.states[..., 0])))
    np.testing.assert_allclose(model.changes.mean[1], turn.mean(), rtol=1e-12)
    np.testing.assert_allclose(model.changes.scale[1], turn.std(), rtol=1e-12)
    exact = dc.ResidualDynamics(dc.systems.Pendulum(), dc.NeuralDynamics(3, 1, key=KEY))
    fitted = exact.fitted_to(RECORDED.states, RECORDED.controls).learned.changes
    np.testing.assert_allclose(fitted.mean, 0.0, atol=1e-12)
    assert jnp.all(fitted.scale > 0), "nothing missed must not divide by zero"


def test_a_column_that_does_not_vary_keeps_a_scale():
    rows = jnp.stack([jnp.arange(5.0), jnp.full(5, 3.0)], axis=1)
    fitted = Normalisation.fitted_to(rows)
    np.testing.assert_allclose(fitted.restore(fitted.apply(rows[2])), rows[2])
    assert fitted.scale[1] == pytest.approx(1e-3 * fitted.scale[0])


COSTS = {
    "neural": lambda: (
        dc.NeuralStageCost(3, 1, width=8, depth=1, least=0.1, key=KEY),
        dc.NeuralTerminalCost(3, width=8, depth=1, key=KEY),
    ),
    "convex": lambda: (
        ConvexStageCost(0.5 * rng.normal(size=(4, 4)), jnp.array([1.0, 0.0, 0.0, 0.0]), 0.1),
        ConvexTerminalCost(rng.normal(size=(3, 3)), jnp.array([1.0, 0.0, 0.0])),
    ),
}


@pytest.mark.parametrize("kind", COSTS)
def test_costs_are_bounded_below_and_grow_without_limit(kind):
    stage, terminal = COSTS[kind]()
    for far in (1e3, 1e5):
        rows = far * jnp.asarray(rng.normal(size=(50, 4)))
        assert jnp.all(jax.vmap(lambda r: stage(r[:3], r[3:], 0))(rows) > 1e-5 * far**2)
        assert jnp.all(jax.vmap(terminal)(rows[:, :3]) > 1e-5 * far**2)
    nought = ConvexTerminalCost(jnp.zeros((2, 2)), least=0.5)
    np.testing.assert_allclose(jax.hessian(nought)(jnp.ones(2)), 0.5 * jnp.eye(2))


@pytest.mark.slow
@pytest.mark.parametrize(("dynamics", "costs"), [("neural", "convex"), ("residual", "neural")])
def test_solutions_are_certified_and_gradients_equal_differences(dynamics, costs):
    stage, terminal = COSTS[costs]()
    problem = dc.ControlProblem(
        dynamics=DYNAMICS[dynamics](),
        stage_cost=stage,
        terminal_cost=terminal,
        horizon=5,
        control_size=1,
        control_bounds=dc.Bounds(-2.0, 2.0),
    )
    report = testing.check_gradients(problem, RECORDED.states[0, 0], entries_per_leaf=2)
    # The derivative by an entry that hardly matters drowns in the rounding of its differences.
    decided = [entry for entry in report.entries if entry.decided]
    assert len(decided) >= 0.95 * len(report.entries)
    assert all(entry.agrees for entry in decided), str(report)
    assert report.certificates[0].trustworthy


def test_prediction_over_one_step_is_system_identification():
    samples = learning.windows(RECORDED, 5, most=20)
    model = dc.ControlProblem(
        dynamics=neural(), stage_cost=pendulum.cost(), horizon=5, control_size=1
    )
    one = learning.evaluate(learning.SystemIdentificationLoss(), model, samples)
    other = learning.evaluate(learning.PredictionLoss(), model, samples)
    assert one.loss == pytest.approx(other.loss, rel=1e-12) and one.loss > 1e-4


def test_prediction_rolls_out_from_the_first_state_in_units_of_the_scale():
    window = jax.tree.map(lambda a: a[3], learning.windows(RECORDED, 5, steps=4))
    scale = jnp.array([1.0, 2.0, 10.0])
    loss = learning.PredictionLoss(scale, dynamics_of=lambda model: model)
    x, errors = window.states[0], []
    for k in range(4):
        x = KNOWN(x, window.controls[k], k)
        errors.append((x - window.states[k + 1]) / scale)
    np.testing.assert_allclose(loss(KNOWN, window, None).value, np.mean(np.square(errors)))
    assert not loss(dc.systems.Pendulum(gravity=jnp.nan), window, None).usable


@both
def test_training_learns_to_predict(kind):
    model = DYNAMICS[kind]()
    loss = learning.PredictionLoss(dynamics_of=lambda model: model)
    coordinates, parametrisation = learning.parametrise(model)
    samples = learning.windows(RECORDED, 5, steps=5)
    trained = learning.train(
        loss,
        parametrisation,
        coordinates,
        samples,
        samples,
        optimiser=optax.adam(1e-2),
        epochs=15,
        batch_size=32,
        key=KEY,
    )
    assert trained.best_loss < 0.1 * trained.metrics[0]["validation_loss"]


class Off(learning.AbstractLoss):
    """Distance of a number from the sample; NaN samples are not usable."""

    def start(self, sample):
        return jnp.zeros(())

    def __call__(self, model, sample, memory):
        return learning.Judged((model - sample) ** 2, jnp.isfinite(sample), memory + 1.0)


def test_a_weighted_sum_adds_values_and_gradients_and_keeps_every_memory():
    loss = learning.WeightedSum((Off(), Off()), (2.0, 0.5))
    model, sample = jnp.asarray(3.0), (jnp.asarray(1.0), jnp.asarray(-1.0))
    judged = loss(model, sample, loss.start(sample))
    assert judged.value == 2.0 * 4 + 0.5 * 16 and judged.usable
    assert judged.memory == (1.0, 1.0)
    slope = jax.grad(lambda model: loss(model, sample, judged.memory).value)(model)
    assert slope == 2.0 * 4 + 0.5 * 8


def test_a_weighted_sum_leaves_out_samples_with_a_bad_part():
    loss = learning.WeightedSum((Off(), Off()), (1.0, 1.0))
    samples = (jnp.zeros(4), jnp.array([0.0, jnp.nan, 0.0, 0.0]))
    seen = learning.evaluate(loss, jnp.asarray(1.0), samples)
    assert seen.loss == 2.0 and seen.left_out == 0.25


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: dc.NeuralDynamics(3, 1, angles=((0, 3),), key=KEY), "`angles` must be pairs"),
        (lambda: dc.NeuralDynamics(3, 1, angles=((0, 0),), key=KEY), "`angles` must be pairs"),
        (lambda: dc.NeuralDynamics(3, 1, unseen=(3,), key=KEY), "`unseen` must be positions"),
        (lambda: dc.NeuralDynamics(0, 1, key=KEY), "`state_size` must be at least 1"),
        (lambda: neural().fitted_to(jnp.zeros((2, 5, 3)), jnp.zeros((2, 5, 1))), "`states` must"),
        (lambda: ConvexStageCost(jnp.ones((2, 3))), "`root` must have shape"),
        (lambda: ConvexTerminalCost(jnp.eye(2), least=0.0), "`least` must be positive"),
        (lambda: dc.NeuralTerminalCost(3, least=0.0, key=KEY), "`least` must be positive"),
        (
            lambda: dc.NeuralStageCost(3, 1, inputs=Normalisation.none(3), key=KEY),
            "must normalise 4 numbers",
        ),
        (lambda: Normalisation(jnp.zeros(2), jnp.array([1.0, 0.0])), "every `scale`"),
        (lambda: learning.WeightedSum((Off(),), (1.0, 2.0)), "tuples of one length"),
        (
            lambda: learning.WeightedSum((Off(),), (1.0,)).start((1.0, 2.0)),
            "a tuple of 1 samples",
        ),
    ],
)
def test_refusals(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def test_float32():
    model = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf, neural()
    )
    x, u = jnp.array([1.0, 0.0, 0.5], jnp.float32), jnp.array([0.3], jnp.float32)
    narrow, wide = model(x, u, 0), neural()(x.astype(float), u.astype(float), 0)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=1e-6)


def test_vmap_equals_loop():
    model = residual()
    xs, us = jnp.asarray(RECORDED.states[0, :3]), jnp.asarray(RECORDED.controls[0, :3])
    together = jax.jit(jax.vmap(lambda x, u: model(x, u, 0)))(xs, us)
    alone = jnp.stack([model(x, u, 0) for x, u in zip(xs, us, strict=True)])
    np.testing.assert_allclose(together, alone, rtol=1e-12)
