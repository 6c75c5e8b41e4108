"""Solutions: optimal by an independent reckoning, and what every field of them means."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from tests.problems import (
    BY_NAME,
    CASES,
    TIGHT,
    Change,
    central_differences,
    no_change,
    rows,
    solution,
    solve_changes,
)

SOLVERS = (dc.DDP, dc.ILQR)
cases = pytest.mark.parametrize("case", CASES, ids=repr)
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)


@functools.cache
def solve_case(name, solver):
    """The case as it stands, by either solver."""
    if solver is dc.DDP:
        return solution(name)
    case = BY_NAME[name]
    solve = lambda theta, x0: dc.solve(case.build(theta), x0, solver())
    return jax.jit(solve)(case.theta, case.x0)


def roll_out(problem, x0, controls):
    states = [x0]
    for t in range(problem.horizon):
        states.append(problem.dynamics(states[-1], controls[t], t))
    return jnp.stack(states)


def total_cost(problem, x0, controls):
    """The cost as a function of the controls alone, written as the problem reads."""

    def advance(x, stage):
        u, t = stage
        cost = problem.stage_cost(x, u, t)
        return problem.dynamics(x, u, t), cost

    last, costs = jax.lax.scan(advance, x0, (controls, jnp.arange(problem.horizon)))
    terminal = 0.0 if problem.terminal_cost is None else problem.terminal_cost(last)
    return jnp.sum(costs) + terminal


@functools.partial(jax.jit, static_argnums=0)
def reckoned(build, theta, x0, states, controls):
    """Total cost, its gradient in the controls, the part of it from the stage costs, and steps."""
    problem = build(theta)
    cost, gradient = jax.value_and_grad(lambda u: total_cost(problem, x0, u))(controls)
    times = jnp.arange(problem.horizon)
    own = jax.vmap(jax.grad(problem.stage_cost, argnums=1))(states[:-1], controls, times)
    following = jax.vmap(problem.dynamics)(states[:-1], controls, times)
    return cost, gradient, own, following


def bounds_of(problem):
    bounds = dc.Bounds() if problem.control_bounds is None else problem.control_bounds
    shape = (problem.horizon, problem.control_size)
    return np.broadcast_to(bounds.lower, shape), np.broadcast_to(bounds.upper, shape)


@cases
@solvers
def test_optimal(case, solver):
    solved = solve_case(case.name, solver)
    x, u = solved.states, np.asarray(solved.controls)
    cost, gradient, own, following = map(
        np.asarray, reckoned(case.build, case.theta, case.x0, x, solved.controls)
    )
    lower, upper = bounds_of(case.problem)
    assert solved.result == dc.RESULTS.successful
    assert np.all((u >= lower) & (u <= upper))
    assert np.array_equal(x[0], case.x0)
    np.testing.assert_allclose(x[1:], following, rtol=0, atol=1e-12)
    np.testing.assert_allclose(solved.cost, cost, rtol=1e-13)

    raw = np.abs(np.clip(u - gradient, lower, upper) - u).max()
    scale = max(1.0, np.abs(own).max(), np.abs(gradient - own).max())
    assert raw / scale <= 1e-8
    np.testing.assert_allclose(solved.stats.stationarity_raw, raw, rtol=1e-6, atol=1e-13)
    np.testing.assert_allclose(solved.stats.stationarity, raw / scale, rtol=1e-6, atol=1e-13)

    held = np.asarray(solved.multipliers) != 0
    at_bound = (u == lower) | (u == upper)
    assert np.all(at_bound[held])
    np.testing.assert_allclose(
        np.asarray(solved.multipliers)[held], -gradient[held], rtol=1e-9, atol=1e-12
    )
    assert np.all(np.abs(gradient[~held]) <= 1e-8 * scale)


@cases
def test_solvers_find_the_same_optimum(case):
    ddp, ilqr = (solve_case(case.name, solver) for solver in SOLVERS)
    np.testing.assert_allclose(ilqr.cost, ddp.cost, rtol=1e-11)
    for name in ("states", "controls", "costates", "gains"):
        scale = max(1.0, np.abs(getattr(ddp, name)).max())
        np.testing.assert_allclose(
            getattr(ilqr, name), getattr(ddp, name), rtol=0, atol=1e-4 * scale, err_msg=name
        )


def stages_to_test(case):
    T = case.problem.horizon
    return list(range(T + 1)) if T <= 12 else [0, 1, 2, T // 2, T - 1, T]


def zero(change: Change) -> Change:
    return jax.tree.map(np.zeros_like, change)


@functools.cache
def nudged_states(name):
    """Derivatives of cost and controls when the state of a stage is moved and the rest re-solved.

    The controls before that stage stay as they were, so what is solved again is the tail.
    """
    case, solved = BY_NAME[name], solution(name)
    n, stages = case.x0.shape[0], np.array(stages_to_test(BY_NAME[name]))
    count = len(stages) * n
    stage, axis = np.repeat(stages, n), np.tile(np.arange(n), len(stages))
    base = eqx.tree_at(
        lambda c: (c.stage, c.past),
        rows(no_change(case), count),
        (stage, rows(solved.controls, count)),
    )
    unit = np.eye(n)[axis]
    first = (stage == 0)[:, None]
    directions = eqx.tree_at(
        lambda c: (c.state, c.x0),
        zero(base),
        (np.where(first, 0.0, unit), np.where(first, unit, 0.0)),
    )
    T, m = solved.controls.shape
    read = lambda solved: np.concatenate(
        [solved.controls.reshape(-1, T * m), solved.cost[:, None]], axis=1
    )
    found = central_differences(case, base, directions, read)
    value = found.value.reshape(len(stages), n, -1)
    spread = found.spread.reshape(len(stages), n, -1)
    d_controls = value[..., :-1].reshape(len(stages), n, T, m)
    return stages, d_controls, value[..., -1], spread


@pytest.mark.parametrize(
    "case",
    [
        # Of the others, those whose bounds, sizes and times differ most.
        pytest.param(
            case,
            marks=()
            if case.name in ("closures", "pendulum_free", "two_controls")
            else pytest.mark.slow,
        )
        for case in CASES
    ],
    ids=repr,
)
def test_costates_are_the_derivative_of_the_optimal_cost_to_go(case):
    stages, _, d_cost, _ = nudged_states(case.name)
    costates = np.asarray(solution(case.name).costates)[stages]
    np.testing.assert_allclose(costates, d_cost, rtol=0, atol=1e-8 * max(1, np.abs(d_cost).max()))


@cases
def test_gains_are_the_derivative_of_the_optimal_controls(case):
    stages, d_controls, _, _ = nudged_states(case.name)
    gains = np.asarray(solution(case.name).gains)
    scale = max(1.0, np.abs(gains).max())
    for row, t in enumerate(stages):
        if t < len(gains):
            np.testing.assert_allclose(gains[t], d_controls[row, :, t].T, rtol=0, atol=1e-6 * scale)
    held = np.asarray(solution(case.name).multipliers) != 0
    assert np.all(gains[held] == 0)
    assert np.any(gains != 0)


@cases
def test_multipliers_are_minus_the_derivative_of_cost_with_respect_to_bounds(case):
    """Both sides are moved together, so that equal bounds stay equal."""
    solved = solution(case.name)
    T, m = solved.controls.shape
    which = np.unravel_index(np.arange(0, T * m, max(1, T * m // 24)), (T, m))
    base = rows(no_change(case), len(which[0]))
    moved = np.zeros(base.lower.shape)
    moved[(np.arange(len(which[0])), *which)] = 1.0
    directions = eqx.tree_at(lambda c: (c.lower, c.upper), zero(base), (moved, moved))
    found = central_differences(case, base, directions, lambda solved: solved.cost)
    multipliers = np.asarray(solved.multipliers)[which]
    scale = max(1.0, np.abs(multipliers).max())
    np.testing.assert_allclose(multipliers, -found.value[:, 0], rtol=0, atol=1e-7 * scale)


def take(tree, k):
    return jax.tree.map(lambda leaf: leaf[k], tree)


def some_starts(case, count):
    noise = 0.05 * np.random.default_rng(0).normal(size=(count, *case.x0.shape))
    return case.x0 + jnp.asarray(noise)


few = pytest.mark.parametrize(
    "case", [BY_NAME[name] for name in ("pendulum", "double_integrator")], ids=repr
)


@few
def test_vmap_equals_loop(case):
    """`solve_changes` is a `vmap`."""
    starts = some_starts(case, 4)
    changes = eqx.tree_at(lambda c: c.x0, rows(no_change(case), 4), starts)
    together = solve_changes(case, changes)
    alone = jax.jit(lambda x0: dc.solve(case.problem, x0, dc.DDP(tolerance=TIGHT), throw=False))
    for k in range(4):
        one, row = alone(starts[k]), take(together, k)
        for field in ("states", "controls", "costates", "multipliers", "gains", "cost"):
            np.testing.assert_allclose(
                getattr(one, field), getattr(row, field), rtol=1e-9, atol=1e-10, err_msg=field
            )
        assert one.result == row.result
        assert one.stats.iterations == row.stats.iterations


@few
def test_one_bad_sample_leaves_the_others_alone(case):
    changes, starts = rows(no_change(case), 6), np.array(some_starts(case, 6))
    good = solve_changes(case, eqx.tree_at(lambda c: c.x0, changes, starts))
    for bad_value in (np.nan, np.inf, 1e200):
        starts[2] = bad_value
        bad = solve_changes(case, eqx.tree_at(lambda c: c.x0, changes, starts))
        others = np.arange(6) != 2
        assert take(bad, 2).result != dc.RESULTS.successful
        for left, right in zip(jax.tree.leaves(good), jax.tree.leaves(bad), strict=True):
            assert np.array_equal(left[others], right[others])


@pytest.mark.parametrize("name", ["pendulum"])
def test_single_precision(name):
    case = BY_NAME[name]
    to_single = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
    solve = lambda theta, x0: dc.solve(case.build(theta), x0, throw=False)
    single = jax.jit(solve)(to_single(case.theta), to_single(case.x0))
    assert single.result == dc.RESULTS.successful
    assert single.stats.stationarity <= 1e-4
    for leaf in jax.tree.leaves(eqx.filter(single, eqx.is_inexact_array)):
        assert leaf.dtype == jnp.float32
    reference = solution(name)
    np.testing.assert_allclose(single.cost, reference.cost, rtol=1e-5)
    np.testing.assert_allclose(single.controls, reference.controls, atol=5e-3)


def test_traced_once_a_shape():
    # Not a number in a variable: that a function sees another value is a reason to trace again.
    ticks = itertools.count()

    def dynamics(x, u, t):
        next(ticks)
        return x + 0.1 * jnp.stack([x[1], jnp.sin(x[0]) + u[0]])

    def problem(bound):
        return dc.ControlProblem(
            dynamics=dynamics,
            stage_cost=dc.GoalCost([1, 1, 0.1], [0.0, 0.0]),
            horizon=5,
            control_size=1,
            control_bounds=dc.Bounds(-bound, bound),
        )

    dc.solve(problem(1.0), jnp.array([1.0, 0.0]))
    first = next(ticks)
    assert first > 0
    dc.solve(problem(0.5), jnp.array([0.3, 0.2]))
    dc.solve(problem(0.2), np.array([0.3, 0.5]), dc.DDP())
    assert next(ticks) == first + 1, "only values were changed, and the problem was traced again"


def free_pendulum():
    case = BY_NAME["pendulum_free"]
    return case, jax.jit(lambda guess: dc.solve(case.problem, case.x0, guess=guess))


def test_warm_start_from_a_solution_takes_no_iteration():
    case, solve = free_pendulum()
    first = solve(None)
    assert first.stats.iterations > 0
    again = solve(first)
    assert again.stats.iterations == 0 and again.result == dc.RESULTS.successful
    np.testing.assert_allclose(again.controls, first.controls, rtol=0, atol=1e-14)
    from_controls = solve(first.controls)
    assert from_controls.stats.iterations == 0


def test_guess_outside_the_bounds_is_clipped():
    """With no iteration left to correct it, the guess shows in the answer."""
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x + u,
        stage_cost=lambda x, u, t: -u[0] + 0 * x[0] + 0.01 * u[0] ** 2,
        horizon=3,
        control_size=1,
        control_bounds=dc.Bounds(
            jnp.array([[-1.0], [0.0], [0.3]]), jnp.array([[1.0], [2.0], [0.3]])
        ),
    )
    solved = dc.solve(problem, jnp.zeros(1), guess=jnp.full((3, 1), 9.0))
    assert solved.stats.iterations == 0
    np.testing.assert_array_equal(solved.controls, [[1.0], [2.0], [0.3]])
    np.testing.assert_allclose(solved.states[:, 0], [0, 1, 3, 3.3])


def test_time_is_seen_as_an_integer_array():
    seen = []

    def stage_cost(x, u, t):
        seen.append(t)
        return x @ x + u @ u

    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x + u, stage_cost=stage_cost, horizon=2, control_size=1
    )
    dc.solve(problem, jnp.ones(1))
    assert all(jnp.issubdtype(t.dtype, jnp.integer) and t.shape == () for t in seen)


def scalar_problem(dynamics=None, stage_cost=None, bounds=None, T=3):
    return dc.ControlProblem(
        dynamics=(lambda x, u, t: x + u) if dynamics is None else dynamics,
        stage_cost=(lambda x, u, t: x @ x + u @ u) if stage_cost is None else stage_cost,
        horizon=T,
        control_size=1,
        control_bounds=bounds,
    )


ONE = jnp.ones(1)

# What leads to each outcome: a problem, an initial state and a solver.
OUTCOMES = {
    "successful": (scalar_problem(), ONE, dc.DDP()),
    "fixed_iterations": (scalar_problem(), ONE, dc.DDP(fixed_iterations=1)),
    "not_converged": (
        scalar_problem(lambda x, u, t: x + jnp.sin(3 * u) * (1 + x**2)),
        ONE,
        dc.DDP(max_iterations=1),
    ),
    # The constant drowns every difference of cost.
    "precision_limit": (
        scalar_problem(stage_cost=lambda x, u, t: 1e14 + jnp.sum(x**4) + jnp.sum(jnp.cosh(u))),
        ONE,
        dc.DDP(tolerance=0.0),
    ),
    # Zero controls are stationary, but every direction leads down.
    "indefinite": (
        scalar_problem(stage_cost=lambda x, u, t: -u @ u, bounds=dc.Bounds(-1.0, 1.0)),
        ONE,
        dc.DDP(),
    ),
    "non_finite": (scalar_problem(lambda x, u, t: jnp.log(x - 1.5) + u), ONE, dc.DDP()),
    "invalid_input": (scalar_problem(), jnp.array([jnp.nan]), dc.DDP()),
    "invalid_input, bounds": (
        scalar_problem(bounds=dc.Bounds(jnp.zeros((3, 1)), jnp.ones((3, 1)))),
        ONE,
        dc.DDP(),
    ),
}


def outcome(name, throw=False):
    problem, x0, solver = OUTCOMES[name]

    @jax.jit
    def solve(x0, shift):
        shifted = problem
        if name == "invalid_input, bounds":
            shifted = eqx.tree_at(
                lambda p: p.control_bounds.lower, problem, problem.control_bounds.lower + shift
            )
        return dc.solve(shifted, x0, solver, throw=throw)

    return solve(x0, jnp.asarray(2.0))


@pytest.mark.parametrize("name", OUTCOMES)
def test_outcome(name):
    solved = outcome(name)
    assert solved.result == getattr(dc.RESULTS, name.split(",")[0]), dc.RESULTS[solved.result]


def test_every_outcome_is_reached_by_a_named_case():
    reached = {name.split(",")[0] for name in OUTCOMES}
    every = {name for name in dc.RESULTS._name_to_item}  # the names of an eqx.Enumeration
    assert every == reached, f"no case reaches {sorted(every - reached)}"


def test_throw_raises_with_the_sentence():
    with pytest.raises(RuntimeError, match="stopped before its tolerance"):
        jax.block_until_ready(outcome("not_converged", throw=True))


def test_saddles_are_left_behind():
    """From this start Gauss-Newton steps creep along a saddle for more than 500 iterations."""
    problem = dc.systems.cartpole.problem(horizon=25)
    keys = jax.random.split(jax.random.key(0), 512)
    x0 = dc.systems.cartpole.start(keys[62]).astype(float)
    solution = jax.jit(lambda x0: dc.solve(problem, x0, throw=False))(x0)
    assert solution.result == dc.RESULTS.successful
    assert int(solution.stats.iterations) < 100
