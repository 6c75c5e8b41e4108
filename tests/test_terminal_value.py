"""The infinite-horizon terminal cost: right value, right derivatives, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.flatten_util import ravel_pytree

import diffcontrol as dc
from diffcontrol import systems
from diffcontrol._terminal_value import _riccati, _spectral_radius, terminal_value


class Linear(eqx.Module):
    """`x+ = A x + B u + offset`."""

    A: jax.Array
    B: jax.Array
    offset: jax.Array

    def __call__(self, x, u, t):
        return self.A @ x + self.B @ u + self.offset


def linear_problem(key, n, m):
    """A random problem with cross term and slope, its equilibrium, and F, C, c in numpy."""
    keys = jax.random.split(key, 6)
    A = jnp.eye(n) + 0.4 * jax.random.normal(keys[0], (n, n))
    B = jax.random.normal(keys[1], (n, m))
    root = jax.random.normal(keys[2], (n + m, n + m))
    C, c = root @ root.T + 0.1 * jnp.eye(n + m), jax.random.normal(keys[3], (n + m,))
    x, u = jax.random.normal(keys[4], (n,)), jax.random.normal(keys[5], (m,))
    problem = dc.ControlProblem(
        dynamics=Linear(A, B, x - A @ x - B @ u),
        stage_cost=dc.QuadraticCost(C, c),
        horizon=1,
        control_size=m,
    )
    return problem, x, u


def swinging_pendulum():
    """A pendulum held at an angle by its torque: every derivative is there, also the slope."""
    pendulum, angle = systems.Pendulum(), 0.4
    x = jnp.array([jnp.cos(angle), jnp.sin(angle), 0.0])
    u = jnp.array([-0.5 * 10.0 * jnp.sin(angle)])
    problem = dc.ControlProblem(
        dynamics=pendulum, stage_cost=systems.pendulum.cost(), horizon=5, control_size=1
    )
    return problem, x, u


@pytest.mark.parametrize("n, m, seed", [(1, 1, 0), (2, 1, 1), (4, 2, 2), (6, 6, 3), (12, 3, 4)])
def test_solves_the_riccati_equation(n, m, seed):
    problem, x, u = linear_problem(jax.random.key(seed), n, m)
    A, B, C = (
        np.asarray(v) for v in (problem.dynamics.A, problem.dynamics.B, problem.stage_cost.C)
    )
    expected = scipy.linalg.solve_discrete_are(A, B, C[:n, :n], C[n:, n:], s=C[:n, n:])
    value = terminal_value(problem, x, u)
    np.testing.assert_allclose(value.P, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_array_equal(value.P, value.P.T)
    eigenvalues = np.linalg.eigvals(A + B @ np.asarray(value.gain))
    assert np.abs(eigenvalues).max() < 1


@pytest.mark.parametrize(
    "module, dtype",
    [
        (systems.pendulum, jnp.float32),
        (systems.pendulum, jnp.float64),
        (systems.cartpole, jnp.float32),
        (systems.double_integrator, jnp.float64),
    ],
)
def test_works_at_the_goal_of_every_system(module, dtype):
    problem = module.problem()
    problem = jax.tree.map(lambda leaf: leaf.astype(dtype), problem)
    goal = problem.stage_cost.goal
    value = terminal_value(problem, goal, jnp.zeros(1, dtype))
    assert value.P.dtype == dtype
    F_x = jax.jacfwd(problem.dynamics)(goal, jnp.zeros(1, dtype), 0)
    F_u = jax.jacfwd(problem.dynamics, argnums=1)(goal, jnp.zeros(1, dtype), 0)
    n, weights = goal.shape[0], np.asarray(problem.stage_cost.weights, float)
    arguments = (np.asarray(F_x, float), np.asarray(F_u, float), np.diag(weights[:n]))
    expected = scipy.linalg.solve_discrete_are(*arguments, weights[n:, None])
    tolerance = 2e-3 if dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(value.P, expected, atol=tolerance * np.abs(expected).max())
    np.testing.assert_allclose(value.p, 0.0, atol=1e-6)
    assert float(value(goal)) == 0.0


def test_cheap_controls_in_single_precision():
    keys = jax.random.split(jax.random.key(0), 2)
    A, B = 0.5 * jax.random.normal(keys[0], (8, 8)), jax.random.normal(keys[1], (8, 3))
    C = np.diag(np.r_[np.ones(8), np.full(3, 1e-6)])
    expected = scipy.linalg.solve_discrete_are(np.asarray(A), np.asarray(B), C[:8, :8], C[8:, 8:])
    F = jnp.concatenate([A, B], axis=1)
    P = jax.jit(_riccati)(F.astype(jnp.float32), jnp.asarray(C, jnp.float32))
    np.testing.assert_allclose(P, expected, atol=3e-6 * np.abs(expected).max())


def linear_quadratic(problem, horizon, value=None):
    """The same problem as data, with `value` at its end."""
    dynamics, cost = problem.dynamics, problem.stage_cost
    over = lambda array: jnp.broadcast_to(array, (horizon, *array.shape))
    F = jnp.concatenate([dynamics.A, dynamics.B], axis=1)
    data = [over(array) for array in (cost.C, cost.c, F, dynamics.offset)]
    if value is None:
        return dc.LinearQuadraticProblem(*data)
    return dc.LinearQuadraticProblem(*data, value.P, value.p - value.P @ value.state)


@pytest.mark.parametrize("seed", [0, 1])
def test_is_the_cost_to_go_of_any_horizon(seed):
    """With it at the end, every earlier cost-to-go is the same, and so is its controller."""
    problem, x, u = linear_problem(jax.random.key(seed), 3, 2)
    value = terminal_value(problem, x, u)
    x0 = x + jnp.array([1.0, -2.0, 0.5])
    solution = dc.lqr(linear_quadratic(problem, 40, value), x0)
    for t in (0, 20, 39):
        np.testing.assert_allclose(solution.gains[t], value.gain, atol=1e-9)
        slope = jax.grad(value)(solution.states[t])
        np.testing.assert_allclose(solution.costates[t], slope, rtol=1e-8, atol=1e-8)


def test_is_the_limit_of_long_horizons():
    """Without a slope: the cost-to-go of 300 stages, with nothing at the end."""
    problem, x, u = linear_problem(jax.random.key(5), 3, 1)
    slope = -problem.stage_cost.C @ jnp.concatenate([x, u])
    problem = eqx.tree_at(lambda p: p.stage_cost.c, problem, slope)
    value = terminal_value(problem, x, u)
    x0 = x + 1.0
    cost = dc.lqr(linear_quadratic(problem, 300), x0).cost - 300 * problem.stage_cost(x, u, 0)
    np.testing.assert_allclose(value(x0), cost, rtol=1e-8)


def test_makes_a_short_horizon_swing_as_a_long_one():
    """As `terminal_cost` of `solve`, near the upright pendulum."""
    problem = systems.pendulum.problem(horizon=4)
    value = terminal_value(problem, jnp.array([1.0, 0.0, 0.0]), jnp.zeros(1))
    x0 = jnp.array([jnp.cos(0.02), jnp.sin(0.02), 0.0])
    short = eqx.tree_at(lambda p: p.terminal_cost, problem, value, is_leaf=lambda x: x is None)
    first = dc.solve(short, x0).controls[0]
    np.testing.assert_allclose(first, value.gain @ (x0 - value.state), rtol=1e-2)


def scalar(problem, x, u):
    value = terminal_value(problem, x, u)
    return value(x + jnp.array([0.2, -0.1, 0.3])) + 0.1 * jnp.sum(jnp.sin(value.gain))


def test_gradient_of_every_leaf_and_second_derivative():
    flat, unflatten = ravel_pytree(swinging_pendulum())
    loss = jax.jit(lambda flat: scalar(*unflatten(flat)))
    gradient = jax.jit(jax.grad(loss))
    reverse = gradient(flat)
    # The control's weight is 1e-3, so steps are relative.
    steps = 1e-5 * np.where(flat == 0.0, 1.0, np.abs(flat))
    pairs = [(loss(flat + e), loss(flat - e)) for e in np.diag(steps)]
    differences = np.array([high - low for high, low in pairs]) / (2 * steps)
    np.testing.assert_allclose(reverse, differences, rtol=1e-6, atol=1e-7)
    assert np.all(np.abs(differences) > 1e-3)

    direction = steps / 1e-5 * jax.random.normal(jax.random.key(0), flat.shape)
    # One program for forward mode and, through it, the second derivative.
    along = jax.jit(lambda flat: jax.jvp(jax.value_and_grad(loss), (flat,), (direction,))[1])
    slope, product = along(flat)
    np.testing.assert_allclose(slope, reverse @ direction, rtol=1e-10)
    step = 1e-5
    expected = gradient(flat + step * direction) - gradient(flat - step * direction)
    np.testing.assert_allclose(product, expected / (2 * step), rtol=1e-5, atol=1e-4)


def test_batches():
    problem, x, u = swinging_pendulum()
    masses = jnp.array([0.5, 1.0, 2.0])

    def of_mass(mass):
        return scalar(eqx.tree_at(lambda p: p.dynamics.mass, problem, mass), x, u * mass)

    together, alone = jax.jit(jax.vmap(jax.grad(of_mass))), jax.jit(jax.grad(of_mass))
    np.testing.assert_allclose(together(masses), [alone(m) for m in masses], rtol=1e-10)


def test_reaches_values_that_functions_close_over():
    x, u = jnp.zeros(2), jnp.zeros(1)

    def P_00(stiffness):
        problem = dc.ControlProblem(
            dynamics=lambda x, u, t: x + 0.1 * jnp.array([x[1], u[0] - stiffness * x[0]]),
            stage_cost=lambda x, u, t: x @ x + u @ u,
            horizon=3,
            control_size=1,
        )
        return terminal_value(problem, x, u).P[0, 0]

    derivative = (P_00(1.0 + 1e-5) - P_00(1.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(P_00)(1.0), derivative, rtol=1e-7)


# Two modes, the first unstable or marginal.
def two_modes(first, reached, weight, control_weight=1.0, limit=jnp.inf):
    return dc.ControlProblem(
        dynamics=Linear(
            jnp.diag(jnp.array([first, 0.5])), jnp.array([[reached], [1.0]]), jnp.zeros(2)
        ),
        stage_cost=dc.GoalCost(jnp.array([weight, 1.0, control_weight]), jnp.zeros(2)),
        horizon=2,
        control_size=1,
        control_bounds=dc.Bounds(-limit, limit),
    )


REFUSED = {
    "unreached unstable mode": (two_modes(1.2, 0.0, 1.0), 0.0, 0.0, "not stabilisable"),
    "unreached marginal mode": (two_modes(1.0, 0.0, 1.0), 0.0, 0.0, "not stabilisable"),
    "unseen unstable mode": (two_modes(1.2, 1.0, 0.0), 0.0, 0.0, "does not see"),
    "unseen marginal mode": (two_modes(1.0, 1.0, 0.0), 0.0, 0.0, "does not see"),
    "free control": (two_modes(1.2, 1.0, 1.0, 0.0), 0.0, 0.0, "convex in the control"),
    "no equilibrium": (two_modes(1.2, 1.0, 1.0), 0.1, 0.0, "not an equilibrium"),
    "outside bounds": (two_modes(0.5, 1.0, 1.0, 1.0, 1.0), 4.0, 2.0, "bounds"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    problem, x, u, message = REFUSED[name]
    x, u = jnp.full(2, x), jnp.full(1, u)
    with pytest.raises(ValueError, match=message):
        terminal_value(problem, x, u)
    with pytest.raises(Exception, match=message):
        jax.block_until_ready(eqx.filter_jit(terminal_value)(problem, x, u).P)


def test_accepts_what_is_barely_allowed():
    terminal_value(two_modes(0.9, 0.0, 0.0), jnp.zeros(2), jnp.zeros(1))
    terminal_value(two_modes(1.2, 1e-3, 1e-6), jnp.zeros(2), jnp.zeros(1))


def test_refuses_misuse_in_words():
    problem = two_modes(1.2, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"`state` must have shape \(n,\)"):
        terminal_value(problem, jnp.zeros((2, 2)), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"`control` must have shape \(m,\) = \(1,\)"):
        terminal_value(problem, jnp.zeros(2), jnp.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        terminal_value(problem, jnp.full(2, jnp.nan), jnp.zeros(1))
    with pytest.raises(TypeError, match="ControlProblem"):
        terminal_value(lambda x: x, jnp.zeros(2), jnp.zeros(1))


def test_spectral_radius():
    for seed in range(5):
        A = jax.random.normal(jax.random.key(seed), (5, 5))
        expected = np.abs(np.linalg.eigvals(A)).max()
        np.testing.assert_allclose(_spectral_radius(A), expected, rtol=1e-7)
    nilpotent = jnp.array([[0.0, 1e3], [0.0, 0.0]])
    assert float(_spectral_radius(nilpotent)) == 0.0
