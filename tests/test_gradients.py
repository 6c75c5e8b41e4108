"""Derivatives of solutions: reverse, forward, second; against differences and other formulas.

Six functionals stand for a loss: one fixed random combination of the entries of each field of a
solution. Their derivatives with respect to every number of a problem are checked.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import diffcontrol as dc
from tests.problems import (
    BY_NAME,
    CASES,
    TIGHT,
    Pendulum,
    central_differences,
    no_change,
    rows,
    solution,
)

FIELDS = ("states", "controls", "costates", "multipliers", "gains", "cost")

# What these cases show is shown by others too, at less cost.
SLOW = ("pendulum_free", "cartpole", "tracking")
cases = pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if c.name in SLOW else []) for c in CASES],
    ids=repr,
)


def functionals(solved):
    """One random combination of each field, shape `(6,)`."""
    values = [getattr(solved, field) for field in FIELDS]
    weights = weights_of(*(value.shape for value in values))
    return jnp.stack([jnp.sum(w * value) for w, value in zip(weights, values, strict=True)])


def weights_of(*shapes):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in shapes]


def functionals_of_many(solutions):
    """The same in NumPy, of solutions stacked along the first axis."""
    values = [getattr(solutions, field) for field in FIELDS]
    weights = weights_of(*(value.shape[1:] for value in values))
    sums = [np.tensordot(v, w, w.ndim) for v, w in zip(values, weights, strict=True)]
    return np.stack(sums, axis=1)


def parameters(case):
    """Everything that a solution of the case depends on, as one vector, and the way back."""
    return ravel_pytree((case.theta, case.x0))


def functionals_of(case, adjoint=None):
    """The functionals as a function of the parameters."""
    unravel = parameters(case)[1]
    guess = solution(case.name).controls  # nothing but a shorter way
    solver = dc.DDP(tolerance=TIGHT)

    def function(flat):
        theta, x0 = unravel(flat)
        return functionals(
            dc.solve(case.build(theta), x0, solver, guess=guess, adjoint=adjoint, throw=False)
        )

    return function


@functools.cache
def jacobian_function(name):
    """Derivatives by reverse and by forward mode as a function of the parameters.

    Both come from one linearisation, which saves compiling the solver twice.
    """
    function = functionals_of(BY_NAME[name])

    def both(flat):
        _, push = jax.linearize(function, flat)
        pull = jax.linear_transpose(push, flat)
        reverse = jax.vmap(lambda w: pull(w)[0])(jnp.eye(len(FIELDS)))
        return reverse, jax.vmap(push, out_axes=1)(jnp.eye(flat.size))

    return jax.jit(both)


@functools.cache
def jacobians(name):
    """By reverse and by forward mode, shape `(6, parameters)`."""
    return jax.device_get(jacobian_function(name)(parameters(BY_NAME[name])[0]))


@functools.cache
def differences(name):
    """By solving again, shape `(6, parameters)`, and by how much estimates disagree."""
    case = BY_NAME[name]
    flat, unravel = parameters(case)
    base = rows(no_change(case), flat.size)
    # Steps relative to the size of a number, so that none changes its sign.
    scale = np.where(flat == 0, 1.0, np.abs(flat))
    theta, x0 = jax.vmap(unravel)(np.diag(scale))
    directions = jax.tree.map(np.zeros_like, base)
    directions = eqx.tree_at(lambda c: (c.theta, c.x0), directions, (theta, x0))
    found = central_differences(case, base, directions, functionals_of_many)
    return found.value.T / scale, found.spread.T / scale


def leaves(case):
    """Names of the leaves of the parameters, and where each lies in the flat vector."""
    stop = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path((case.theta, case.x0)):
        start, stop = stop, stop + leaf.size
        yield ("x0" if path[0].idx else path[1].key), slice(start, stop)


@cases
def test_reverse_equals_differences(case):
    reverse, _ = jacobians(case.name)
    reference, spread = differences(case.name)
    largest = np.maximum(np.abs(reference).max(axis=1), 1e-6)
    for name, part in leaves(case):
        size = np.maximum(np.abs(reference[:, part]).max(axis=1), 1e-3 * largest)
        assert np.all(spread[:, part].max(axis=1) <= 3e-6 * size), f"{name}: no plateau"
        error = np.abs(reverse[:, part] - reference[:, part]).max(axis=1) / size
        assert np.all(error <= 1e-5), f"{name}: {dict(zip(FIELDS, error, strict=True))}"


@cases
def test_the_reference_is_not_zero(case):
    reference, _ = differences(case.name)
    largest = np.abs(reference).max(axis=1)
    if solution(case.name).multipliers.any():
        assert np.all(largest > 1e-3)
    for name, part in leaves(case):
        relative = np.abs(reference[:, part]).max(axis=1)[largest > 0] / largest[largest > 0]
        assert relative.max() > 1e-4, f"nothing depends on {name}"


@cases
def test_forward_equals_reverse(case):
    reverse, forward = jacobians(case.name)
    scale = np.abs(reverse).max(axis=1, keepdims=True)
    np.testing.assert_allclose(forward, reverse, rtol=0, atol=1e-10 * scale.max())
    # The dot-product identity, <J v, w> = <v, J' w>.
    rng = np.random.default_rng(1)
    for _ in range(5):
        v, w = rng.normal(size=forward.shape[1]), rng.normal(size=len(FIELDS))
        left, right = w @ (forward @ v), (w @ reverse) @ v
        assert abs(left - right) <= 1e-9 * np.abs(w @ reverse) @ np.abs(v)


def test_gradient_with_respect_to_the_problem_itself():
    """Every array in a problem has a gradient, and they chain to those of the parameters."""
    case = BY_NAME["pendulum"]

    def loss(problem, x0):
        return functionals(dc.solve(problem, x0, dc.DDP(tolerance=TIGHT)))[:2].sum()

    gradient = eqx.filter_jit(eqx.filter_grad(loss))(case.problem, case.x0)
    assert jax.tree.structure(gradient) == jax.tree.structure(
        eqx.filter(case.problem, eqx.is_inexact_array)
    )
    reverse, _ = jacobians(case.name)
    expected, _ = parameters(case)[1](jnp.asarray(reverse[:2].sum(axis=0)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9)
    close(gradient.dynamics.parameters, expected["parameters"])
    close(gradient.stage_cost.weights, expected["weights"])
    close(gradient.stage_cost.goal, expected["goal"])
    close(gradient.control_bounds.lower, expected["lower"])
    close(gradient.control_bounds.upper, expected["upper"])


@functools.cache
def smooth_loss(name):
    """A scalar of a case and its parameters; the squares give it curvature of its own."""
    function = functionals_of(BY_NAME[name])
    return lambda flat: jnp.sum(jnp.sin(function(flat)))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(case.name, marks=[] if case.name == "pendulum" else [pytest.mark.slow])
        for case in CASES
    ],
)
def test_hessian_vector_product_equals_differences_of_gradients(name):
    flat, _ = parameters(BY_NAME[name])
    gradient = jax.grad(smooth_loss(name))
    direction = jnp.asarray(np.random.default_rng(2).normal(size=flat.shape))
    direction = direction * jnp.where(jnp.isfinite(flat), jnp.maximum(0.1, jnp.abs(flat)), 0.0)
    product = jax.jit(lambda flat, v: jax.jvp(gradient, (flat,), (v,)))
    _, exact = product(flat, direction)

    steps = 1e-3 * 0.5 ** np.arange(6)
    moved = lambda s: np.asarray(product(flat + s * direction, direction)[0])
    central = np.stack([(moved(s) - moved(-s)) / (2 * s) for s in steps])
    better = (4 * central[1:] - central[:-1]) / 3
    gaps = np.abs(np.diff(better, axis=0)).max(axis=1)
    reference = better[1:][gaps.argmin()]
    scale = np.abs(reference).max()
    assert gaps.min() <= 1e-6 * scale, "no plateau"
    np.testing.assert_allclose(exact, reference, rtol=0, atol=1e-5 * scale)


@functools.cache
def batched_gradient(name):
    function = functionals_of(BY_NAME[name])
    return jax.jit(jax.vmap(jax.grad(lambda flat: function(flat).sum())))


def three_samples(name):
    flat, _ = parameters(BY_NAME[name])
    return flat * (1 + 1e-3 * np.random.default_rng(3).normal(size=(3, flat.size)))


def test_vmap_of_gradients_equals_loop():
    many = three_samples("two_controls")
    together = batched_gradient("two_controls")(many)
    for k in range(3):
        reverse, _ = jacobian_function("two_controls")(many[k])
        alone = np.asarray(reverse).sum(axis=0)
        np.testing.assert_allclose(together[k], alone, rtol=0, atol=1e-9 * np.abs(alone).max())


def test_a_nan_sample_leaves_the_gradients_of_others_alone():
    many = three_samples("two_controls")
    gradient = batched_gradient("two_controls")
    good, bad = gradient(many), gradient(many.at[1, 0].set(jnp.nan))
    assert np.array_equal(good[0], bad[0]) and np.array_equal(good[2], bad[2])
    assert np.isnan(bad[1]).any(), "a sample without a solution must not have a gradient of zero"


# Gradients of sum_t w_t (u_t + speed_t), w = linspace(1, 2, T), of the papers' pendulum with
# T = 10 with respect to gravity, mass, length: independent computations with differences and with
# the reference implementation of DiffMPC whose linearisation keeps its graph.
# start (angle [rad], speed [rad/s]), parameters, exact, Gauss-Newton, digits given
PUBLISHED = {
    "one start": (
        [(0.6, 0.3)],
        (10, 1, 1),
        (2.637, 27.188, 28.002),
        (2.229, 23.846, 25.404),
        None,
        6e-4,
    ),
    "one start, bounded": (
        [(0.6, 0.3)],
        (10, 1, 1),
        (3.729, 17.387, -2.514),
        (3.512, 16.593, -1.930),
        1.0,
        6e-4,
    ),
    "two starts": (
        [(0.6, 0.3), (-0.4, 0.1)],
        (10, 1, 1),
        (1.1787, 10.6250, 9.4627),
        (0.8664, 8.1177, 7.5710),
        None,
        6e-5,
    ),
    "two starts, far parameters": (
        [(0.6, 0.3), (-0.4, 0.1)],
        (15, 3, 0.5),
        (12.93, 18.44, -166.58),
        (4.57, -0.30, -140.7),
        None,
        6e-2,
    ),
}


@functools.cache
def published_gradient(bounded):
    """Exact and Gauss-Newton gradients, summed over starts of which some count."""

    def problem(p, bound):
        return dc.ControlProblem(
            dynamics=Pendulum(p),
            stage_cost=dc.QuadraticCost(jnp.diag(jnp.array([1, 1, 0.1, 0.5])), [-1.0, 0, 0, 0]),
            horizon=10,
            control_size=1,
            control_bounds=dc.Bounds(-bound, bound),
        )

    def loss(p, start, bound, adjoint):
        angle, speed = start
        x0 = jnp.stack([jnp.cos(angle), jnp.sin(angle), speed])
        solved = dc.solve(problem(p, bound), x0, adjoint=adjoint)
        return jnp.linspace(1, 2, 10) @ (solved.controls[:, 0] + solved.states[:-1, 2])

    def gradient(p, start, bound):
        return tuple(
            jax.grad(loss)(p, start, bound, adjoint)
            for adjoint in (dc.ImplicitAdjoint(), dc.GaussNewtonAdjoint())
        )

    return jax.jit(gradient)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_table(name):
    starts, p, exact, gauss_newton, bound, tolerance = PUBLISHED[name]
    bound = np.inf if bound is None else bound
    each = [
        published_gradient(None)(jnp.array(p, float), jnp.array(start), bound) for start in starts
    ]
    ours = np.sum(each, axis=0)
    np.testing.assert_allclose(ours[0], exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(ours[1], gauss_newton, rtol=0, atol=tolerance)


def test_gauss_newton_is_exact_for_linear_dynamics():
    case = BY_NAME["double_integrator"]
    flat, _ = parameters(case)
    function = functionals_of(case, dc.GaussNewtonAdjoint())
    same = jax.jit(jax.jacrev(lambda flat: function(flat)[:2]))
    reverse, _ = jacobians("double_integrator")
    np.testing.assert_allclose(same(flat), reverse[:2], atol=1e-10 * np.abs(reverse[:2]).max())


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("pendulum", dc.ILQR(tolerance=TIGHT, max_iterations=25)),
        ("two_controls", dc.DDP(tolerance=TIGHT, max_iterations=12)),
    ],
)
@pytest.mark.slow
def test_unrolled_equals_implicit_at_convergence(name, solver):
    """From zero controls, so that there are iterations to differentiate through."""
    case = BY_NAME[name]
    flat, unravel = parameters(case)

    def few(flat):
        theta, x0 = unravel(flat)
        # One bare step from a converged point is already right; the frozen steps must not harm.
        solved = dc.solve(case.build(theta), x0, solver, adjoint=dc.UnrolledAdjoint(), throw=False)
        return functionals(solved)

    unrolled = jax.jit(jax.jacrev(few))(flat)
    reverse, _ = jacobians(name)
    scale = np.abs(reverse).max(axis=1, keepdims=True)
    np.testing.assert_allclose(unrolled / scale, reverse / scale, rtol=0, atol=1e-6)


def fixed_point_derivative(case, held):
    """DiLQR: the derivative of the fixed point of one undamped iLQR step, all dense.

    At a trajectory `z = (x, u)` the step solves the quadratic programme of Gauss-Newton curvature
    and linearised dynamics, with the clamped controls at their bounds, and gives `z+`. With
    `z+ = Phi(z, theta)` the fixed point moves by `(I - dPhi/dz) dz = dPhi/dtheta`.
    """
    flat, unravel = parameters(case)
    solved = solution(case.name)
    T, m = solved.controls.shape
    n = case.x0.shape[0]
    at_upper = np.asarray(solved.multipliers) > 0

    def step(z, flat):
        theta, x0 = unravel(flat)
        problem = case.build(theta)
        bounds = dc.Bounds() if problem.control_bounds is None else problem.control_bounds
        lower, upper = (jnp.broadcast_to(b, (T, m)) for b in (bounds.lower, bounds.upper))
        clamped_to = jnp.where(at_upper, upper, lower)

        def parts(v):
            x = v[: (T + 1) * n].reshape(T + 1, n)
            u = jnp.where(held, clamped_to, v[(T + 1) * n :].reshape(T, m))
            return x, u

        def cost(v):
            x, u = parts(v)
            running = jax.vmap(problem.stage_cost)(x[:-1], u, jnp.arange(T)).sum()
            return running + (problem.terminal_cost(x[-1]) if problem.terminal_cost else 0.0)

        def gaps(v):
            x, u = parts(v)
            following = jax.vmap(problem.dynamics)(x[:-1], u, jnp.arange(T))
            return (x - jnp.concatenate([x0[None], following])).ravel()

        A, c = jax.jacobian(gaps)(z), gaps(z)
        H, g = jax.hessian(cost)(z), jax.grad(cost)(z)
        # A clamped control has no row but its own: it goes to its bound.
        own = jnp.concatenate([jnp.zeros((T + 1) * n), held.ravel().astype(float)])
        to_bound = jnp.concatenate([z[: (T + 1) * n], parts(z)[1].ravel()]) - z
        H = H + jnp.diag(own)
        g = jnp.where(own > 0, -to_bound, g)
        kkt = jnp.block([[H, A.T], [A, jnp.zeros((len(c), len(c)))]])
        return z + jnp.linalg.solve(kkt, -jnp.concatenate([g, c]))[: len(z)]

    z = jnp.concatenate([solved.states.ravel(), solved.controls.ravel()])
    Phi_z, Phi_theta = jax.jit(jax.jacobian(step, argnums=(0, 1)))(z, flat)
    np.testing.assert_allclose(jax.jit(step)(z, flat), z, atol=1e-9)
    return np.linalg.solve(np.eye(len(z)) - Phi_z, Phi_theta)


@pytest.mark.parametrize(
    "name",
    [
        "closures",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("pendulum", "two_controls")),
    ],
)
def test_equals_the_fixed_point_formula_of_dilqr(name):
    case = BY_NAME[name]
    held = solution(name).multipliers != 0
    assert held.any() == (name != "closures")
    d_z = fixed_point_derivative(case, held)
    x, u = solution(name).states, solution(name).controls
    w_x, w_u = weights_of(x.shape, u.shape)
    reference = np.stack([w_x.ravel() @ d_z[: x.size], w_u.ravel() @ d_z[x.size :]])
    for ours in jacobians(name):
        scale = np.abs(reference).max(axis=1, keepdims=True)
        np.testing.assert_allclose(ours[:2] / scale, reference / scale, rtol=0, atol=1e-9)


def test_gradient_with_respect_to_the_guess_is_zero():
    case = BY_NAME["pendulum_free"]
    loss = lambda guess: functionals(dc.solve(case.problem, case.x0, guess=guess)).sum()
    guess = jnp.full((10, 1), 0.3)
    assert np.all(jax.jit(jax.grad(loss))(guess) == 0)


class TestStatistics:
    """They pass in forward mode with zero tangents and refuse a cotangent."""

    case = BY_NAME["pendulum_free"]

    def stationarity(self, x0):
        return dc.solve(self.case.problem, x0).stats.stationarity

    def test_forward(self):
        _, tangent = jax.jit(lambda x0: jax.jvp(self.stationarity, (x0,), (jnp.ones_like(x0),)))(
            self.case.x0
        )
        assert tangent == 0

    def test_reverse(self):
        with pytest.raises(TypeError, match="solution.stats"):
            jax.grad(self.stationarity)(self.case.x0)

    def test_a_loss_that_leaves_them_out_is_served(self):
        def loss(x0):
            solved = dc.solve(self.case.problem, x0)
            return solved.cost, solved.stats

        gradient, stats = jax.jit(jax.grad(loss, has_aux=True))(self.case.x0)
        expected = solution("pendulum_free").costates[0]
        np.testing.assert_allclose(gradient, expected, atol=1e-7)
        assert stats.iterations > 0


def test_bounds_that_share_an_array():
    """One number, used as both sides and again inside the cost, gathers all its gradients."""

    def loss(b):
        problem = dc.ControlProblem(
            dynamics=lambda x, u, t: x + 0.5 * jnp.sin(u) + 0.1 * b,
            stage_cost=lambda x, u, t: (x - 2 * b) @ (x - 2 * b) + 0.1 * u @ u,
            horizon=4,
            control_size=1,
            control_bounds=dc.Bounds(-b, b),
        )
        solved = dc.solve(problem, jnp.array([-1.0]), dc.DDP(tolerance=TIGHT))
        return jnp.sum(jnp.arange(5) * solved.states[:, 0]) + solved.cost

    both = jax.jit(jax.value_and_grad(loss))
    h = 1e-4
    central = (both(0.3 + h)[0] - both(0.3 - h)[0]) / (2 * h)
    np.testing.assert_allclose(both(0.3)[1], central, rtol=1e-6)


def test_equal_bounds_move_together():
    """A pair of equal bounds is a parameter; its two sides have gradients that add up to its."""

    def loss(lower, upper):
        problem = dc.ControlProblem(
            dynamics=lambda x, u, t: x + 0.3 * jnp.sin(x + u),
            stage_cost=lambda x, u, t: x @ x + 0.1 * u @ u,
            horizon=4,
            control_size=1,
            control_bounds=dc.Bounds(lower, upper),
        )
        solved = dc.solve(problem, jnp.array([1.0]), dc.DDP(tolerance=TIGHT))
        return functionals(solved).sum()

    side = jnp.array([[-jnp.inf], [0.4], [-0.6], [-jnp.inf]])
    lower, upper = side, jnp.where(jnp.isfinite(side), side, jnp.inf)
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    _, (d_lower, d_upper) = both(lower, upper)
    assert np.all(d_lower[::3] == 0) and np.all(d_upper[::3] == 0)
    value = jax.jit(loss)
    h = 1e-4
    for t in (1, 2):
        moved = [value(lower.at[t, 0].add(s), upper.at[t, 0].add(s)) for s in (h, -h)]
        central = (moved[0] - moved[1]) / (2 * h)
        np.testing.assert_allclose(d_lower[t, 0] + d_upper[t, 0], central, rtol=1e-6)


@pytest.mark.parametrize(
    "solver, adjoint",
    [
        pytest.param(dc.ILQR, dc.UnrolledAdjoint(), marks=pytest.mark.slow),
        (dc.DDP, dc.ImplicitAdjoint()),
    ],
    ids=["unrolled", "implicit"],
)
def test_pullback_of_a_batch_apart_from_its_forward_pass(solver, adjoint):
    """As training loops and benchmarks do it: residuals out of one program, into another."""
    problem = dc.systems.pendulum.problem(horizon=6)
    x0s = jax.vmap(dc.systems.pendulum.start)(jax.random.split(jax.random.key(0), 3)).astype(float)

    def loss(problem):
        run = lambda x0: dc.solve(
            problem, x0, solver(max_iterations=12), adjoint=adjoint, throw=False
        )
        solutions = jax.vmap(run)(x0s)
        return jnp.sum(solutions.controls**2) + jnp.sum(solutions.gains**2)

    pull = jax.jit(lambda problem: jax.vjp(loss, problem)[1])(problem)
    (apart,) = jax.jit(lambda pull: pull(jnp.ones(())))(pull)
    together = jax.jit(jax.grad(loss))(problem)
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
