"""The cartpole in MuJoCo: our equations of motion, friction, and Gymnasium's contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcontrol import systems

gymnasium = pytest.importorskip("gymnasium")
mujoco = pytest.importorskip("mujoco")

ID = "diffcontrol.environments:MuJoCoCartpole-v0"
NONE = dict(cart_damping=0.0, cart_friction=0.0, pole_damping=0.0, pole_friction=0.0)


@pytest.fixture(scope="module")
def free():
    return gymnasium.make(ID, **NONE).unwrapped


@pytest.fixture(scope="module")
def rough():
    return gymnasium.make(ID).unwrapped


def random_state(random):
    angle = random.uniform(-np.pi, np.pi)
    speeds = random.normal(size=2) * [1.0, 4.0]
    return np.array([random.normal(), speeds[0], np.cos(angle), np.sin(angle), speeds[1]])


def step_from(environment, state, force):
    environment.reset(options={"state": state})
    return environment.step(np.array([force]))[0]


def test_without_friction_accelerations_are_those_of_our_model(free):
    # One step of explicit Euler changes speeds by the accelerations times the step: no integrator
    # comes between the two sets of equations.
    model, random = systems.Cartpole(), np.random.default_rng(0)
    for _ in range(30):
        x, force = random_state(random), random.uniform(-100.0, 100.0)
        free.reset(options={"state": x})
        free._data.ctrl[0] = force
        mujoco.mj_forward(free._model, free._data)
        following = np.asarray(model(jnp.asarray(x), jnp.array([force]), 0))
        ours = (following - x)[[1, 4]] / model.time_step
        np.testing.assert_allclose(free._data.qacc, ours, rtol=1e-9, atol=1e-9)
        assert np.abs(ours).max() > 0.1


def test_without_friction_a_step_is_that_of_our_model_integrated_finely(free):
    # Our model by explicit Euler with n and 2n steps, extrapolated: errors of the order 1/n^2.
    def integrated(x, u, n):
        model = systems.Cartpole(time_step=0.05 / n)
        return jax.lax.fori_loop(0, n, lambda _, x: model(x, u, 0), x)

    both = jax.jit(lambda x, u: 2 * integrated(x, u, 2000) - integrated(x, u, 1000))
    random = np.random.default_rng(1)
    for _ in range(10):
        x, force = random_state(random), random.uniform(-20.0, 20.0)
        fine = both(jnp.asarray(x), jnp.array([force]))
        np.testing.assert_allclose(step_from(free, x, force), fine, rtol=0, atol=2e-6)
        # The model's own single step is another thing: the integrator is part of the mismatch.
    coarse = systems.Cartpole()(jnp.asarray(x), jnp.array([force]), 0)
    assert np.abs(np.asarray(coarse) - fine).max() > 1e-3


def test_with_friction_the_expert_knows_the_plant_better(rough):
    random, errors = np.random.default_rng(2), []
    models = {"simple": systems.Cartpole(), "with friction": systems.CartpoleWithFriction()}
    steps = {name: jax.jit(lambda x, u, m=m: m(x, u, 0)) for name, m in models.items()}
    for _ in range(40):
        x, force = random_state(random), random.uniform(-10.0, 10.0)
        seen = step_from(rough, x, force)
        errors.append([np.abs(np.asarray(f(x, np.array([force]))) - seen) for f in steps.values()])
    simple, known = np.median(errors, axis=0)
    assert (known[[1, 4]] < 0.4 * simple[[1, 4]]).all()


def test_friction_takes_energy_and_holds_a_joint_at_rest(free, rough):
    hanging = {"start": "hanging"}
    np.testing.assert_allclose(rough.reset(options=hanging)[0], [0, 0, -1, 0, 0], atol=1e-15)
    # Less than the dry friction of 1 N, which a soft constraint stands for.
    assert abs(rough.step([0.5])[0][1]) < 0.01
    free.reset(options=hanging)
    assert free.step([0.5])[0][1] > 0.02


def test_actions_are_cut_and_rewards_are_minus_our_cost(rough):
    x, cost = np.array([0.3, -0.2, 0.6, 0.8, 1.0]), systems.cartpole.cost()
    rough.reset(options={"state": x})
    following, reward, terminated, truncated, _ = rough.step(np.array([300.0]))
    np.testing.assert_array_equal(following, step_from(rough, x, 100.0))
    np.testing.assert_allclose(reward, -cost(jnp.asarray(x), jnp.array([100.0]), 0), rtol=1e-12)
    assert not terminated and not truncated


def test_gymnasium_contract_and_seeds():
    from gymnasium.utils.env_checker import check_env

    environment = gymnasium.make(ID)
    assert environment.spec.max_episode_steps == 200
    with pytest.warns(UserWarning):  # observations have no bounds, actions are in newtons
        check_env(environment.unwrapped)
    first, again, other = (environment.reset(seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    np.testing.assert_allclose(np.hypot(first[2], first[3]), 1.0)


def test_refuses_misuse_in_words(rough):
    with pytest.raises(ValueError, match="`pole_friction` must be 0 or positive, got -1"):
        gymnasium.make(ID, pole_friction=-1.0)
    with pytest.raises(ValueError, match=r"must have shape \(5,\)"):
        rough.reset(options={"state": np.zeros(4)})
    with pytest.raises(ValueError, match="`options` may hold"):
        rough.reset(options={"start": "upright"})
