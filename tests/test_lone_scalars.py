"""Scalars that are left scalars: which they are, and derivatives by them and by the others."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol._control_problem import stage_problem
from diffcontrol._lone_scalars import lone_scalars
from diffcontrol._plan_cost import _one_each, plan_cost, plan_costs

MATRIX = jnp.array([[0.1, 0.3, 0.0], [-0.2, 0.0, 0.1], [0.0, 0.2, -0.1]])
X = jnp.array([0.4, -0.3, 0.8])

# What is made of two scalars and three states -> whether each scalar is alone until it meets them.
MADE = {
    "products": (lambda a, b, x: a * x[0] + jnp.sin(a * b) / b * x[1], (True, True)),
    "one for every entry": (lambda a, b, x: a * x + jnp.stack([a, a, b]) * x, (True, True)),
    "nothing": (lambda a, b, x: a * x, (True, True)),
    "only themselves": (lambda a, b, x: (x, a * b), (True, True)),
    "a matrix": (lambda a, b, x: (a * MATRIX) @ x + b * x, (False, True)),
    "a matrix of what both make": (lambda a, b, x: (a * b * MATRIX) @ x, (False, False)),
    "an exponential": (lambda a, b, x: a * (jax.scipy.linalg.expm(b * MATRIX) @ x), (True, False)),
    "a function of its own": (lambda a, b, x: jax.jit(jnp.add)(a, b) * x, (False, False)),
    "a loop over the states": (
        lambda a, b, x: b * jax.lax.fori_loop(0, 3, lambda _, y: a * y, x),
        (False, True),
    ),
    "after they met": (lambda a, b, x: jnp.outer(a * x, b * x), (True, True)),
}


@pytest.mark.parametrize("name", MADE)
def test_scalars_are_followed_until_they_meet_the_states(name):
    function, expected = MADE[name]
    scalars = (jnp.array(0.7), jnp.array(1.3))
    found = lone_scalars(lambda scalars, x: function(*scalars, x), scalars, X, most=3)
    assert tuple(found) == expected


@pytest.mark.parametrize("name", ("one for every entry", "a matrix", "a loop over the states"))
def test_derivatives_of_plans_by_scalars_of_either_kind(name):
    """Of many plans at once, against those of each alone, which go another way."""
    function, _ = MADE[name]

    def problem(scalars):
        a, b, weight = scalars
        return stage_problem(
            dc.ControlProblem(
                dynamics=lambda x, u, t: x + 0.1 * jnp.sum(function(a, b, x)) + u,
                stage_cost=lambda x, u, t: weight * jnp.sum(x**2) + 0.5 * jnp.sum(u**2),
                horizon=4,
                control_size=1,
            ),
            X,
        )[0]

    plans = jax.random.normal(jax.random.key(0), (3, 4, 1))
    weights = jnp.array([1.0, -2.0, 0.5])
    together = lambda scalars: weights @ plan_costs(problem(scalars), X, plans, plans[0])
    alone = lambda scalars: (
        weights @ jnp.stack([plan_cost(problem(scalars), X, plan) for plan in plans])
    )
    scalars = jnp.array([0.7, 1.3, 2.0])
    derivatives = lambda of: jax.jit(lambda at: (jax.grad(of)(at), jax.hessian(of)(at)))(scalars)
    gradient, hessian = derivatives(together)
    expected, second = derivatives(alone)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(together))(scalars), expected, rtol=1e-12)
    np.testing.assert_allclose(hessian, second, rtol=1e-10, atol=1e-12)


def test_what_grows_with_time_has_met_no_plan():
    a, b = jnp.array(0.7), jnp.array(1.3)
    problem, _ = stage_problem(
        dc.ControlProblem(
            dynamics=lambda x, u, t: x + (a * t * MATRIX) @ x + b * t * u,
            stage_cost=lambda x, u, t: jnp.sum(x**2),
            horizon=4,
            control_size=1,
        ),
        X,
    )
    floats = eqx.filter(problem, eqx.is_inexact_array)
    each, shared = _one_each(problem, floats, X, jnp.zeros(1), 5)
    of = lambda tree: [leaf for leaf in jax.tree.leaves(tree) if leaf.size in (1, 5)]
    np.testing.assert_array_equal(of(each), [jnp.full(5, b)])
    np.testing.assert_array_equal(of(shared), [a])
