"""Planners: answers, bounds, derivatives against differences with the same noise, edges."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol._planner.sampling import coloured, normalised
from diffcontrol.systems import cartpole, pendulum

KEY = jax.random.key(0)
SMALL = dict(samples=20, iterations=3)
# Name -> planner. The first four are differentiable.
PLANNERS = {
    "DCEM": dc.CEM(**SMALL, elites=5, temperature=1.0),
    "DCEM, kept and coloured": dc.CEM(**SMALL, elites=5, temperature=0.5, keep=3, colour=1.0),
    "MPPI": dc.MPPI(**SMALL),
    "gradient descent": dc.GradientDescent(iterations=10, step_size=0.5),
    "CEM": dc.CEM(**SMALL, elites=5),
    "random shooting": dc.RandomShooting(samples=30),
}
SMOOTH = list(PLANNERS)[:4]
PROBLEM = pendulum.problem(6)
X0 = jnp.array([jnp.cos(0.8), jnp.sin(0.8), 0.3])
UNBOUNDED = dc.ControlProblem(
    dynamics=PROBLEM.dynamics, stage_cost=PROBLEM.stage_cost, horizon=6, control_size=1
)


def key_of(planner):
    return KEY if planner.draws else None


@functools.cache
def solved(name):
    planner = PLANNERS[name]
    return dc.solve(PROBLEM, X0, planner, key=key_of(planner))


@pytest.mark.parametrize("name", PLANNERS)
def test_answers_are_consistent(name):
    solution = solved(name)
    assert solution.result == dc.RESULTS.fixed_iterations
    assert jnp.all(jnp.abs(solution.controls) <= 2.0)
    stats = solution.stats
    assert jnp.all(jnp.abs(stats.best_controls) <= 2.0)
    for controls, cost in (
        (solution.controls, solution.cost),
        (stats.best_controls, stats.best_cost),
    ):
        held = dc.solve(PROBLEM, X0, dc.RandomShooting(1, spread=0.0), guess=controls, key=KEY)
        np.testing.assert_allclose(held.cost, cost, rtol=1e-12)
    assert stats.best_cost <= solution.cost
    assert stats.left_out == 0
    assert solution.gains is None
    assert str(dc.certify(PROBLEM, X0, solution))


@pytest.mark.parametrize("name", ("DCEM", "MPPI", "CEM"))
def test_same_key_same_plan_and_another_another(name):
    again = dc.solve(PROBLEM, X0, PLANNERS[name], key=KEY)
    np.testing.assert_array_equal(again.controls, solved(name).controls)
    other = dc.solve(PROBLEM, X0, PLANNERS[name], key=jax.random.key(1))
    assert jnp.max(jnp.abs(other.controls - again.controls)) > 1e-3


@pytest.mark.parametrize("planner", (dc.CEM(), dc.MPPI()), ids=("CEM", "MPPI"))
def test_defaults_find_the_optimum_whatever_the_unit_of_cost(planner):
    x0s = jax.vmap(pendulum.start)(jax.random.split(jax.random.key(4), 6))
    problem = pendulum.problem(20)
    optimal = jax.vmap(lambda x0: dc.solve(problem, x0, dc.ILQR(), throw=False).cost)(x0s)
    found = {}
    for unit in (1e-6, 1.0, 1e6):
        scaled = eqx.tree_at(
            lambda problem: problem.stage_cost.weights, problem, replace_fn=lambda w: unit * w
        )
        found[unit] = jax.vmap(lambda x0: dc.solve(scaled, x0, planner, key=KEY))(x0s)  # noqa: B023
        for cost in (found[unit].cost, found[unit].stats.best_cost):
            assert jnp.all(cost < 1.1 * unit * optimal), cost / (unit * optimal)
    np.testing.assert_allclose(found[1e-6].controls, found[1e6].controls, atol=1e-3)


# --- Derivatives ---------------------------------------------------------------------------------


def loss(planner, problem, x0, guess):
    solution = dc.solve(problem, x0, planner, guess=guess, key=key_of(planner))
    return solution.cost + jnp.sum(jnp.sin(solution.controls)) + jnp.sum(solution.states[-1])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SMOOTH[1:3] else ()) for name in SMOOTH],
)
def test_derivatives(name):
    """By everything: the problem, bounds, x0, the guess, and the planner's own numbers."""
    arguments = (PLANNERS[name], PROBLEM, X0, 0.1 * jnp.ones((6, 1)))
    floats, rest = eqx.partition(arguments, eqx.is_inexact_array)
    leaves, tree = jax.tree.flatten(floats)
    leaves = [leaf.astype(float) for leaf in leaves]  # no weak types: one compilation for all
    of = jax.jit(lambda leaves: loss(*eqx.combine(jax.tree.unflatten(tree, leaves), rest)))
    gradient = jax.jit(jax.grad(of))(leaves)
    push = jax.jit(lambda leaves, along: jax.jvp(of, (leaves,), (along,))[1])
    rng = np.random.default_rng(0)
    for k, leaf in enumerate(leaves):
        direction = [jnp.zeros_like(other) for other in leaves]
        direction[k] = jnp.array(rng.normal(size=leaf.shape))
        moved = lambda h, d=direction: of([a + h * b for a, b in zip(leaves, d, strict=True)])
        central = lambda h: (moved(h) - moved(-h)) / (2 * h)
        # Planning can be chaotic: small steps, extrapolated.
        difference = (4 * central(1e-6) - central(2e-6)) / 3
        tangent = push(leaves, direction)
        pulled = jnp.vdot(gradient[k], direction[k])
        np.testing.assert_allclose(pulled, tangent, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(tangent, difference, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize(
    "planner",
    (PLANNERS["DCEM"], pytest.param(dc.ILQR(max_iterations=3), marks=pytest.mark.slow)),
    ids=("planner", "solver"),
)
def test_checkpointing_changes_nothing_but_memory(planner):
    key = KEY if isinstance(planner, dc.CEM) else None
    of = lambda x0, adjoint: (
        dc.solve(PROBLEM, x0, planner, key=key, adjoint=adjoint, throw=False).cost
    )
    usual = jax.grad(of)(X0, dc.UnrolledAdjoint())
    again = jax.grad(of)(X0, dc.UnrolledAdjoint(checkpoint=True))
    np.testing.assert_allclose(usual, again, rtol=1e-12)


@pytest.mark.parametrize("n", (1, 20))
def test_any_number_of_states_some_of_which_stand_still(n):
    """Few entries are kept apart inside; one that does not move has no tangent."""

    def exactly(a):
        problem = dc.ControlProblem(
            dynamics=lambda x, u, t: jnp.tanh(a * x + u).at[n // 2].set(1.0),
            stage_cost=lambda x, u, t: jnp.sum(x**2) + jnp.sum(u**2),
            horizon=3,
            control_size=1,
            control_bounds=dc.Bounds(-1.0, 1.0),
        )
        planner = dc.CEM(samples=10, elites=4, iterations=2, temperature=1.0)
        return dc.solve(problem, jnp.ones(n), planner, key=KEY).cost

    of = jax.jit(exactly)
    central = lambda h: (of(1.0 + h) - of(1.0 - h)) / (2 * h)
    difference = (4 * central(1e-5) - central(2e-5)) / 3
    np.testing.assert_allclose(jax.jit(jax.grad(exactly))(1.0), difference, rtol=1e-6)


@pytest.mark.parametrize("name", ("CEM", "random shooting"))
def test_hard_choices_refuse_a_derivative_and_hold_the_controls(name):
    planner = PLANNERS[name]
    of = lambda read: lambda problem: read(dc.solve(problem, X0, planner, key=KEY))
    with pytest.raises(TypeError, match="temperature"):
        eqx.filter_grad(of(lambda solution: jnp.sum(solution.controls)))(PROBLEM)
    with pytest.raises(TypeError, match="temperature"):
        jax.grad(lambda x0: jnp.sum(dc.solve(PROBLEM, x0, planner, key=KEY).controls))(X0)
    # The envelope: the cost of the same controls.
    controls = solved(name).controls
    held = dc.RandomShooting(1, spread=0.0)
    gradient = eqx.filter_grad(of(lambda solution: solution.cost))(PROBLEM)
    same = eqx.filter_grad(
        lambda problem: dc.solve(problem, X0, held, guess=controls, key=KEY).cost
    )(PROBLEM)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    by_start = jax.grad(lambda x0: dc.solve(PROBLEM, x0, planner, key=KEY).cost)(X0)
    same = jax.grad(lambda x0: dc.solve(PROBLEM, x0, held, guess=controls, key=KEY).cost)(X0)
    np.testing.assert_allclose(by_start, same, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("DCEM", "MPPI"))
def test_second_derivatives_are_symmetric_and_those_of_the_gradient(name):
    of = jax.jit(lambda x0: dc.solve(PROBLEM, x0, PLANNERS[name], key=KEY).cost)
    hessian, gradient = jax.hessian(of)(X0), jax.jit(jax.grad(of))
    central = lambda e, h: (gradient(X0 + h * e) - gradient(X0 - h * e)) / (2 * h)
    differences = jnp.stack([(4 * central(e, 1e-5) - central(e, 2e-5)) / 3 for e in jnp.eye(3)])
    size = float(jnp.max(jnp.abs(hessian)))
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-9 * size)
    np.testing.assert_allclose(hessian, differences, atol=1e-5 * size)


@pytest.mark.parametrize(
    "name",
    (
        "MPPI",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("DCEM", "gradient descent", "CEM", "random shooting")
        ),
    ),
)
def test_values_that_are_closed_over_have_derivatives(name):
    def cost(gain):
        problem = dc.ControlProblem(
            dynamics=lambda x, u, t: x + gain * u,
            stage_cost=lambda x, u, t: jnp.sum((x - gain) ** 2) + 0.1 * jnp.sum(u**2),
            terminal_cost=lambda x: gain * jnp.sum(x**2),
            horizon=3,
            control_size=1,
            control_bounds=dc.Bounds(-1.0, 1.0),
        )
        return dc.solve(problem, jnp.ones(1), PLANNERS[name], key=key_of(PLANNERS[name])).cost

    central = lambda h: (cost(0.5 + h) - cost(0.5 - h)) / (2 * h)
    difference = (4 * central(1e-5) - central(2e-5)) / 3
    gradient, tangent = jax.grad(cost)(0.5), jax.jvp(cost, (0.5,), (1.0,))[1]
    np.testing.assert_allclose(gradient, difference, rtol=1e-7)
    np.testing.assert_allclose(gradient, tangent, rtol=1e-12)


def test_stats_refuse_a_derivative():
    with pytest.raises(TypeError, match="no derivative"):
        jax.grad(lambda x0: dc.solve(PROBLEM, x0, PLANNERS["DCEM"], key=KEY).stats.best_cost)(X0)


# --- Samples that fail ---------------------------------------------------------------------------


class Cliff(eqx.Module):
    """An integrator whose next state is NaN where the control is above a limit."""

    gain: jax.Array
    limit: jax.Array

    def __call__(self, x, u, t):
        return x + self.gain * jnp.sqrt(self.limit - u) * u


def cliff(limit):
    return dc.ControlProblem(
        dynamics=Cliff(jnp.array(0.3), jnp.array(limit)),
        stage_cost=lambda x, u, t: jnp.sum((x - 1.0) ** 2) + 0.01 * jnp.sum(u**2),
        horizon=6,
        control_size=1,
        control_bounds=dc.Bounds(-2.0, 2.0),
    )


@pytest.mark.parametrize(
    "name", (pytest.param("DCEM, kept and coloured", marks=pytest.mark.slow), "MPPI", "CEM")
)
def test_samples_that_are_not_finite_count_for_nothing(name):
    planner = PLANNERS[name]
    of = lambda problem: dc.solve(problem, jnp.zeros(1), planner, key=KEY)
    problem = cliff(1.0)
    solution = of(problem)
    assert 0.1 < solution.stats.left_out < 1.0
    assert jnp.isfinite(solution.cost)
    assert jnp.all(jnp.isfinite(solution.controls))
    gradient = eqx.filter_grad(lambda problem: of(problem).cost)(problem)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))
    if planner.refuses is None:
        moved = lambda h: of(eqx.tree_at(lambda p: p.dynamics.gain, problem, 0.3 + h)).cost
        central = lambda h: (moved(h) - moved(-h)) / (2 * h)
        np.testing.assert_allclose(
            gradient.dynamics.gain, (4 * central(1e-6) - central(2e-6)) / 3, rtol=1e-5
        )


@pytest.mark.parametrize(
    "planner",
    (
        pytest.param(
            dc.CEM(samples=2, elites=2, iterations=3, temperature=1.0), marks=pytest.mark.slow
        ),
        dc.MPPI(samples=2, iterations=3),
    ),
    ids=("DCEM", "MPPI"),
)
def test_an_iteration_without_a_finite_sample_does_not_spoil_the_gradient(planner):
    problem = dc.ControlProblem(
        dynamics=Cliff(jnp.array(0.3), jnp.array(-0.5)),
        stage_cost=lambda x, u, t: jnp.sum((x - 1.0) ** 2) + 0.01 * jnp.sum(u**2),
        terminal_cost=lambda x: jnp.sum((x - 1.0) ** 2),
        horizon=2,
        control_size=1,
        control_bounds=dc.Bounds(-2.0, 2.0),
    )

    def run(gain):
        moved = eqx.tree_at(lambda p: p.dynamics.gain, problem, gain)
        return dc.solve(moved, jnp.zeros(1), planner, guess=-jnp.ones((2, 1)), key=KEY, throw=False)

    assert run(0.3).stats.left_out > 0.5
    cost = jax.jit(lambda gain: run(gain).cost)
    central = lambda h: (cost(0.3 + h) - cost(0.3 - h)) / (2 * h)
    difference = (4 * central(1e-6) - central(2e-6)) / 3
    np.testing.assert_allclose(jax.grad(cost)(0.3), difference, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(cost, (0.3,), (1.0,))[1], difference, rtol=1e-6)


@pytest.mark.parametrize("where", ("last", "between"))
def test_a_plan_through_a_state_that_is_not_finite_is_no_success(where):
    """Though its cost is finite: it does not look at that state, or a bounded function does."""
    through = {
        "last": lambda x, u, t: x + jnp.sqrt(jnp.abs(u) - 0.8),
        "between": lambda x, u, t: jnp.where(t == 0, jnp.exp(800.0 * u), 0.5 * jnp.tanh(x)),
    }
    problem = dc.ControlProblem(
        dynamics=through[where],
        stage_cost=lambda x, u, t: jnp.sum(jnp.tanh(x) ** 2) + jnp.sum(u**2),
        horizon=1 if where == "last" else 2,
        control_size=1,
        control_bounds=dc.Bounds(-1.0, 1.0),
    )
    planner = dc.CEM(samples=5, elites=5, iterations=1, spread=0.0)
    guess = jnp.full((problem.horizon, 1), 0.0 if where == "last" else 0.95)
    solution = dc.solve(problem, jnp.ones(1), planner, guess=guess, key=KEY, throw=False)
    assert jnp.isfinite(solution.cost)
    assert solution.result == dc.RESULTS.non_finite
    assert solution.stats.left_out == 1


@pytest.mark.parametrize(
    "of",
    (
        lambda value: dc.MPPI(**SMALL, temperature=value),
        lambda value: dc.MPPI(**SMALL, shrink=value),
        lambda value: dc.GradientDescent(iterations=3, step_size=value),
        lambda value: dc.MPPI(**SMALL, spread=value - 1.0),
        pytest.param(
            lambda value: dc.CEM(**SMALL, elites=5, temperature=value), marks=pytest.mark.slow
        ),
    ),
    ids=("MPPI", "shrink", "step size", "spread", "CEM"),
)
def test_settings_that_turn_out_to_be_nonsense_are_no_success(of):
    @eqx.filter_jit
    def run(value):
        planner = of(value)
        return dc.solve(PROBLEM, X0, planner, key=key_of(planner), throw=False).result

    for value in (-1.0, 0.0, jnp.nan):
        assert run(jnp.asarray(value)) == dc.RESULTS.invalid_input
    assert run(jnp.asarray(1.5)) == dc.RESULTS.fixed_iterations


@pytest.mark.parametrize("name", ("CEM", "random shooting"))
def test_hard_choices_refuse_a_derivative_by_their_own_numbers(name):
    spread = lambda planner: planner.spread
    planner = eqx.tree_at(spread, PLANNERS[name], jnp.array(0.5), is_leaf=lambda leaf: leaf is None)
    of = lambda read: lambda planner: read(dc.solve(PROBLEM, X0, planner, key=KEY))
    with pytest.raises(TypeError, match="temperature"):
        eqx.filter_grad(of(lambda solution: jnp.sum(solution.controls)))(planner)
    with pytest.raises(TypeError, match="no derivative"):
        eqx.filter_grad(of(lambda solution: solution.stats.best_cost))(planner)


@pytest.mark.parametrize("unit", (1e-30, 1e-20, 1e20, 1e35))
def test_costs_of_any_size_in_single_precision(unit):
    costs = jnp.array([1.0, 2.0, 4.0, jnp.inf], jnp.float32)
    usual = normalised(costs)
    np.testing.assert_allclose(normalised(jnp.float32(unit) * costs), usual, rtol=1e-4)


@pytest.mark.parametrize("name", ("DCEM", "MPPI", "CEM", "random shooting"))
def test_nothing_finite_keeps_the_guess(name):
    solution = dc.solve(cliff(-3.0), jnp.zeros(1), PLANNERS[name], key=KEY, throw=False)
    assert solution.result == dc.RESULTS.non_finite
    assert solution.stats.left_out == 1
    np.testing.assert_array_equal(solution.controls, np.zeros((6, 1)))
    with pytest.raises(Exception, match="NaN or infinite"):
        dc.solve(cliff(-3.0), jnp.zeros(1), PLANNERS[name], key=KEY)


def test_bounds_that_turn_out_infinite_are_no_success():
    def run(bound):
        problem = eqx.tree_at(lambda p: p.control_bounds.upper, PROBLEM, bound)
        return dc.solve(problem, X0, PLANNERS["CEM"], key=KEY, throw=False)

    solution = jax.jit(run)(jnp.inf)
    assert solution.result == dc.RESULTS.non_finite
    assert solution.stats.left_out == 1


@pytest.mark.parametrize(
    "planner",
    (
        dc.CEM(samples=5, elites=1, iterations=3),
        dc.CEM(samples=1, elites=1, iterations=2, temperature=1.0),
        dc.MPPI(samples=4, iterations=2, spread=0.0),
        *(
            pytest.param(planner, marks=pytest.mark.slow)
            for planner in (
                dc.CEM(samples=5, elites=1, iterations=3, temperature=0.1),
                dc.CEM(samples=6, elites=6, iterations=2, temperature=1.0),
                dc.CEM(samples=6, elites=2, iterations=2, temperature=1.0, spread=0.0),
                dc.MPPI(samples=1, iterations=2),
                dc.MPPI(samples=4, iterations=2, temperature=1e-12),
            )
        ),
    ),
    ids=str,
)
def test_edges(planner):
    of = lambda x0: dc.solve(PROBLEM, x0, planner, key=KEY, guess=1.5 * jnp.ones((6, 1)))
    solution = of(X0)
    assert solution.result == dc.RESULTS.fixed_iterations
    assert jnp.all(jnp.abs(solution.controls) <= 2.0)
    assert jnp.all(jnp.isfinite(jax.grad(lambda x0: of(x0).cost)(X0)))
    if planner.spread is not None:
        np.testing.assert_allclose(solution.controls, 1.5 * np.ones((6, 1)), rtol=1e-14)


def test_where_all_samples_are_elites_the_mean_is_theirs():
    everyone = dc.CEM(samples=50, elites=50, iterations=1, temperature=1.0)
    warm = dc.MPPI(samples=50, iterations=1, temperature=1e12)
    a = dc.solve(PROBLEM, X0, everyone, key=KEY).controls
    b = dc.solve(PROBLEM, X0, warm, key=KEY).controls
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_towards_temperature_zero_it_is_the_hard_method():
    soft = dc.CEM(**SMALL, elites=5, temperature=1e-9)
    np.testing.assert_allclose(
        dc.solve(PROBLEM, X0, soft, key=KEY).controls, solved("CEM").controls, atol=1e-9
    )


# --- Bounds, batches, precision ------------------------------------------------------------------


def test_bounds_by_control_and_stage():
    lower = jnp.stack([-jnp.ones(5), -0.1 * jnp.arange(1, 6)], axis=1)
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x + 0.1 * u,
        stage_cost=lambda x, u, t: jnp.sum((x + 3.0) ** 2),
        horizon=5,
        control_size=2,
        control_bounds=dc.Bounds(lower, jnp.array([1.0, 0.0])),
    )
    for planner in (dc.CEM(), dc.CEM(temperature=1.0), dc.MPPI(), dc.RandomShooting()):
        solution = dc.solve(problem, jnp.zeros(2), planner, key=KEY)
        for controls in (solution.controls, solution.stats.best_controls):
            assert jnp.all((controls >= lower) & (controls <= jnp.array([1.0, 0.0])))


@pytest.mark.parametrize(
    "name", ("DCEM", *(pytest.param(name, marks=pytest.mark.slow) for name in ("MPPI", "CEM")))
)
def test_a_batch_is_its_members_and_single_precision_works(name):
    x0s = jax.vmap(pendulum.start)(jax.random.split(KEY, 3))
    keys = jax.random.split(jax.random.key(7), 3)
    planner = PLANNERS[name]
    run = lambda x0, key: dc.solve(PROBLEM, x0, planner, key=key).controls
    together = jax.vmap(run)(x0s, keys)
    for k in range(3):
        np.testing.assert_allclose(together[k], run(x0s[k], keys[k]), atol=1e-10)
    single = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf,
        (PROBLEM, X0, planner),
    )
    solution = dc.solve(*single, key=KEY)
    assert solution.controls.dtype == jnp.float32
    assert jnp.isfinite(solution.cost)


def test_one_trace_for_other_numbers():
    ticks = itertools.count()

    def dynamics(x, u, t):
        next(ticks)
        return x + 0.1 * u

    problem = dc.ControlProblem(
        dynamics=dynamics,
        stage_cost=lambda x, u, t: jnp.sum(x**2) + jnp.sum(u**2),
        horizon=4,
        control_size=1,
        control_bounds=dc.Bounds(-1.0, 1.0),
    )
    of = lambda temperature: dc.CEM(**SMALL, elites=3, temperature=temperature)
    dc.solve(problem, jnp.ones(1), of(1.0), key=KEY)
    first = next(ticks)
    dc.solve(problem, jnp.zeros(1), of(0.3), key=jax.random.key(5))
    assert next(ticks) == first + 1, "only values were changed, and the problem was traced again"


@pytest.mark.parametrize("colour", (0.0, 1.0, 2.0))
def test_coloured_noise_has_unit_variance_and_its_spectrum(colour):
    white = jax.random.normal(KEY, (20_000, 16, 1))
    noise = coloured(white, colour)
    np.testing.assert_allclose(jnp.var(noise, axis=0), np.ones((16, 1)), atol=0.05)
    power = jnp.mean(jnp.abs(jnp.fft.rfft(noise[..., 0], axis=1)) ** 2, axis=0)
    np.testing.assert_allclose(power[1] / power[4], 4.0**colour, rtol=0.06)


# --- Gradient descent ----------------------------------------------------------------------------


def test_gradient_descent_is_projected_descent():
    def cost(controls):
        x, total = X0, 0.0
        for t in range(6):
            total = total + PROBLEM.stage_cost(x, controls[t], t)
            x = PROBLEM.dynamics(x, controls[t], t)
        return total

    sizes = jnp.linspace(0.1, 1.0, 10)
    controls = jnp.zeros((6, 1))
    for size in sizes:
        controls = jnp.clip(controls - size * jax.grad(cost)(controls), -2.0, 2.0)
    found = dc.solve(PROBLEM, X0, dc.GradientDescent(iterations=10, step_size=sizes))
    np.testing.assert_allclose(found.controls, controls, atol=1e-12)


# --- Closed loop ---------------------------------------------------------------------------------


def test_closed_loop_keeps_and_draws_anew():
    planner = dc.CEM(samples=40, elites=6, iterations=3, keep=4)
    policy = dc.MPC(PROBLEM, planner, key=KEY)
    memory = policy.init(X0)
    assert memory.kept.shape == (4, 6, 1)
    u, after = policy(X0, memory)
    assert u.shape == (1,)
    assert bool(after.known)
    plan = policy.plan(X0, memory)
    np.testing.assert_array_equal(after.controls[:-1], plan.controls[1:])
    # Another time, other random numbers.
    later = eqx.tree_at(lambda memory: memory.time, memory, memory.time + 1)
    assert jnp.max(jnp.abs(policy.plan(X0, later).controls - plan.controls)) > 1e-6
    # The kept samples take part: a plan that starts from them is no worse than the best of them.
    best = dc.solve(PROBLEM, X0, dc.ILQR())
    known = eqx.tree_at(
        lambda memory: (memory.kept, memory.known),
        memory,
        (jnp.stack([best.controls] * 4), jnp.asarray(True)),
    )
    assert policy.plan(X0, known).stats.best_cost <= best.cost * (1 + 1e-9)


@pytest.mark.parametrize(
    "planner",
    (dc.CEM(**SMALL, elites=5, temperature=1.0, keep=3), PLANNERS["gradient descent"]),
    ids=("DCEM", "gradient descent"),
)
def test_the_derivative_of_a_closed_loop_reaches_back_through_its_plans(planner):
    """A plan depends on the last one, so what is remembered has a derivative."""

    def exactly(weight):
        problem = eqx.tree_at(lambda p: p.stage_cost.weights, PROBLEM, replace_fn=weight.__mul__)
        problem = eqx.tree_at(lambda p: p.dynamics.gravity, problem, 10.0 * weight)
        policy = dc.MPC(problem, planner, key=key_of(planner), guess=weight * jnp.ones((6, 1)))
        ran = dc.simulate(policy, PROBLEM.dynamics, X0, 4)
        return jnp.sum(ran.controls * jnp.arange(4.0)[:, None])

    at, of = jnp.asarray(1.0), jax.jit(exactly)
    central = lambda h: (of(at + h) - of(at - h)) / (2 * h)
    difference = (4 * central(1e-6) - central(2e-6)) / 3
    assert abs(difference) > 1e-2
    np.testing.assert_allclose(jax.jit(jax.jacfwd(exactly))(at), difference, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.grad(exactly))(at), difference, rtol=1e-6)


def test_swings_up_in_closed_loop():
    problem = pendulum.problem(30)
    policy = dc.MPC(problem, dc.CEM(samples=100, elites=10, iterations=4, keep=5), key=KEY)
    hanging = jnp.array([-1.0, 0.0, 0.0])
    run = dc.simulate(policy, problem.dynamics, hanging, 80)
    assert jnp.all(run.states[-5:, 0] > 0.95)
    assert jnp.all(jnp.abs(run.controls) <= 2.0)


# --- Misuse --------------------------------------------------------------------------------------


UNBOUNDED = dc.ControlProblem(
    dynamics=lambda x, u, t: x + u,
    stage_cost=lambda x, u, t: jnp.sum(x**2),
    horizon=3,
    control_size=1,
)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    (
        (lambda: dc.solve(PROBLEM, X0, dc.CEM()), ValueError, "give `key`"),
        (lambda: dc.solve(PROBLEM, X0, dc.MPPI()), ValueError, "give `key`"),
        (lambda: dc.solve(PROBLEM, X0, dc.GradientDescent(), key=KEY), ValueError, "not sample"),
        (
            lambda: dc.solve(PROBLEM, X0, dc.CEM(), key=KEY, adjoint=dc.ImplicitAdjoint()),
            ValueError,
            "UnrolledAdjoint",
        ),
        (lambda: dc.solve(UNBOUNDED, jnp.ones(1), dc.CEM(), key=KEY), ValueError, "spread"),
        (
            lambda: dc.solve(PROBLEM, X0, dc.CEM(spread=jnp.ones(3)), key=KEY),
            ValueError,
            "`spread` must have shape",
        ),
        (lambda: dc.solve(PROBLEM, X0, dc.MPPI(spread=-1.0), key=KEY), ValueError, "negative"),
        (lambda: dc.solve(PROBLEM, X0, dc.MPPI(spread=jnp.inf), key=KEY), ValueError, "finite"),
        (
            lambda: dc.simulate(dc.MPC(UNBOUNDED, dc.CEM(), key=KEY), PROBLEM.dynamics, X0, 2),
            ValueError,
            "without finite control bounds",
        ),
        (lambda: dc.CEM(samples=5, elites=6), ValueError, "cannot be chosen"),
        (lambda: dc.CEM(temperature=0.0), ValueError, "must be positive"),
        (lambda: dc.CEM(iterations=0), ValueError, "at least 1"),
        (lambda: dc.CEM(samples=2.5), TypeError, "samples"),
        (lambda: dc.CEM(keep=-1), ValueError, "keep"),
        (lambda: dc.CEM(keep=2.5), TypeError, "keep"),
        (lambda: dc.CEM(samples=5, elites=2, keep=6), ValueError, "keep"),
        (lambda: dc.MPPI(temperature=-1.0), ValueError, "must be positive"),
        (lambda: dc.MPPI(temperature=[0.1, 0.2]), ValueError, "one number"),
        (lambda: dc.CEM(colour="pink"), TypeError, "colour"),
        (lambda: dc.MPPI(colour=float("nan")), ValueError, "colour"),
        (lambda: dc.solve(PROBLEM, X0, dc.CEM(), key=jnp.ones(2)), TypeError, "`key` must be"),
        (
            lambda: dc.solve(PROBLEM, X0, dc.CEM(), key=jax.random.split(KEY)),
            ValueError,
            "one random key",
        ),
        (lambda: dc.MPC(None, dc.CEM(), key=KEY).init(X0), TypeError, "ControlProblem"),
        (lambda: dc.GradientDescent(iterations=3, step_size=[1.0, 2.0]), ValueError, "step_size"),
        (lambda: dc.value(PROBLEM, X0, dc.CEM()), TypeError, "solver"),
        (lambda: dc.MPC(PROBLEM, dc.CEM()).init(X0), ValueError, "give `key`"),
        (lambda: dc.MPC(PROBLEM, key=KEY).init(X0), ValueError, "does not sample"),
        (
            lambda: dc.MPC(PROBLEM, dc.CEM(), key=KEY)(X0, dc.MPC(PROBLEM).init(X0)),
            ValueError,
            "made for a solver",
        ),
        (
            lambda: dc.MPC(PROBLEM)(X0, dc.MPC(PROBLEM, dc.CEM(), key=KEY).init(X0)),
            ValueError,
            "made for a planner",
        ),
        (
            lambda: dc.MPC(PROBLEM, dc.CEM(keep=3), key=KEY)(
                X0, dc.MPC(PROBLEM, dc.CEM(keep=2), key=KEY).init(X0)
            ),
            ValueError,
            "holds 2 samples",
        ),
        (
            lambda: dc.MPC(PROBLEM, dc.CEM())(X0, dc.MPC(PROBLEM, dc.CEM(), key=KEY).init(X0)),
            ValueError,
            "give `key`",
        ),
        (
            lambda: dc.MPC(PROBLEM, dc.CEM(), key=KEY, starts=jnp.zeros((1, 6, 1))),
            ValueError,
            "`starts` are for solvers",
        ),
    ),
)
def test_misuse(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_a_cartpole_plan():
    problem = cartpole.problem(20)
    x0 = cartpole.start(jax.random.key(3))
    optimal = dc.solve(problem, x0, dc.DDP(max_iterations=500), throw=False)
    found = dc.solve(problem, x0, dc.CEM(iterations=30), key=KEY)
    assert found.cost < 1.1 * optimal.cost


# --- A learned subspace --------------------------------------------------------------------------


DECODER = dc.ControlDecoder(2, 6, 1, width=8, depth=1, key=jax.random.key(3))


def test_a_latent_problem_is_the_problem_seen_through_its_decoder():
    latent = dc.LatentProblem(PROBLEM, DECODER, 2)
    solution = dc.solve(latent, X0, PLANNERS["DCEM"], key=KEY)
    controls = latent.decode(solution.controls[0])
    assert controls.shape == (6, 1)
    assert jnp.all(jnp.abs(controls) < 2.0)
    held = dc.solve(PROBLEM, X0, dc.RandomShooting(1, spread=0.0), guess=controls, key=KEY)
    np.testing.assert_allclose(solution.cost, held.cost, rtol=1e-12)
    # Solvers know it, too: in a subspace that holds the optimum they find it.
    everything = dc.LatentProblem(PROBLEM, lambda z: z[:, None], 6, dc.Bounds(-9.0, 9.0))
    optimal = dc.solve(PROBLEM, X0)
    np.testing.assert_allclose(dc.solve(everything, X0, throw=False).cost, optimal.cost, rtol=1e-3)


def test_a_latent_problem_keeps_what_belongs_to_stages_and_to_times():
    """A reference with a row a stage, and a cost that looks at the absolute time."""
    goal = dc.GoalCost(jnp.array([1.0, 0.1]), jnp.arange(3.0)[:, None])
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x + u + 0.1 * t,
        stage_cost=goal + (lambda x, u, t: t * jnp.sum(x)),
        terminal_cost=lambda x: 2.0 * jnp.sum(x**2),
        horizon=3,
        control_size=1,
    )
    latent = dc.LatentProblem(problem, lambda z: z[:, None], 3, dc.Bounds(-5.0, 5.0))
    for x0, z in ((jnp.ones(1), jnp.array([0.3, -0.2, 0.1])), (jnp.zeros(1), jnp.ones(3))):
        held = dc.RandomShooting(1, spread=0.0)
        cost = dc.solve(problem, x0, held, guess=z[:, None], key=KEY).cost
        same = dc.solve(latent, x0, held, guess=z[None], key=KEY).cost
        np.testing.assert_allclose(same, cost, rtol=1e-14)
    # Its time moves on with a receding horizon; its stages do not.
    moved = latent.stage_cost(jnp.ones(1), z, 4)
    x, total = 1.0, 0.0
    for k in range(3):
        total += 0.5 * ((x - k) ** 2 + 0.1 * z[k] ** 2) + (4 + k) * x
        x = x + z[k] + 0.1 * (4 + k)
    np.testing.assert_allclose(moved, total + 2.0 * x**2, rtol=1e-14)


@pytest.mark.slow
def test_latents_that_lead_to_infinity_count_for_nothing():
    latent = dc.LatentProblem(cliff(1.0), lambda z: 2.0 * z[:, None], 6)
    planner = PLANNERS["DCEM"]
    cost = lambda gain: (
        dc.solve(
            eqx.tree_at(lambda p: p.stage_cost.problem.dynamics.gain, latent, gain),
            jnp.zeros(1),
            planner,
            key=KEY,
        ).cost
    )
    assert 0.1 < dc.solve(latent, jnp.zeros(1), planner, key=KEY).stats.left_out < 1.0
    central = lambda h: (cost(0.3 + h) - cost(0.3 - h)) / (2 * h)
    difference = (4 * central(1e-6) - central(2e-6)) / 3
    np.testing.assert_allclose(jax.grad(cost)(0.3), difference, rtol=1e-5)


def test_a_decoder_learns_through_the_search():
    def cost(decoder):
        return dc.solve(dc.LatentProblem(PROBLEM, decoder, 2), X0, PLANNERS["DCEM"], key=KEY).cost

    floats, rest = eqx.partition(DECODER, eqx.is_inexact_array)
    of = jax.jit(lambda floats: cost(eqx.combine(floats, rest)))
    gradient = jax.jit(jax.grad(of))(floats)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: jnp.array(rng.normal(size=leaf.shape)), floats)
    moved = lambda h: of(jax.tree.map(lambda a, b: a + h * b, floats, direction))
    central = lambda h: (moved(h) - moved(-h)) / (2 * h)
    pulled = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(pulled, (4 * central(1e-6) - central(2e-6)) / 3, rtol=1e-5)
    # Part of it goes through the search: it is not the derivative at the latent held constant.
    z = dc.solve(dc.LatentProblem(PROBLEM, DECODER, 2), X0, PLANNERS["DCEM"], key=KEY).controls[0]
    direct = eqx.filter_grad(lambda d: dc.LatentProblem(PROBLEM, d, 2).stage_cost(X0, z, 0))(
        DECODER
    )
    assert jnp.max(jnp.abs(direct.weights[0] - gradient.weights[0])) > 1e-6


def test_a_receding_horizon_decodes_what_it_applies():
    latent = dc.LatentProblem(PROBLEM, DECODER, 2)
    policy = dc.MPC(latent, PLANNERS["DCEM"], key=KEY)
    memory = policy.init(X0)
    u, _ = policy(X0, memory)
    planned = latent.decode(policy.plan(X0, memory).controls[0])[0]
    np.testing.assert_allclose(u, planned, rtol=1e-12)


def test_a_guess_on_a_bound_has_its_whole_derivative():
    planner = dc.GradientDescent(iterations=1, step_size=1e-3)
    of = lambda guess: jnp.sum(dc.solve(PROBLEM, X0, planner, guess=guess).controls)
    on = 2.0 * jnp.ones((6, 1))  # the bound, which the step leaves inwards
    inside = jax.grad(of)(on - 1e-9)
    assert jnp.all(inside > 0.9)
    np.testing.assert_allclose(jax.grad(of)(on), inside, rtol=1e-6)


def test_decoded_controls_keep_one_sided_bounds():
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x + u,
        stage_cost=lambda x, u, t: jnp.sum(x**2),
        horizon=2,
        control_size=2,
        control_bounds=dc.Bounds([-1.0, -jnp.inf], jnp.inf),
    )
    latent = dc.LatentProblem(problem, lambda z: jnp.stack([z, z]), 2)
    np.testing.assert_array_equal(latent.decode(jnp.array([-5.0, -5.0]))[0], [-1.0, -5.0])
    gradient = jax.grad(lambda z: jnp.sum(latent.decode(z)))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(gradient, [2.0, 2.0])


@pytest.mark.parametrize(
    ("call", "error", "said"),
    (
        (lambda: dc.LatentProblem(None, DECODER, 2), TypeError, "problem"),
        (lambda: dc.LatentProblem(PROBLEM, None, 2), TypeError, "decoder"),
        (lambda: dc.LatentProblem(PROBLEM, DECODER, 2.5), TypeError, "latent_size"),
        (lambda: dc.LatentProblem(PROBLEM, DECODER, 2, (-1, 1)), TypeError, "latent_bounds"),
        (lambda: dc.ControlDecoder(0, 6, 1, key=KEY), ValueError, "latent_size"),
        (lambda: dc.ControlDecoder(2, 6, 1, depth=-1, key=KEY), ValueError, "depth"),
        (
            lambda: dc.ControlDecoder(2, 6, 1, key=jax.random.split(KEY)),
            ValueError,
            "one random key",
        ),
        (lambda: dc.ControlDecoder(2, 6, 1, key=KEY)(jnp.ones(3)), ValueError, "latent of shape"),
        (
            lambda: dc.LatentProblem(PROBLEM, lambda z: z, 2).decode(jnp.ones(2)),
            ValueError,
            "shape \\(T, m\\)",
        ),
    ),
)
def test_misuse_of_latents(call, error, said):
    with pytest.raises(error, match=said):
        call()
