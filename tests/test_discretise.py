"""Integration steps: order of accuracy, structure, parameters, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcontrol._discretise import discretise, euler, rk4, semi_implicit


class Oscillator(eqx.Module):
    """`q'' = -stiffness sin(q) + u`: nonlinear, `[q; v]`."""

    stiffness: jax.Array

    def __call__(self, x, u, t):
        return jnp.stack([x[1], -self.stiffness * jnp.sin(x[0]) + u[0]])


X0, U = jnp.array([1.0, 0.3]), jnp.array([0.2])


def advance(f, method, steps, duration=1.0):
    step = discretise(f, duration / steps, method)
    run = jax.jit(lambda x: jax.lax.fori_loop(0, steps, lambda t, x: step(x, U, t), x))
    return run(X0)


@pytest.mark.parametrize("method, order", [(euler, 1), (semi_implicit, 1), (rk4, 4)])
def test_order_of_accuracy(method, order):
    f = Oscillator(jnp.asarray(4.0))
    exact = advance(f, rk4, 4000)
    coarse, fine = (np.linalg.norm(advance(f, method, n) - exact) for n in (40, 80))
    assert fine > 1e-12
    np.testing.assert_allclose(np.log2(coarse / fine), order, atol=0.15)


def test_default_is_rk4():
    f = Oscillator(jnp.asarray(4.0))
    np.testing.assert_array_equal(discretise(f, 0.1)(X0, U, 0), discretise(f, 0.1, rk4)(X0, U, 0))


def test_rk4_of_a_linear_system_is_the_truncated_exponential():
    A = jnp.array([[0.0, 1.0], [-2.0, -0.3]])
    step = discretise(lambda x, u, t: A @ x, 0.1, rk4)
    hA = 0.1 * np.asarray(A)
    powers = [np.linalg.matrix_power(hA, k) for k in range(5)]
    expected = sum(power / factor for power, factor in zip(powers, (1, 1, 2, 6, 24), strict=True))
    np.testing.assert_allclose(jax.jacfwd(step)(X0, U, 0), expected, rtol=1e-14)


def test_semi_implicit_moves_positions_with_new_velocities():
    f = Oscillator(jnp.asarray(4.0))
    q, v = discretise(f, 0.1, semi_implicit)(X0, U, 0)
    v_expected = 0.3 + 0.1 * (-4.0 * np.sin(1.0) + 0.2)
    np.testing.assert_allclose([q, v], [1.0 + 0.1 * v_expected, v_expected], rtol=1e-14)


def test_semi_implicit_preserves_area_and_energy():
    f = Oscillator(jnp.asarray(4.0))
    jacobian = jax.jacfwd(discretise(f, 0.1, semi_implicit))(X0, U, 0)
    np.testing.assert_allclose(np.linalg.det(jacobian), 1.0, rtol=1e-13)
    energy = lambda x: 0.5 * x[1] ** 2 - 4.0 * jnp.cos(x[0]) - U[0] * x[0]
    change = {m: energy(advance(f, m, 2000, 100.0)) - energy(X0) for m in (euler, semi_implicit)}
    assert abs(change[semi_implicit]) < 0.2 < 2.0 < change[euler]


def test_f_sees_the_integer_stage_and_a_held_control():
    seen = []

    def f(x, u, t):
        seen.append((u, t))
        return x

    discretise(f, 0.1, rk4)(X0, U, 7)
    assert [t for _, t in seen] == [7] * 4
    assert all(u is U for u, _ in seen)


@pytest.mark.parametrize("method", [euler, semi_implicit, rk4])
def test_parameters_and_step_have_gradients(method):
    def last(step):
        return jnp.sum(step(step(X0, U, 0), U, 1) ** 2)

    make = lambda stiffness, dt: discretise(Oscillator(stiffness), dt, method)
    stiffness, dt = jnp.asarray(4.0), jnp.asarray(0.1)
    step = make(stiffness, dt)
    assert len(jax.tree.leaves(step)) == 2
    gradient = jax.grad(last)(step)
    h = 1e-6
    of_stiffness = (last(make(stiffness + h, dt)) - last(make(stiffness - h, dt))) / (2 * h)
    of_dt = (last(make(stiffness, dt + h)) - last(make(stiffness, dt - h))) / (2 * h)
    np.testing.assert_allclose(gradient.f.stiffness, of_stiffness, rtol=1e-8)
    np.testing.assert_allclose(gradient.dt, of_dt, rtol=1e-8)


def test_a_number_is_not_a_parameter():
    step = discretise(Oscillator(jnp.asarray(4.0)), 0.1)
    assert step.dt == 0.1 and jax.tree.leaves(step) == [4.0]
    # A batch of systems under plain vmap.
    many = jax.vmap(lambda k: discretise(Oscillator(k), 0.1))(jnp.array([1.0, 4.0]))
    states = jax.vmap(lambda step: step(X0, U, 0))(many)
    np.testing.assert_allclose(states[1], step(X0, U, 0), rtol=1e-14)


def test_single_precision_stays_single():
    x, u = X0.astype(jnp.float32), U.astype(jnp.float32)
    for method in (euler, semi_implicit, rk4):
        step = discretise(Oscillator(jnp.asarray(4.0, jnp.float32)), 0.1, method)
        assert step(x, u, 0).dtype == jnp.float32


def test_refuses_misuse_in_words():
    f = Oscillator(jnp.asarray(4.0))
    for arguments in ((f, 0.1, "rk4"), (None, 0.1), (f, "0.1"), (f, True)):
        with pytest.raises(TypeError):
            discretise(*arguments)
    for dt in (0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="positive step"):
            discretise(f, dt)
    with pytest.raises(ValueError, match="floating-point scalar"):
        discretise(f, jnp.ones(2))
    with pytest.raises(ValueError, match="equal halves"):
        discretise(lambda x, u, t: x, 0.1, semi_implicit)(jnp.zeros(3), U, 0)
    with pytest.raises(ValueError, match="shape of the state"):
        discretise(lambda x, u, t: x[0], 0.1)(X0, U, 0)
