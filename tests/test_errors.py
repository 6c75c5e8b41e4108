"""Misuse is refused when traced, with a sentence of ours that names the argument."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import diffcontrol as dc


@pytest.fixture(autouse=True)
def as_users_run_it():
    """Without the check of annotations, which would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def problem(**changes):
    """Two states, one control, horizon 3."""
    settings = dict(
        dynamics=lambda x, u, t: 0.9 * x + u[0],
        stage_cost=lambda x, u, t: x @ x + u @ u,
        horizon=3,
        control_size=1,
    )
    return dc.ControlProblem(**(settings | changes))


X0 = jnp.ones(2)
GOOD = problem()
NAN = jnp.nan


def solve(*args, **changes):
    return lambda: dc.solve(*args, **changes)


def solve_with(**changes):
    return lambda: dc.solve(problem(**changes), X0)


def make(**changes):
    return lambda: problem(**changes)


LQ = dict(C=jnp.ones((4, 3, 3)), c=jnp.ones((4, 3)), F=jnp.ones((4, 2, 3)), f=jnp.ones((4, 2)))


def lq(**changes):
    return lambda: dc.LinearQuadraticProblem(**(LQ | changes))


# What is wrong, how it comes about, and words that the message must hold: the argument first.
CASES = {
    # costs, and what stands beside solve
    "a number added to a cost": (lambda: dc.GoalCost([1, 1], [0]) + 3.0, TypeError, "stage cost"),
    "a cost added to a number": (lambda: 3.0 + dc.GoalCost([1, 1], [0]), TypeError, "stage cost"),
    "complex C": (lq(C=1j * jnp.ones((4, 3, 3))), TypeError, "`C` must be real"),
    "words for c_terminal": (lq(c_terminal="none"), TypeError, "`c_terminal`"),
    "certify: x0 of words": (lambda: dc.certify(GOOD, "here", None), TypeError, "`x0`"),
    "terminal_value: complex state": (
        lambda: dc.terminal_value(GOOD, 1j * X0, [0.0]),
        TypeError,
        "`state` must be real",
    ),
    "simulate: x0 of words": (
        lambda: dc.simulate(lambda x: x, lambda x, u, t: x, "here", 2),
        TypeError,
        "`x0`",
    ),
    # solve
    "not a problem": (solve(lambda x: x, X0), TypeError, "problem"),
    "x0 a scalar": (solve(GOOD, 1.0), ValueError, "x0"),
    "x0 a batch": (solve(GOOD, jnp.ones((5, 2))), ValueError, "x0", "vmap"),
    "x0 empty": (solve(GOOD, jnp.ones(0)), ValueError, "x0"),
    "x0 missing": (solve(GOOD, None), TypeError, "x0"),
    "x0 text": (solve(GOOD, "start"), TypeError, "x0"),
    "x0 complex": (solve(GOOD, jnp.ones(2) * 1j), TypeError, "x0"),
    "x0 ragged": (solve(GOOD, [[1.0], [1.0, 2.0]]), (TypeError, ValueError), "x0"),
    "x0 NaN": (solve(GOOD, [1.0, NAN]), ValueError, "x0", "NaN"),
    "solver by name": (solve(GOOD, X0, "ddp"), TypeError, "solver", "DDP()"),
    "solver a class": (solve(GOOD, X0, dc.DDP), TypeError, "solver", "DDP()"),
    "adjoint by name": (solve(GOOD, X0, adjoint="implicit"), TypeError, "adjoint"),
    "adjoint a class": (solve(GOOD, X0, adjoint=dc.ImplicitAdjoint), TypeError, "adjoint"),
    "key": (solve(GOOD, X0, key=jax.random.key(0)), ValueError, "key", "DDP"),
    "guess of wrong shape": (solve(GOOD, X0, guess=jnp.ones(3)), ValueError, "guess", "(3, 1)"),
    "guess text": (solve(GOOD, X0, guess="zero"), TypeError, "guess"),
    "guess complex": (solve(GOOD, X0, guess=1j * jnp.ones((3, 1))), TypeError, "guess"),
    "guess NaN": (solve(GOOD, X0, guess=jnp.full((3, 1), NAN)), ValueError, "guess", "NaN"),
    "throw": (solve(GOOD, X0, throw="no"), TypeError, "throw"),
    # sizes
    "horizon zero": (make(horizon=0), ValueError, "horizon", "0"),
    "horizon negative": (make(horizon=-2), ValueError, "horizon"),
    "horizon a fraction": (make(horizon=2.5), TypeError, "horizon", "2.5"),
    "horizon True": (make(horizon=True), TypeError, "horizon"),
    "horizon an array": (make(horizon=jnp.array(3)), TypeError, "horizon"),
    "control_size zero": (make(control_size=0), ValueError, "control_size"),
    "control_size None": (make(control_size=None), TypeError, "control_size"),
    # callables
    "dynamics no callable": (make(dynamics=jnp.eye(2)), TypeError, "dynamics"),
    "stage_cost no callable": (make(stage_cost=None), TypeError, "stage_cost"),
    "terminal_cost no callable": (make(terminal_cost=1.0), TypeError, "terminal_cost"),
    "dynamics of wrong shape": (
        solve_with(dynamics=lambda x, u, t: jnp.ones(3)),
        ValueError,
        "dynamics",
        "(3,)",
    ),
    "dynamics a list": (solve_with(dynamics=lambda x, u, t: [x[0], x[1]]), TypeError, "dynamics"),
    "dynamics nothing": (solve_with(dynamics=lambda x, u, t: None), TypeError, "dynamics"),
    "dynamics complex": (solve_with(dynamics=lambda x, u, t: x * 1j), TypeError, "dynamics"),
    "dynamics without time": (solve_with(dynamics=lambda x, u: x), TypeError, "dynamics", "t"),
    "stage_cost a vector": (solve_with(stage_cost=lambda x, u, t: u), ValueError, "stage_cost"),
    "stage_cost two values": (solve_with(stage_cost=lambda x, u, t: (0.0, 0.0)), TypeError, "cost"),
    "stage_cost complex": (
        solve_with(stage_cost=lambda x, u, t: x @ x + 1j),
        TypeError,
        "stage_cost",
    ),
    "stage_cost without time": (solve_with(stage_cost=lambda x, u: 0.0), TypeError, "stage_cost"),
    "terminal_cost a vector": (solve_with(terminal_cost=lambda x: x), ValueError, "terminal_cost"),
    "terminal_cost with time": (
        solve_with(terminal_cost=lambda x, t: 0.0),
        TypeError,
        "terminal_cost",
    ),
    # bounds
    "bounds a tuple": (make(control_bounds=(-1, 1)), TypeError, "control_bounds", "Bounds("),
    "bounds for other controls": (
        solve_with(control_bounds=dc.Bounds(-jnp.ones(2), 1.0)),
        ValueError,
        "lower",
        "(2,)",
    ),
    "bounds for another horizon": (
        solve_with(control_bounds=dc.Bounds(-1.0, jnp.ones((4, 1)))),
        ValueError,
        "upper",
        "(4, 1)",
    ),
    "bounds with time alone": (
        solve_with(control_bounds=dc.Bounds(-jnp.ones((3,)), 1.0)),
        ValueError,
        "lower",
        "(3, 1)",
    ),
    "bounds inverted": (lambda: dc.Bounds(1.0, -1.0), ValueError, "lower", "upper"),
    "bounds inverted in one place": (
        lambda: dc.Bounds(jnp.zeros((3, 1)), jnp.array([[1.0], [-1.0], [1.0]])),
        ValueError,
        "lower",
    ),
    "bounds inverted by surgery": (
        lambda: dc.solve(
            eqx.tree_at(
                lambda p: p.control_bounds.lower,
                problem(control_bounds=dc.Bounds(-1.0, 1.0)),
                jnp.array(2.0),
            ),
            X0,
        ),
        ValueError,
        "lower",
    ),
    "bounds NaN": (lambda: dc.Bounds(NAN, 1.0), ValueError, "lower", "NaN"),
    "bounds text": (lambda: dc.Bounds("low", 1.0), TypeError, "lower"),
    "bounds complex": (lambda: dc.Bounds(-1.0, 1j), TypeError, "upper"),
    "bounds that do not broadcast": (
        lambda: dc.Bounds(jnp.zeros(2), jnp.ones(3)),
        ValueError,
        "lower",
        "upper",
    ),
    "lower bound infinite above": (lambda: dc.Bounds(np.inf, np.inf), ValueError, "lower"),
    "upper bound infinite below": (lambda: dc.Bounds(-np.inf, -np.inf), ValueError, "upper"),
    # costs
    "C not square": (lambda: dc.QuadraticCost(jnp.ones((3, 2))), ValueError, "C"),
    "C a vector": (lambda: dc.QuadraticCost(jnp.ones(3)), ValueError, "C"),
    "c of another size": (lambda: dc.QuadraticCost(jnp.eye(3), jnp.ones(2)), ValueError, "c"),
    "C of another problem": (
        solve_with(stage_cost=dc.QuadraticCost(jnp.eye(4))),
        ValueError,
        "C",
        "(4, 4)",
    ),
    "C for another horizon": (
        solve_with(stage_cost=dc.QuadraticCost(jnp.ones((5, 3, 3)))),
        ValueError,
        "C",
        "5",
    ),
    "c for another horizon": (
        solve_with(stage_cost=dc.QuadraticCost(jnp.eye(3), jnp.ones((2, 3)))),
        ValueError,
        "c",
        "2",
    ),
    "weights too few": (lambda: dc.GoalCost([1, 1], [0, 0]), ValueError, "weights"),
    "weights of another problem": (
        solve_with(stage_cost=dc.GoalCost(jnp.ones(4), jnp.zeros(2))),
        ValueError,
        "weights",
    ),
    "goal of another problem": (
        solve_with(stage_cost=dc.GoalCost(jnp.ones(4), jnp.zeros(3))),
        ValueError,
        "goal",
    ),
    "goal for another horizon": (
        solve_with(stage_cost=dc.GoalCost(jnp.ones(3), jnp.zeros((7, 2)))),
        ValueError,
        "goal",
        "7",
    ),
    "goal for another horizon, in a sum": (
        solve_with(
            stage_cost=dc.GoalCost(jnp.ones(3), jnp.zeros((7, 2))) + (lambda x, u, t: x @ x)
        ),
        ValueError,
        "goal",
    ),
    "penalty of nothing": (lambda: dc.penalty(3.0), TypeError, "constraint"),
    "barrier of nothing": (lambda: dc.log_barrier(None), TypeError, "constraint"),
    "goal NaN": (
        solve_with(stage_cost=dc.GoalCost(jnp.ones(3), jnp.array([NAN, 0]))),
        ValueError,
        "goal",
        "NaN",
    ),
    "NaN closed over": (
        solve_with(stage_cost=lambda x, u, t: x @ (jnp.array([NAN, 1.0]) * x) + u @ u),
        ValueError,
        "stage_cost",
        "NaN",
    ),
    # solvers
    "tolerance negative": (lambda: dc.DDP(tolerance=-1.0), ValueError, "tolerance"),
    "tolerance NaN": (lambda: dc.ILQR(tolerance=NAN), ValueError, "tolerance"),
    "tolerance text": (lambda: dc.ILQR(tolerance="tight"), TypeError, "tolerance"),
    "no iterations": (lambda: dc.DDP(max_iterations=0), ValueError, "max_iterations"),
    "a fraction of iterations": (lambda: dc.DDP(max_iterations=2.5), TypeError, "max_iterations"),
    # linear-quadratic problems
    "F a matrix": (lq(F=jnp.ones((2, 3))), ValueError, "F"),
    "F without controls": (lq(F=jnp.ones((4, 3, 3))), ValueError, "F"),
    "C for other stages": (lq(C=jnp.ones((5, 3, 3))), ValueError, "C"),
    "f of another size": (lq(f=jnp.ones((4, 3))), ValueError, "f"),
    "C_terminal of another size": (lq(C_terminal=jnp.eye(3)), ValueError, "C_terminal"),
    "c_terminal of another size": (lq(c_terminal=jnp.ones(3)), ValueError, "c_terminal"),
    "lqr of another problem": (lambda: dc.lqr(GOOD, X0), TypeError, "problem"),
    "lqr from another state": (
        lambda: dc.lqr(dc.LinearQuadraticProblem(**LQ), jnp.ones(3)),
        ValueError,
        "x0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name):
    act, kind, *words = CASES[name]
    with pytest.raises(kind) as caught:
        act()
    message = str(caught.value)
    for word in words:
        assert word in message, message
    raised_in = str(caught.traceback[-1].path)
    assert "diffcontrol" in raised_in, f"raised in {raised_in}, not by this library: {message}"
    assert len(message) < 400


@pytest.mark.parametrize("name", ["x0 NaN", "goal NaN", "bounds inverted by surgery"])
def test_known_bad_values_are_refused_whatever_throw_says(name):
    bad = {
        "x0 NaN": lambda: dc.solve(GOOD, [1.0, NAN], throw=False),
        "goal NaN": lambda: dc.solve(
            problem(stage_cost=dc.GoalCost(jnp.ones(3), jnp.array([NAN, 0]))), X0, throw=False
        ),
        "bounds inverted by surgery": lambda: dc.solve(
            eqx.tree_at(
                lambda p: p.control_bounds.lower,
                problem(control_bounds=dc.Bounds(-1.0, 1.0)),
                jnp.array(2.0),
            ),
            X0,
            throw=False,
        ),
    }
    with pytest.raises(ValueError):
        bad[name]()


def test_integers_are_welcome():
    solved = dc.solve(problem(control_bounds=dc.Bounds(-1, 1)), [1, 2])
    assert solved.states.dtype == jnp.float64 and solved.result == dc.RESULTS.successful


def test_problems_take_keywords_only():
    with pytest.raises(TypeError):
        dc.ControlProblem(lambda x, u, t: x, lambda x, u, t: 0.0, 3, 1)


def test_functions_that_fail_are_named():
    """Whatever a user's function raises when traced comes with its name and the shapes."""

    def unpacks_four(x, u, t):
        a, b, c, d = x
        return x

    def branches(x, u, t):
        return x if x[0] > 0 else -x

    for function in (unpacks_four, branches):
        problem = dc.ControlProblem(
            dynamics=function, stage_cost=lambda x, u, t: x @ x, horizon=3, control_size=1
        )
        with pytest.raises(ValueError, match=r"`dynamics` fails for x of shape \(3,\).*`x0`"):
            dc.solve(problem, jnp.zeros(3))
