"""Closed-loop task loss: its gradient, its memory, and what differs between situations."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import diffcontrol as dc
from diffcontrol import learning
from diffcontrol.learning import Situation, TotalCost, replacing
from diffcontrol.systems import Pendulum, pendulum

from . import learners

CART = learners.Cart(jnp.asarray(1.3), jnp.asarray(0.2))
MEASURE = TotalCost(dc.GoalCost(jnp.array([1.0, 0.1, 0.1]), jnp.zeros(2)), lambda x: x @ x)
START = jnp.array([1.0, -0.4])
STEPS = 12
LOSS = learning.TaskLoss(CART, MEASURE, STEPS)

JUDGE = eqx.filter_jit(
    eqx.filter_vmap(lambda loss, model, s: loss(model, s, None), in_axes=(None, None, 0))
)


def check_gradient(function, arrays, steps, tolerance):
    """The gradient agrees with converged central differences by every entry; returns it.

    `function` returns a value and something that is handed back. Of the differences the two
    neighbouring steps count that agree best; entries much smaller than the others are compared on
    the scale of those, since their rounding is.
    """
    gradient, seen = jax.jit(jax.grad(function, has_aux=True))(arrays)
    flat, shaped = jax.flatten_util.ravel_pytree(arrays)
    moves = jnp.eye(flat.size)[:, None] * jnp.asarray(steps)[:, None]
    apart = lambda move: function(shaped(flat + move))[0] - function(shaped(flat - move))[0]
    found = np.asarray(jax.jit(jax.vmap(jax.vmap(apart)))(moves)) / (2 * np.asarray(steps))
    change, rows = np.abs(np.diff(found)), np.arange(flat.size)
    best = np.argmin(change, axis=1)
    mine = np.asarray(jax.flatten_util.ravel_pytree(gradient)[0])
    scale = np.maximum(np.abs(mine), 1e-3 * np.abs(mine).max())
    assert (change[rows, best] <= tolerance * scale).all(), "the differences do not converge"
    assert (mine != 0.0).all()
    error = np.abs(mine - found[rows, best + 1]) / scale
    print(f"largest relative difference {error.max():.1e} over {flat.size} entries")
    assert error.max() < tolerance, error
    return gradient, seen


def test_gradient_agrees_with_differences_and_forward_mode():
    arrays, rest = eqx.partition(learners.problem(), eqx.is_inexact_array)
    kick = jnp.zeros((STEPS, 2)).at[5, 1].set(-2.0)

    def loss(arrays):
        model, plant, situation = arrays
        judged, ran = learning.task_loss(
            dc.MPC(eqx.combine(model, rest)), plant, situation, MEASURE, STEPS
        )
        return judged.value, ran.controls

    point = (arrays, CART, Situation(START, kick))
    gradient, controls = check_gradient(loss, point, [1e-5, 3e-6, 1e-6], 1e-5)
    assert (controls == 1.0).any() and (controls == -1.0).any()  # both bounds are active
    _, forward = jax.jit(lambda d: jax.jvp(lambda a: loss(a)[0], (point,), (d,)))(point)
    along = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, point)))
    np.testing.assert_allclose(forward, along, rtol=1e-9)


@pytest.mark.slow
def test_gradient_over_fifty_steps_with_a_horizon_of_twenty():
    """Warm-started pendulum, torque at both bounds: the problem's parameters and the start."""
    arrays, rest = eqx.partition(pendulum.problem(horizon=20), eqx.is_inexact_array)

    def loss(point):
        model, x0 = point
        judged, ran = learning.task_loss(
            dc.MPC(eqx.combine(model, rest)),
            Pendulum(mass=1.1),
            Situation(x0),
            TotalCost(pendulum.cost()),
            50,
        )
        return judged.value, ran.controls

    x0 = jnp.array([jnp.cos(2.0), jnp.sin(2.0), -2.0])
    _, controls = check_gradient(loss, (arrays, x0), [1e-4, 3e-5, 1e-5, 3e-6, 1e-6], 1e-4)
    assert (controls == 2.0).any() and (controls == -2.0).any() and (abs(controls) < 2.0).any()


def temporary_bytes(loss, model, situation):
    gradient = jax.grad(lambda arrays, x0: loss(arrays, Situation(x0), None).value, argnums=(0, 1))
    compiled = jax.jit(gradient).lower(model, situation.x0).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_grows_linearly_and_blocks_bound_it():
    problem, situation = pendulum.problem(horizon=20), Situation(jnp.array([0.5, 0.8, 0.1]))
    steps = (25, 100, 200)
    of = lambda L, keep_every: temporary_bytes(
        learning.TaskLoss(Pendulum(), TotalCost(pendulum.cost()), L, keep_every=keep_every),
        problem,
        situation,
    )
    whole, blocks = (
        [of(L, None) for L in steps],
        [of(L, b) for L, b in zip(steps, (5, 10, 10), strict=True)],
    )
    print("bytes", dict(zip(steps, zip(whole, blocks, strict=True), strict=True)))
    assert whole[2] / whole[1] == pytest.approx(2.0, rel=0.1)
    assert blocks[2] < 0.2 * whole[2] and blocks[2] < whole[0]


def test_blocks_change_nothing_but_memory():
    arrays, rest = eqx.partition(learners.problem(), eqx.is_inexact_array)
    shorter = learning.TaskLoss(CART, MEASURE, STEPS, keep_every=4)
    shaken = Situation(START, disturbances=jnp.full((STEPS, 2), 0.01))
    judged = lambda loss: lambda arrays: loss(eqx.combine(arrays, rest), shaken, None).value
    compiled = [
        jax.jit(jax.value_and_grad(judged(loss))).lower(arrays).compile()
        for loss in (LOSS, shorter)
    ]
    (first, gradient), (second, again) = (function(arrays) for function in compiled)
    assert first == second
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    sizes = [function.memory_analysis().temp_size_in_bytes for function in compiled]
    assert sizes[1] < 0.85 * sizes[0]


# Situations.


def test_what_a_situation_replaces():
    """Goals of controller and measure, masses of the plant: each sample as if it stood alone."""
    controller = dc.MPC(learners.problem())
    goals, masses = jnp.array([[0.5, 0.0], [-0.5, 0.0]]), jnp.array([1.0, 1.6])
    situations = Situation(
        jnp.stack([START, START]),
        policy=replacing(controller, lambda c: c.problem.stage_cost.goal, goals),
        plant=replacing(CART, lambda plant: plant.mass, masses),
        measure=replacing(MEASURE, lambda measure: measure.stage_cost.goal, goals),
    )
    seen = JUDGE(LOSS, learners.problem(), situations)
    for k in range(2):
        problem = eqx.tree_at(lambda p: p.stage_cost.goal, learners.problem(), goals[k])
        plant = eqx.tree_at(lambda plant: plant.mass, CART, masses[k])
        ran = dc.simulate(dc.MPC(problem), plant, START, STEPS)
        apart = ran.states[:-1] - goals[k]
        by_hand = 0.5 * ((apart**2 * jnp.array([1.0, 0.1])).sum() + 0.1 * (ran.controls**2).sum())
        by_hand += (ran.states[-1] ** 2).sum()
        assert seen.usable[k]
        np.testing.assert_allclose(seen.value[k], by_hand, rtol=1e-9)


def test_draws():
    draw = lambda key: Situation(
        jax.random.normal(key, (2,)), plant=learning.scattered(CART, key, 0.1)
    )
    drawn = learning.draw_situations(draw, jax.random.key(0), 4000)
    assert drawn.x0.shape == (4000, 2) and drawn.plant.mass.shape == (4000,)
    logarithm = np.log(drawn.plant.mass / CART.mass)
    assert abs(logarithm.mean()) < 0.01 and logarithm.std() == pytest.approx(0.1, rel=0.1)
    assert abs(np.corrcoef(logarithm, np.log(drawn.plant.drag / CART.drag))[0, 1]) < 0.1
    with pytest.raises(ValueError, match="`number` must be at least 1"):
        learning.draw_situations(draw, jax.random.key(0), 0)


@pytest.mark.parametrize(
    "situation, loss, words",
    [
        (Situation(START, plant=learners.problem()), LOSS, "`plant` must hold arrays in the str"),
        (Situation(START, jnp.zeros((3, 2))), LOSS, r"`disturbances` must have shape .*\(12, 2\)"),
        (Situation(START), learning.TaskLoss(CART, MEASURE, 12, keep_every=5), "must divide"),
        (Situation(START), learning.TaskLoss(CART, lambda x, u: x, 12), "must return a scalar"),
        (Situation(START), learning.TaskLoss(CART, MEASURE, 0), "`steps` must be at least 1"),
    ],
)
def test_bad_situations_are_named(situation, loss, words):
    with pytest.raises(ValueError, match=words):
        loss(learners.problem(), situation, None)


def test_what_is_not_usable_is_left_out_and_counted():
    """A solve that does not converge, and a start that is not a number, count; others stay."""
    hasty = lambda problem: dc.MPC(problem, dc.DDP(max_iterations=2))
    loss = learning.TaskLoss(CART, MEASURE, STEPS, hasty)
    starts = jnp.array([[0.0, 0.0], [5.0, 5.0], [jnp.nan, 0.0]])
    judged = JUDGE(loss, learners.problem(), Situation(starts))
    np.testing.assert_array_equal(judged.usable, [True, False, False])
    seen = learning.evaluate(loss, learners.problem(), Situation(starts))
    assert seen.left_out == pytest.approx(2 / 3) and seen.loss == pytest.approx(0.0, abs=1e-12)
    # To judge by, the cost counts also where a solve did not converge.
    achieved = JUDGE(learning.AchievedLoss(loss), learners.problem(), Situation(starts))
    np.testing.assert_array_equal(achieved.usable, [True, True, False])
    plain = learning.TaskLoss(CART, MEASURE, STEPS, lambda model: lambda x: -x[:1])
    assert JUDGE(plain, None, Situation(starts)).usable.tolist() == [True, True, False]


# Estimators for plants that have no derivative.


def test_recorded_plant_is_exact_where_the_model_is_the_plant():
    controller = dc.MPC(learners.problem())
    ran = jax.jit(lambda: dc.simulate(controller, CART, START, STEPS))()

    arrays, rest = eqx.partition(learners.problem(), eqx.is_inexact_array)

    @eqx.filter_jit
    def gradient(plant):
        def judge(point, plant_rest):
            model, plant = eqx.combine(point[0], rest), eqx.combine(point[1], plant_rest)
            loss = eqx.tree_at(lambda loss: loss.plant, LOSS, plant)
            return loss(model, Situation(START), None).value

        numbers, others = eqx.partition(plant, eqx.is_inexact_array)
        return jax.value_and_grad(judge)((arrays, numbers), others)

    value, (exact, _) = gradient(CART)
    same, (along, by_plant) = gradient(learning.RecordedPlant(CART, ran.states[1:]))
    np.testing.assert_allclose(same, value, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(along), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)
    # The recorded plant does not depend on the model's parameters.
    assert by_plant.model.mass == by_plant.model.drag == 0.0
    # Another model: what happened is the same, its derivatives are not.
    wrong = learning.RecordedPlant(learners.Cart(2.0 * CART.mass, CART.drag), ran.states[1:])
    other, (biased, _) = gradient(wrong)
    np.testing.assert_allclose(other, value, rtol=1e-12)
    assert abs(biased.dynamics.mass / exact.dynamics.mass - 1) > 1e-2


def test_a_recorded_run_that_ended_stays_where_it_ended():
    following = jnp.arange(8.0).reshape(4, 2)
    plant = learning.RecordedPlant(CART, following, 2)
    reach = lambda x0: dc.simulate(lambda x: x[:1], plant, x0, 4).states
    np.testing.assert_array_equal(reach(START)[1:], following[jnp.array([0, 1, 1, 1])])
    # From there on x+ = x, so the derivative stays too.
    slope = jax.jacobian(reach)(START)
    np.testing.assert_array_equal(slope[3:], jnp.stack([slope[2]] * 2))
    assert (slope[2] != 0).any()


def quadratic(weight):
    """A linear-quadratic problem: the closed loop's cost is a quadratic function of the noise."""
    return dc.ControlProblem(
        dynamics=lambda x, u, t: jnp.stack([x[0] + 0.5 * x[1], x[1] + 0.5 * u[0]]),
        stage_cost=dc.GoalCost(jnp.array([1.0, 0.1, 1.0]).at[0].set(weight), jnp.zeros(2)),
        horizon=4,
        control_size=1,
    )


@pytest.mark.slow
def test_likelihood_ratio_is_unbiased():
    """Against the exact gradient of the expected cost, within its standard error."""
    runs, steps = 4096, 4
    plant = quadratic(1.0).dynamics
    measure = TotalCost(dc.GoalCost(jnp.array([1.0, 0.2, 0.1]), jnp.zeros(2)))
    model = learning.GaussianPolicy(dc.MPC(quadratic(0.3)), jnp.log(jnp.array([0.5])))
    noise = jax.random.normal(jax.random.key(0), (runs, steps, 1))
    run = eqx.filter_jit(
        eqx.filter_vmap(
            lambda noise: dc.simulate(
                eqx.tree_at(lambda p: p.noise, model, noise, is_leaf=lambda leaf: leaf is None),
                plant, START, steps,
            )
        )
    )  # fmt: skip
    ran = run(noise)
    costs = jax.vmap(measure.of_steps)(ran.states, ran.controls)
    samples = learning.attempts(ran.states, ran.controls, costs)
    np.testing.assert_allclose(samples.cost, costs.sum(axis=1))
    chosen = lambda p: (p.mean.problem.stage_cost.weights, p.log_sigma)
    coordinates, parametrisation = learning.parametrise(model, chosen)
    found = eqx.filter_jit(learning.sample_gradients)(
        learning.LikelihoodRatioLoss(), parametrisation, coordinates, samples, None
    )
    assert found.usable.all()
    np.testing.assert_allclose(found.value, samples.cost)

    # Of the expected cost: the cost without noise, and that of the response to the noise of each
    # step alone, since different noises do not correlate and the loop is linear.
    impulses = jnp.concatenate([jnp.zeros((1, steps, 1)), jnp.eye(steps)[..., None]])
    starts = jnp.concatenate([START[None], jnp.zeros((steps, 2))])
    template = eqx.tree_at(lambda p: p.noise, model, impulses[0], is_leaf=lambda x: x is None)
    each = Situation(starts, policy=replacing(template, lambda p: p.noise, impulses))
    loss = learning.TaskLoss(plant, measure, steps, controller_of=lambda model: model)

    @jax.jit
    @jax.grad
    def exact(coordinates):
        policy = parametrisation.model(coordinates)
        policy = eqx.tree_at(lambda p: p.noise, policy, impulses[0], is_leaf=lambda x: x is None)
        return jax.vmap(lambda situation: loss(policy, situation, None).value)(each).sum()

    for true, samples in zip(chosen(exact(coordinates)), chosen(found.gradient), strict=True):
        error = np.std(samples, axis=0) / np.sqrt(runs)
        apart = np.abs(np.mean(samples, axis=0) - true) / error
        print("standard errors off", apart, "of", np.abs(true) / error)
        assert (apart < 4).all() and (np.abs(true) > 8 * error).all()


def test_a_baseline_needs_another_run():
    with pytest.raises(ValueError, match="at least 2 runs"):
        learning.attempts(jnp.zeros((1, 3, 2)), jnp.zeros((1, 2, 1)), jnp.zeros((1, 2)))


# Training on what the model itself brings about.


class Apart(learning.AbstractLoss):
    """Remembers, so that memories of samples that are gone would show."""

    def start(self, sample):
        return jnp.zeros(2)

    def __call__(self, model, sample, memory):
        value = jnp.sum((model["w"] - sample) ** 2) + 0.1 * jnp.sum(memory * model["w"])
        return learning.Judged(value, jnp.asarray(True), memory + sample)


def collect(model, key):
    return model["w"] + np.asarray(jax.random.normal(key, (6, 2)))


def trained(folder, training=collect, **settings):
    coordinates, parametrisation = learning.parametrise({"w": jnp.array([0.3, -0.2])})
    settings = {"checkpoint_every": 1e6} | settings
    return learning.train(
        Apart(), parametrisation, coordinates, training, collect, optimiser=optax.adam(0.1),
        epochs=3, batch_size=4, key=jax.random.key(0), folder=folder, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("moment", range(1, 6))
def test_collected_samples_are_part_of_the_checkpoint(moment, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir(), part.mkdir()
    seen = []
    expected = trained(whole, lambda model, key: seen.append(collect(model, key)) or seen[-1])
    # Anew in each epoch, for the model of that epoch; and once for an epoch that may follow.
    assert len(seen) == 4 and len(np.unique(np.concatenate(seen), axis=0)) == 4 * 6
    left = [moment]

    def interrupt(progress):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(part, report=interrupt)
    again = trained(part, resume=True)
    assert again.metrics == expected.metrics
    for name in ("metrics.jsonl", "checkpoint.eqx"):
        assert (whole / name).read_bytes() == (part / name).read_bytes()


def test_collected_samples_stay_as_many():
    sizes = iter((6, 5))
    with pytest.raises(ValueError, match="as many"):
        trained(None, lambda model, key: np.zeros((next(sizes), 2)))
