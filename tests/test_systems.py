"""The systems: their equations, energy, starts, and controls that are not clamped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol import systems
from diffcontrol.systems._turn import turned

# --- The equations once more, in plain numbers ---------------------------------------------------


def plain_pendulum(x, u, g, m, l, dt=0.05):
    c, s, w = x
    w = w + dt * (3 * g / (2 * l) * s + 3 * u[0] / (m * l**2))
    th = np.arctan2(s, c) + dt * w
    return np.array([np.cos(th), np.sin(th), w])


def plain_complex_pendulum(x, u, g, m, l, d, b, dt=0.05):
    c, s, w = x
    th = np.arctan2(s, c)
    w = w + dt * (3 * g / (2 * l) * np.sin(th + b) + 3 * u[0] / (m * l**2) - d * th)
    th = th + dt * w
    return np.array([np.cos(th), np.sin(th), w])


def plain_cartpole(x, u, g, m_c, m_p, l, dt=0.05):
    p, v, c, s, w = x
    M = m_c + m_p
    a = (u[0] + m_p * l * w**2 * s) / M
    alpha = (g * s - c * a) / (l * (4 / 3 - m_p * c**2 / M))
    acceleration = a - m_p * l * alpha * c / M
    th = np.arctan2(s, c) + dt * w
    return np.array([p + dt * v, v + dt * acceleration, np.cos(th), np.sin(th), w + dt * alpha])


def plain_cartpole_with_friction(x, u, g, m_c, m_p, l, d_c, f_c, d_p, f_p, dt=0.05):
    # Newton's equations as a system for both accelerations, two steps of Euler.
    for _ in range(2):
        p, v, c, s, w = x
        mass = np.array([[m_c + m_p, m_p * l * c], [m_p * l * c, m_p * l**2 * 4 / 3]])
        slider = u[0] - d_c * v - f_c * np.tanh(v / 0.02) + m_p * l * w**2 * s
        hinge = -d_p * w - f_p * np.tanh(w / 0.02) + m_p * g * l * s
        a, alpha = np.linalg.solve(mass, [slider, hinge])
        th = np.arctan2(s, c) + dt / 2 * w
        x = [p + dt / 2 * v, v + dt / 2 * a, np.cos(th), np.sin(th), w + dt / 2 * alpha]
    return np.array(x)


def plain_double_integrator(x, u, m, dt=0.1):
    return np.array([x[0] + dt * x[1] + dt**2 * u[0] / (2 * m), x[1] + dt * u[0] / m])


EQUATIONS = {
    "pendulum": (systems.Pendulum, (9.0, 1.3, 0.7), plain_pendulum, 3),
    "complex": (systems.ComplexPendulum, (9.0, 1.3, 0.7, 0.8, 0.2), plain_complex_pendulum, 3),
    "cartpole": (systems.Cartpole, (9.0, 1.3, 0.2, 0.7), plain_cartpole, 5),
    "cartpole with friction": (
        systems.CartpoleWithFriction,
        (9.0, 1.3, 0.2, 0.7, 0.9, 0.8, 0.03, 0.05),
        plain_cartpole_with_friction,
        5,
    ),
    "double integrator": (systems.DoubleIntegrator, (1.3,), plain_double_integrator, 2),
}
MODULES = [systems.pendulum, systems.cartpole, systems.double_integrator]


@pytest.mark.parametrize("name", EQUATIONS)
def test_equations(name):
    system, parameters, plain, n = EQUATIONS[name]
    dynamics = system(*parameters)
    random = np.random.default_rng(0)
    for _ in range(10):
        # Also off the circle, and far beyond the bounds of any of the problems.
        x, u = random.normal(size=n), 300 * random.normal(size=1)
        expected = plain(x, u, *parameters)
        seen = dynamics(jnp.asarray(x), jnp.asarray(u), 0)
        np.testing.assert_allclose(seen, expected, rtol=1e-12, atol=1e-12)


def test_defaults_are_those_of_the_papers():
    assert jax.tree.leaves(systems.Pendulum()) == [10.0, 1.0, 1.0]
    assert jax.tree.leaves(systems.ComplexPendulum()) == [10.0, 1.0, 1.0, 1.0, 0.1]
    assert jax.tree.leaves(systems.Cartpole()) == [9.8, 1.0, 0.1, 0.5]
    assert systems.Pendulum().time_step == systems.Cartpole().time_step == 0.05
    cost = systems.pendulum.cost()
    np.testing.assert_allclose(cost.weights, [1, 1, 0.1, 0.001])
    np.testing.assert_array_equal(cost.goal, [1, 0, 0])
    cost = systems.cartpole.cost()
    np.testing.assert_allclose(cost.weights, [0.1, 0.1, 1, 1, 0.1, 0.001])
    np.testing.assert_array_equal(cost.goal, [0, 0, 1, 0, 0])
    for module, limit in ((systems.pendulum, 2.0), (systems.cartpole, 100.0)):
        assert float(module.bounds().upper) == -float(module.bounds().lower) == limit


@pytest.mark.parametrize("name", EQUATIONS)
def test_every_parameter_acts(name):
    system, parameters, _, n = EQUATIONS[name]
    x, u = jnp.linspace(0.3, 0.9, n), jnp.array([0.7])
    loss = lambda dynamics: jnp.sum(dynamics(x, u, 0) * jnp.arange(1.0, n + 1))
    gradient = jax.grad(loss)(system(*parameters))
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == len(parameters)
    for i, leaf in enumerate(leaves):
        step = np.eye(len(parameters))[i] * 1e-6
        high, low = (loss(system(*(np.array(parameters) + s))) for s in (step, -step))
        np.testing.assert_allclose(leaf, (high - low) / 2e-6, rtol=1e-7)
        assert abs(leaf) > 1e-4


# --- Physics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", (1.0, 1e-3, 1e3, 1e-200, 1e200))
@pytest.mark.parametrize("angle", (0.0, 0.7, -40.0))
def test_turning_is_the_arc_tangent_and_its_derivatives(length, angle):
    def plain(x):
        total = jnp.arctan2(x[1], x[0]) + x[2]
        return jnp.array([jnp.cos(total), jnp.sin(total)])

    for direction in (0.3, 2.0, -3.0):
        start = jnp.array([length * np.cos(direction), length * np.sin(direction), angle])
        ours = lambda x: jnp.array(turned(*x))
        np.testing.assert_allclose(ours(start), plain(start), rtol=1e-13, atol=1e-14)
        if 1e-9 < length < 1e9:
            for order in (jax.jacfwd, lambda f: jax.jacfwd(jax.jacrev(f))):
                scale = float(jnp.max(jnp.abs(order(plain)(start))))
                np.testing.assert_allclose(
                    order(ours)(start), order(plain)(start), atol=1e-12 * scale
                )
    np.testing.assert_array_equal(turned(*jnp.zeros(3)), (1.0, 0.0))
    assert np.all(np.isnan(turned(jnp.array(jnp.nan), jnp.array(0.5), jnp.array(angle))))


def roll(dynamics, x, u, steps):
    controls = jnp.full((steps, 1), u)
    return jax.lax.scan(lambda x, u: (dynamics(x, u, 0),) * 2, x, controls)[1]


def pendulum_energy(states, g=10.0, m=1.0, l=1.0):
    return m * l**2 / 6 * states[:, 2] ** 2 + m * g * l / 2 * states[:, 0]


def cartpole_energy(states, g=9.8, m_c=1.0, m_p=0.1, l=0.5):
    _, v, c, _, w = states.T
    # The middle of the pole moves with (v + l w cos th, -l w sin th) and it turns about it.
    along = 0.5 * (m_c + m_p) * v**2 + m_p * l * v * w * c
    return along + 0.5 * m_p * l**2 * (4 / 3) * w**2 + m_p * g * l * c


@pytest.mark.parametrize(
    "system, energy, x0",
    [
        (systems.Pendulum, pendulum_energy, [np.cos(2.0), np.sin(2.0), 0.0]),
        (systems.Cartpole, cartpole_energy, [0.0, 0.3, np.cos(2.0), np.sin(2.0), 0.0]),
    ],
)
def test_energy_is_conserved_to_first_order_in_the_step(system, energy, x0):
    def drift(time_step):
        states = roll(system(time_step=time_step), jnp.array(x0), 0.0, round(1.0 / time_step))
        return np.abs(energy(states) - energy(jnp.array(x0)[None])).max()

    coarse, fine = drift(0.01), drift(0.001)
    assert fine < 0.02
    np.testing.assert_allclose(coarse / fine, 10.0, rtol=0.25)


def test_the_pendulum_depends_on_two_combinations_only():
    x, u = jnp.array([0.6, 0.8, 0.5]), jnp.array([1.3])
    one = systems.Pendulum(10.0, 1.0, 1.0)(x, u, 0)
    same = systems.Pendulum(20.0, 0.25, 2.0)(x, u, 0)
    np.testing.assert_allclose(one, same, rtol=1e-14)


def test_complex_pendulum_without_wind_and_damping_is_the_simple_one():
    x, u = jnp.array([0.6, 0.8, 0.5]), jnp.array([1.3])
    plain = systems.ComplexPendulum(damping=0.0, wind=0.0)(x, u, 0)
    np.testing.assert_allclose(plain, systems.Pendulum()(x, u, 0), rtol=1e-14)


def test_cartpole_without_friction_is_the_simple_one():
    x, u = jnp.array([0.1, 0.4, 0.6, 0.8, 0.5]), jnp.array([1.3])
    none = dict(cart_damping=0.0, cart_friction=0.0, pole_damping=0.0, pole_friction=0.0)
    plain = systems.CartpoleWithFriction(**none, substeps=1)(x, u, 0)
    np.testing.assert_allclose(plain, systems.Cartpole()(x, u, 0), rtol=1e-14)


def test_friction_slows_both_joints():
    x = jnp.array([0.0, 1.0, 0.0, 1.0, 2.0])
    for name, joint in (("cart", 1), ("pole", 4)):
        for kind in ("damping", "friction"):
            none = {f"{a}_{b}": 0.0 for a in ("cart", "pole") for b in ("damping", "friction")}
            free = systems.CartpoleWithFriction(**none)(x, jnp.zeros(1), 0)
            slowed = systems.CartpoleWithFriction(**none | {f"{name}_{kind}": 0.3})
            assert slowed(x, jnp.zeros(1), 0)[joint] < free[joint] - 1e-3


def test_the_complex_pendulum_needs_a_torque_to_stand_upright():
    problem = systems.complex_pendulum.problem(horizon=7)
    assert isinstance(problem.dynamics, systems.ComplexPendulum) and problem.horizon == 7
    goal, torque = problem.stage_cost.goal, -10.0 * np.sin(0.1) / 2
    np.testing.assert_allclose(problem.dynamics(goal, jnp.array([torque]), 0), goal, atol=1e-15)
    assert abs(problem.dynamics(goal, jnp.zeros(1), 0)[2]) > 0.05
    other = lambda x, u, t: x
    assert systems.complex_pendulum.problem(dynamics=other).dynamics is other


# --- Starts, problems, bounds --------------------------------------------------------------------


@pytest.mark.parametrize(
    "module, angle, limits",
    [
        (systems.pendulum, 0, {"angle": np.pi / 2, 2: 1.0}),
        (systems.cartpole, 2, {0: 0.5, 1: 0.5, "angle": np.pi, 4: 1.0}),
        (systems.double_integrator, None, {0: 1.0, 1: 1.0}),
    ],
)
def test_start_distributions(module, angle, limits):
    starts = jax.vmap(module.start)(jax.random.split(jax.random.key(0), 2000))
    for which, limit in limits.items():
        if which == "angle":
            values = np.arctan2(starts[:, angle + 1], starts[:, angle])
            np.testing.assert_allclose(np.hypot(*starts[:, angle : angle + 2].T), 1.0, rtol=1e-6)
        else:
            values = np.asarray(starts[:, which])
        assert np.abs(values).max() <= limit
        # Uniform: mean zero, variance limit^2 / 3, to five standard errors.
        assert abs(values.mean()) < 5 * limit / np.sqrt(3 * 2000)
        np.testing.assert_allclose(values.var(), limit**2 / 3, rtol=0.11)


@pytest.mark.parametrize("module", MODULES)
def test_problems_have_one_shape(module):
    problem = module.problem(horizon=7)
    assert isinstance(problem, dc.ControlProblem) and problem.horizon == 7
    x = module.start(jax.random.key(1))
    u = jnp.zeros(problem.control_size)
    assert problem.dynamics(x, u, 0).shape == x.shape == problem.stage_cost.goal.shape
    assert problem.terminal_cost is None
    # At the goal the cost is zero and the system rests.
    goal = problem.stage_cost.goal
    assert float(problem.stage_cost(goal, u, 0)) == 0.0
    np.testing.assert_allclose(problem.dynamics(goal, u, 0), goal, atol=1e-15)
    # Everything is an array, so plain JAX transformations work on a problem.
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(problem))
    other = lambda x, u, t: x
    assert module.problem(dynamics=other).dynamics is other


@pytest.mark.parametrize("module", MODULES)
def test_the_control_is_not_clamped_but_a_plant_may(module):
    problem = module.problem()
    bounds, dynamics = problem.control_bounds, problem.dynamics
    plant = systems.Clamped(dynamics, bounds)
    x = module.start(jax.random.key(1))
    derivative = lambda f, u: jax.jacfwd(f, argnums=1)(x, jnp.array([u]), 0)
    upper = float(bounds.upper)
    inside, at_bound = (derivative(dynamics, u) for u in (0.99 * upper, upper))
    np.testing.assert_allclose(at_bound, inside, rtol=0.1)
    assert np.abs(derivative(dynamics, 3 * upper)).max() > 0
    # This is why: a clamp halves what it does not delete.
    np.testing.assert_allclose(derivative(plant, upper), at_bound / 2, rtol=1e-12)
    np.testing.assert_array_equal(derivative(plant, 3 * upper), 0.0)
    np.testing.assert_array_equal(
        plant(x, jnp.array([3 * upper]), 0), dynamics(x, jnp.array([upper]), 0)
    )


@pytest.mark.parametrize("name", EQUATIONS)
def test_single_precision_stays_single(name):
    system, _, _, n = EQUATIONS[name]
    x, u = jnp.ones(n, jnp.float32), jnp.ones(1, jnp.float32)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), system())
    assert single(x, u, 0).dtype == jnp.float32


def test_refuses_misuse_in_words():
    with pytest.raises(ValueError, match="`mass` must be one number"):
        systems.Pendulum(mass=jnp.ones(2))
    with pytest.raises(TypeError, match="`mass` must be real"):
        systems.Pendulum(mass=1j)
    with pytest.raises(ValueError, match="`time_step` must be positive"):
        systems.Cartpole(time_step=0.0)
    with pytest.raises(ValueError, match="`substeps` must be at least 1"):
        systems.CartpoleWithFriction(substeps=0)
    with pytest.raises(TypeError, match="`substeps` must be a Python integer"):
        systems.CartpoleWithFriction(substeps=True)
    with pytest.raises(TypeError, match="time_step"):
        systems.Pendulum(time_step=jnp.asarray(0.1))
    with pytest.raises(TypeError, match="bounds"):
        systems.Clamped(systems.Pendulum(), 2.0)
    with pytest.raises(ValueError, match="actuators have no stages"):
        systems.Clamped(systems.Pendulum(), dc.Bounds(-jnp.ones((5, 1)), 1.0))


# --- Drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "draw, state, control",
    [
        (systems.drawing.draw_pendulum, [0.8, 0.6, 1.0], [-1.5]),
        (systems.drawing.draw_pendulum, [0.8, 0.6, 1.0], None),
        (systems.drawing.draw_complex_pendulum, [0.8, 0.6, 1.0], [-1.5]),
        (systems.drawing.draw_cartpole, [3.1, 0.0, 0.8, 0.6, 0.0], [40.0]),
        (systems.drawing.draw_cartpole, [3.1, 0.0, 0.8, 0.6, 0.0], None),
    ],
)
def test_pictures_name_their_axes_units_and_colours(draw, state, control):
    ax = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    draw(ax, jnp.array(state), None if control is None else jnp.array(control))
    assert ax.get_xlabel().endswith("[m]") and ax.get_ylabel().endswith("[m]")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(labels) == 3 and "(+)" in labels[0] and "(\u2212)" in labels[1]
    assert "rad" in ax.get_title()


def test_animation_plays_in_real_time(tmp_path):
    image = pytest.importorskip("PIL.Image")
    states = np.stack([np.cos(np.arange(4)), np.sin(np.arange(4)), np.zeros(4)], axis=1)
    draw = systems.drawing.draw_pendulum
    systems.drawing.animate(states, np.ones((3, 1)), 0.05, draw, tmp_path / "run.gif")
    with image.open(tmp_path / "run.gif") as gif:
        durations = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            durations.append(gif.info["duration"])
    assert durations == [50, 50, 50, 1000]
    with pytest.raises(ValueError, match=r"\(T\+1, n\)"):
        systems.drawing.animate(states, np.ones((4, 1)), 0.05, draw, tmp_path / "bad.gif")
    assert not (tmp_path / "bad.gif").exists()
