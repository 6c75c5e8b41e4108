"""Real-time iteration: a fixed number of iterations, its derivative, its closed loop, its latency.

Latency is also a matter of compilation, so programs are counted here: one for a shape, whatever
the numbers.
"""

import functools
import itertools
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol._result import succeeded
from diffcontrol.systems import Pendulum, pendulum
from tests.problems import BY_NAME, solution

# The controls of the first are clamped at every stage, of the second at none.
CASE = BY_NAME["two_controls"]
ROUGH = 0.3 * jnp.asarray(np.random.default_rng(7).normal(size=(8, 2)))
SOLVERS = (dc.DDP, dc.ILQR)
solvers = pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.__name__)


def run(solver, theta, x0, guess):
    return dc.solve(CASE.build(theta), x0, solver, guess=guess, throw=False)


@functools.cache
def compiled(solver):
    return jax.jit(functools.partial(run, solver))


def iterate(solver, guess):
    return compiled(solver)(CASE.theta, CASE.x0, guess)


def test_iterations_are_those_of_the_solver_stopped_there():
    fixed = iterate(dc.DDP(fixed_iterations=2), ROUGH)
    stopped = iterate(dc.DDP(tolerance=0.0, max_iterations=2), ROUGH)
    assert fixed.result == dc.RESULTS.fixed_iterations
    assert stopped.result == dc.RESULTS.not_converged
    assert fixed.stats.iterations == stopped.stats.iterations == 2
    assert fixed.stats.stationarity > 1e-5
    for name in ("states", "controls", "costates", "cost", "gains"):
        # Two programs, which the compiler may round differently.
        both = getattr(fixed, name), getattr(stopped, name)
        np.testing.assert_allclose(*both, rtol=1e-13, atol=1e-15, err_msg=name)


def test_one_iteration_solves_a_linear_quadratic_problem():
    rng = np.random.default_rng(0)
    roots = 0.3 * rng.normal(size=(4, 5, 5))
    C = jnp.asarray(np.eye(5) + roots @ roots.transpose(0, 2, 1))
    F = jnp.asarray(rng.normal(size=(4, 3, 5)) / 2)
    c, f = jnp.asarray(rng.normal(size=(4, 5))), jnp.asarray(rng.normal(size=(4, 3)))
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: F[t] @ jnp.append(x, u) + f[t],
        stage_cost=dc.QuadraticCost(C, c),
        horizon=4,
        control_size=2,
    )
    x0, guess = jnp.ones(3), jnp.asarray(rng.normal(size=(4, 2)))
    once = jax.jit(lambda: dc.solve(problem, x0, dc.ILQR(fixed_iterations=1), guess=guess))()
    best = dc.lqr(dc.LinearQuadraticProblem(C, c, F, f), x0)
    assert np.abs(best.controls - guess).max() > 0.1
    np.testing.assert_allclose(once.controls, best.controls, atol=1e-12)


@pytest.mark.parametrize("solver", [dc.DDP, pytest.param(dc.ILQR, marks=pytest.mark.slow)])
def test_iterations_beyond_the_solution_do_no_harm(solver):
    best = solution(CASE.name)
    for guess in (ROUGH, best.controls):
        there = iterate(solver(fixed_iterations=60), guess)
        assert there.stats.iterations == 60 and there.result == dc.RESULTS.fixed_iterations
        assert there.stats.stationarity < 1e-10
        np.testing.assert_allclose(there.cost, best.cost, rtol=1e-14)
        np.testing.assert_allclose(there.controls, best.controls, atol=1e-6)


def weigh(solved):
    """A number that hangs on everything, of which derivatives are taken."""
    weights = jnp.sin(1.0 + jnp.arange(solved.controls.size)).reshape(solved.controls.shape)
    return jnp.vdot(weights, solved.controls) + solved.cost + jnp.sum(solved.states)


def directions(inputs):
    """One for each part of `inputs`, random there and zero elsewhere."""
    rng = np.random.default_rng(3)
    some = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), inputs)
    none = jax.tree.map(jnp.zeros_like, inputs)
    return [(*none[:k], some[k], *none[k + 1 :]) for k in range(len(inputs))]


@pytest.mark.parametrize(
    "solver",
    [dc.DDP(fixed_iterations=2), pytest.param(dc.ILQR(fixed_iterations=3), marks=pytest.mark.slow)],
    ids=repr,
)
def test_derivative_is_that_of_the_iterations(solver):
    """With respect to the numbers of the problem, the initial state and the guess.

    The error of a difference over h is about h^2 + 1e-16 / h, relatively: some 1e-10 at 1e-5.
    """
    inputs, h = (CASE.theta, CASE.x0, ROUGH), 1e-5
    gradient = jax.jit(jax.grad(lambda *inputs: weigh(run(solver, *inputs)), argnums=(0, 1, 2)))(
        *inputs
    )
    for d in directions(inputs):
        value = lambda step, d=d: weigh(
            compiled(solver)(*jax.tree.map(lambda leaf, d: leaf + step * d, inputs, d))
        )
        difference = (value(h) - value(-h)) / (2 * h)
        along = jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, d)
        assert abs(difference) > 1e-4
        np.testing.assert_allclose(sum(jax.tree.leaves(along)), difference, rtol=1e-6)


def test_at_the_solution_one_iteration_has_the_exact_derivative():
    """And none with respect to the guess, since DDP converges quadratically."""
    inputs = (CASE.theta, CASE.x0, solution(CASE.name).controls)

    def derivatives(solver):
        along = lambda d: jax.jvp(lambda *inputs: weigh(run(solver, *inputs)), inputs, d)[1]
        compiled = jax.jit(along)
        return np.array([compiled(d) for d in directions(inputs)])

    exact, once = map(derivatives, (dc.DDP(tolerance=1e-12), dc.DDP(fixed_iterations=1)))
    assert np.abs(exact[:2]).min() > 1e-2 and exact[2] == 0.0
    np.testing.assert_allclose(once, exact, rtol=1e-7, atol=1e-7)


def test_batches():
    """More samples than there are slots; one of them NaN, which changes no other."""
    solver = dc.DDP(fixed_iterations=2)
    noise = 0.3 * np.random.default_rng(1).normal(size=(20, 2))
    starts = CASE.x0 + jnp.asarray(noise)
    batch = jax.jit(jax.vmap(functools.partial(run, solver), in_axes=(None, 0, None)))
    together = batch(CASE.theta, starts, ROUGH)
    for k in (0, 7, 19):
        alone = compiled(solver)(CASE.theta, starts[k], ROUGH)
        np.testing.assert_allclose(alone.controls, together.controls[k], rtol=1e-9, atol=1e-11)
    assert np.all(together.stats.iterations == 2) and np.all(jax.vmap(succeeded)(together.result))

    broken = batch(CASE.theta, starts.at[3].set(jnp.nan), ROUGH)
    others = np.arange(20) != 3
    assert jax.tree.map(lambda leaf: leaf[3], broken.result) == dc.RESULTS.invalid_input
    np.testing.assert_array_equal(jax.vmap(succeeded)(broken.result), others)
    for left, right in zip(*map(jax.tree.leaves, (together, broken)), strict=True):
        np.testing.assert_array_equal(left[others], right[others])


def test_a_guess_that_leads_to_nan_is_a_failure():
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: jnp.log(x - 1.5) + u,
        stage_cost=lambda x, u, t: x @ x + u @ u,
        horizon=3,
        control_size=1,
    )
    solved = dc.solve(problem, jnp.ones(1), dc.DDP(fixed_iterations=2), throw=False)
    assert solved.result == dc.RESULTS.non_finite and not succeeded(solved.result)


def test_single_precision():
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (CASE.theta, CASE.x0, ROUGH))
    solved = compiled(dc.DDP(fixed_iterations=60))(*single)
    leaves = jax.tree.leaves(eqx.filter(solved, eqx.is_inexact_array))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert solved.result == dc.RESULTS.fixed_iterations and solved.stats.stationarity < 1e-4
    np.testing.assert_allclose(solved.controls, solution(CASE.name).controls, atol=1e-3)


MISUSE = {
    "beside a tolerance": (dict(tolerance=1e-6, fixed_iterations=2), ValueError, "`tolerance`"),
    "none": (dict(fixed_iterations=0), ValueError, "at least 1, got 0"),
    "a fraction": (dict(fixed_iterations=1.5), TypeError, "must be an integer, got 1.5"),
    "True": (dict(fixed_iterations=True), TypeError, "must be an integer, got True"),
}


@solvers
@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_named(solver, name):
    settings, kind, words = MISUSE[name]
    jaxtyping.config.update("jaxtyping_disable", True)  # as users run it
    try:
        with pytest.raises(kind, match=f"{solver.__name__}: .*`fixed_iterations`.*{words}"):
            solver(**settings)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("adjoint", [dc.ImplicitAdjoint(), dc.GaussNewtonAdjoint()], ids=repr)
def test_implicit_adjoints_are_refused(adjoint):
    with pytest.raises(ValueError, match="fixed_iterations=2.*does not promise.*UnrolledAdjoint"):
        dc.solve(CASE.problem, CASE.x0, dc.DDP(fixed_iterations=2), adjoint=adjoint)


def test_the_certificate_trusts_what_it_measures():
    few = dc.certify(CASE.problem, CASE.x0, iterate(dc.DDP(fixed_iterations=2), ROUGH))
    assert not few.trustworthy and "not stationary" in str(few)
    many = dc.certify(CASE.problem, CASE.x0, iterate(dc.DDP(fixed_iterations=60), ROUGH))
    assert many.trustworthy


SWING_UP = dc.ControlProblem(
    dynamics=Pendulum(),
    stage_cost=pendulum.cost(),
    horizon=40,
    control_size=1,
    control_bounds=dc.Bounds(-5.0, 5.0),
)
HANGING = jnp.array([-1.0, 0.1, 0.0])


@jax.jit
def swing_ups():
    """Closed-loop cost of converged solves; and cost and run of one iteration a step.

    The plant is a tenth heavier than the model, so that every solve has something to do.
    """
    guess = dc.solve(SWING_UP, HANGING, throw=False)

    def closed_loop(solver):
        controller = dc.MPC(SWING_UP, solver, guess=guess)
        run = dc.simulate(controller, Pendulum(mass=1.1), HANGING, 50)
        cost = jax.vmap(SWING_UP.stage_cost)(run.states[:-1], run.controls, jnp.arange(50))
        return jnp.sum(cost), run

    return closed_loop(dc.DDP())[0], *closed_loop(dc.DDP(fixed_iterations=1))


def test_one_iteration_a_step_closes_the_loop_as_well_as_converged_solves():
    best, cost, run = swing_ups()
    assert np.all(jax.vmap(succeeded)(run.memory.result))
    assert np.all(run.memory.iterations == 1)
    np.testing.assert_allclose(run.states[-1], [1.0, 0.0, 0.0], atol=0.02)
    np.testing.assert_allclose(cost, best, rtol=1e-3)


def test_guesses_and_starts_of_a_controller():
    problem, best = CASE.problem, solution(CASE.name)
    solver = dc.DDP(fixed_iterations=2)
    memory = dc.MPC(problem, solver, guess=best).init(CASE.x0)
    np.testing.assert_array_equal(memory.controls, best.controls)
    with pytest.raises(ValueError, match="`guess` must hold controls of shape"):
        dc.MPC(problem, solver, guess=jnp.zeros((3, 1))).init(CASE.x0)
    racing = dc.MPC(problem, solver, starts=best.controls[None])
    found = racing.plan(CASE.x0, racing.init(CASE.x0))
    assert found.result == dc.RESULTS.fixed_iterations and found.stats.iterations == 2
    np.testing.assert_allclose(found.cost, best.cost, rtol=1e-12)


# Compilation.

COMPILED = []


def note(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(seconds)


@pytest.fixture
def programs():
    """The programs compiled so far in this test."""
    COMPILED.clear()
    jax.monitoring.register_event_duration_secs_listener(note)
    yield COMPILED
    jax.monitoring.unregister_event_duration_listener(note)


def dynamics(x, u, t):
    return x + 0.1 * jnp.stack([x[1], jnp.sin(x[0]) + u[0]])


def made_anew(bound, horizon=5):
    """A problem that shares nothing with others but the function."""
    return dc.ControlProblem(
        dynamics=dynamics,
        stage_cost=dc.GoalCost([1.0, 1.0, 0.1], [0.1 * bound, 0.0]),
        horizon=horizon,
        control_size=1,
        control_bounds=dc.Bounds(-bound, bound),
    )


DOORS = {
    "gradient": lambda problem, x0: eqx.filter_grad(lambda p: dc.solve(p, x0).cost)(problem),
    "certify": lambda problem, x0: dc.certify(problem, x0, dc.solve(problem, x0)),
    "simulate": lambda problem, x0: dc.simulate(dc.MPC(problem), dynamics, x0, 3),
    "controller": lambda problem, x0: dc.MPC(problem)(x0, dc.MPC(problem).init(x0)),
}


@pytest.mark.parametrize(
    "name",
    [name if name != "simulate" else pytest.param(name, marks=pytest.mark.slow) for name in DOORS],
)
def test_other_numbers_compile_nothing(name, programs):
    """Outside `jax.jit`; not even a small program on the way in."""
    enter = lambda number: jax.block_until_ready(
        DOORS[name](made_anew(number), jnp.array([0.3, number]))
    )
    enter(1.0)
    assert programs
    programs.clear()
    enter(0.7)
    enter(0.5)
    assert not programs, f"{len(programs)} programs were compiled for other numbers"


def test_another_horizon_compiles_one_program(programs):
    solver = dc.DDP(fixed_iterations=1)
    solve = lambda horizon: dc.solve(made_anew(1.0, horizon), jnp.ones(2), solver)
    solve(7)
    programs.clear()
    solve(6)
    assert len(programs) == 1
    solve(7)
    assert len(programs) == 1


# Latency.


def loop_as_users_write_it(steps):
    """A closed loop, one call of a compiled step after the other.

    Returns the wall time of every step [s], and how often the model was traced again.
    """
    ticks = itertools.count()

    def model(x, u, t):
        next(ticks)
        return Pendulum()(x, u, t)

    x = jnp.array([jnp.cos(0.3), jnp.sin(0.3), 0.0])
    problem = pendulum.problem(horizon=20, dynamics=model)
    controller = dc.MPC(problem, dc.DDP(fixed_iterations=2), guess=dc.solve(problem, x))

    @jax.jit
    def step(x, memory):
        control, memory = controller(x, memory)
        gust = 0.1 * jnp.sin(memory.time)  # [N m]
        return Pendulum()(x, control + gust, memory.time), memory

    x, memory = jax.block_until_ready(step(x, controller.init(x)))
    traced, times = next(ticks), np.empty(steps)
    for k in range(steps):
        start = time.perf_counter()
        x, memory = jax.block_until_ready(step(x, memory))
        times[k] = time.perf_counter() - start
    assert memory.result == dc.RESULTS.fixed_iterations and x[0] > 0.9
    return times, next(ticks) - traced - 1


def yardstick(steps):
    """The same of a program of JAX alone, which takes about as long and, as ours, is spread over
    threads by XLA: what makes it unsteady is the machine."""
    squares = jax.jit(lambda matrices: [matrix @ matrix for matrix in matrices])
    matrices = list(jnp.asarray(np.random.default_rng(0).normal(size=(20, 40, 40))))
    jax.block_until_ready(squares(matrices))
    times = np.empty(steps)
    for k in range(steps):
        start = time.perf_counter()
        jax.block_until_ready(squares(matrices))
        times[k] = time.perf_counter() - start
    return times


def test_a_loop_is_traced_once():
    _, again = loop_as_users_write_it(200)
    assert again == 0


# In a process of its own, as users run it. By default JAX hands a program to another thread, which
# costs a fifth of the time here; that this is not wanted has to be said before anything else.
MEASURE = """
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_enable_async_dispatch", False)
import numpy as np
from tests.test_real_time import loop_as_users_write_it, yardstick
for _ in range(3):
    times, again = loop_as_users_write_it(10_000)
    assert again == 0
    print(*np.percentile(times, (50, 99)), *np.percentile(yardstick(10_000), (50, 99)))
"""


@pytest.mark.slow
def test_latency_is_about_as_steady_as_that_of_jax_alone():
    """`-s` shows of three runs the median and the 99th percentile of our steps [us]."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", MEASURE]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    p50, p99, yardstick50, yardstick99 = np.array(lines, float).T
    print(1e6 * p50, 1e6 * p99)
    assert np.min((p99 / p50) / (yardstick99 / yardstick50)) <= 1.5
