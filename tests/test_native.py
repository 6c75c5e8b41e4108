"""The compiled kernel returns what the kernel in JAX returns, however it is called."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol._kernel import box_sweep, native, riccati
from diffcontrol._kernel.box_sweep import Expansion
from diffcontrol._kernel.riccati import RightHandSide, System
from diffcontrol.systems import cartpole

pytestmark = pytest.mark.skipif(native.library() is None, reason="no compiled kernel here")

# (n, m, T, samples): lanes with and without a remainder, sizes unrolled and not, rows.
SIZES = [(1, 1, 1, 1), (4, 1, 9, 11), (3, 3, 5, 8), (6, 2, 7, 3), (12, 4, 6, 5), (17, 3, 2, 2)]
TOLERANCE = {"float64": 1e-12, "float32": 2e-4}


def data(n, m, T, samples, dtype):
    rng = np.random.default_rng(n + 10 * m)
    nm = n + m
    root = rng.standard_normal((samples, T, nm, nm)) / np.sqrt(nm)
    D = 0.3 * rng.standard_normal((samples, T, nm, nm))
    D[::2] *= 0.01
    F = 0.5 * rng.standard_normal((samples, T, n, nm)) / np.sqrt(n)
    F[..., :n] += 0.6 * np.eye(n)
    arrays = {
        "H": root @ root.swapaxes(-1, -2) + 0.2 * np.eye(nm),
        "D": D + D.swapaxes(-1, -2),
        "H_N": np.broadcast_to(np.eye(n), (samples, n, n)),
        "F": F,
        "g": rng.standard_normal((samples, T, nm)),
        "g_N": rng.standard_normal((samples, n)),
        "r": rng.standard_normal((samples, T + 1, n)),
        "lower": -rng.random((samples, T, m)),
        "upper": rng.random((samples, T, m)),
        "mu": 0.1 * rng.random(samples),
        "worthwhile": 0.3 * rng.random(samples),
    }
    out = {name: jnp.asarray(array, dtype) for name, array in arrays.items()}
    out["free"] = jnp.asarray(rng.random((samples, T, m)) < 0.7)
    return out


def system_of(d):
    return System(d["H"], d["H_N"], d["F"], d["free"])


def right_hand_side_of(d):
    return RightHandSide(d["g"], d["g_N"], d["r"])


def expansion_of(d):
    return Expansion(*(d[k] for k in ("H", "D", "H_N", "F", "g", "g_N", "lower", "upper")))


def agree(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * float(jnp.abs(y).max()))


@pytest.mark.parametrize(
    "size, dtype",
    [
        # The largest take long to compile in JAX.
        pytest.param(
            size, dtype, marks=pytest.mark.slow if max(size) > 10 and dtype == "float32" else ()
        )
        for size in SIZES
        for dtype in ("float64", "float32")
    ],
    ids=str,
)
def test_compiled_equals_jax(size, dtype):
    d = data(*size, dtype)

    def both(factor, solve, sweep):
        def run(d):
            system = system_of(d)
            factors = factor(system)
            rhs = right_hand_side_of(d)
            wanted = jnp.asarray(True)
            policy = sweep(expansion_of(d), d["mu"], d["worthwhile"], wanted)
            return factors, solve(system, factors, rhs), policy

        return jax.jit(jax.vmap(run))(d)

    compiled = both(riccati.factor, riccati.solve, box_sweep.sweep)
    in_jax = both(riccati.factor_in_jax, riccati.solve_in_jax, box_sweep.sweep_in_jax)
    agree(compiled, in_jax, TOLERANCE[dtype])


def test_arguments_that_are_not_batched_and_batches_of_batches():
    d = data(4, 1, 9, 6, "float64")
    system = system_of(d)
    shared = System(system.H[0], system.H_N[0], system.F[0], system.free[0])
    grid = lambda leaf: leaf.reshape(2, 3, *leaf.shape[1:])

    def solve(F, system, rhs):
        system = System(system.H, system.H_N, F, system.free)
        return riccati.solve(system, riccati.factor(system), rhs)

    # F varies with the inner axis only, the right-hand side with both, the rest with none.
    inner = jax.vmap(solve, in_axes=(0, None, 0))
    nested = jax.jit(jax.vmap(inner, in_axes=(None, None, 0)))
    rhs = right_hand_side_of(d)
    found = nested(system.F[:3], shared, jax.tree.map(grid, rhs))
    for i in range(2):
        for j in range(3):
            one = jax.tree.map(lambda leaf, k=3 * i + j: leaf[k], rhs)
            expected = jax.jit(solve)(system.F[j], shared, one)
            agree(jax.tree.map(lambda leaf, at=(i, j): leaf[at], found), expected, 1e-13)


def test_unwanted_sweeps_leave_the_others_alone():
    d = data(4, 1, 9, 11, "float64")
    sweep = jax.jit(jax.vmap(box_sweep.sweep))
    everyone = sweep(expansion_of(d), d["mu"], d["worthwhile"], jnp.ones(11, bool))
    some = sweep(expansion_of(d), d["mu"], d["worthwhile"], jnp.arange(11) % 3 == 0)
    take = lambda tree: jax.tree.map(lambda leaf: leaf[::3], tree)
    agree(take(some), take(everyone), 1e-13)
    assert not np.any(some.K[1])


def test_derivatives_are_those_of_the_recursion():
    d = data(3, 1, 4, 1, "float64")
    system = jax.tree.map(lambda leaf: leaf[0], system_of(d))
    loss = lambda factor: (
        lambda F: jnp.sum(factor(System(system.H, system.H_N, F, system.free)).K ** 2)
    )
    compiled, in_jax = loss(riccati.factor), loss(riccati.factor_in_jax)
    agree(jax.grad(compiled)(system.F), jax.grad(in_jax)(system.F), 1e-12)


def test_wrong_shapes_are_refused_and_nothing_is_touched():
    d = data(4, 1, 9, 2, "float64")
    call = jax.ffi.ffi_call(
        "diffcontrol_solve",
        [jax.ShapeDtypeStruct(s, "float64") for s in ((10, 4), (9, 1), (10, 4))],
    )
    zeros = lambda *shape: jnp.zeros(shape)
    good = [d["F"][0], d["free"][0], zeros(9, 1, 4), zeros(10, 4, 4), jnp.ones((9, 1, 1))]
    good += [d["g"][0], d["g_N"][0], d["r"][0]]
    jax.block_until_ready(call(*good))
    for i in range(len(good)):
        bad = list(good)
        bad[i] = bad[i][:-1]
        with pytest.raises(jax.errors.JaxRuntimeError, match="wrong shape"):
            jax.block_until_ready(call(*bad))
    with pytest.raises(jax.errors.JaxRuntimeError, match="types disagree"):
        jax.block_until_ready(call(good[0].astype("float32"), *good[1:]))


def test_threads_change_nothing():
    d = data(12, 4, 40, 40, "float64")
    factor = jax.jit(jax.vmap(riccati.factor))
    try:
        dc.set_threads(1)
        alone = jax.block_until_ready(factor(system_of(d)))
        dc.set_threads(4)
        for _ in range(5):
            for a, b in zip(
                jax.tree.leaves(alone), jax.tree.leaves(factor(system_of(d))), strict=True
            ):
                np.testing.assert_array_equal(a, b)
    finally:
        dc.set_threads(0)
    with pytest.raises(ValueError, match="negative"):
        dc.set_threads(-1)
    with pytest.raises(TypeError):
        dc.set_threads(1.5)


SCRIPT = """
import jax
jax.config.update("jax_enable_x64", True)
import diffcontrol as dc
from diffcontrol._kernel import native
from diffcontrol.systems import pendulum
print(native.description())
solution = jax.jit(lambda x0: dc.solve(pendulum.problem(horizon=5), x0))
print(float(solution(pendulum.start(jax.random.key(0)).astype(float)).cost))
"""


@pytest.mark.parametrize(
    "variables",
    [
        {"DIFFCONTROL_INSTRUCTION_SET": "avx2"},
        {"DIFFCONTROL_INSTRUCTION_SET": "portable"},
        {"DIFFCONTROL_KERNEL": "jax"},
    ],
    ids=lambda variables: next(iter(variables.values())),
)
def test_other_kernels_give_the_same(variables):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    kernel, cost = run.stdout.splitlines()
    assert kernel.lower().endswith(next(iter(variables.values()))) or kernel.startswith("JAX")
    problem = dc.systems.pendulum.problem(horizon=5)
    x0 = dc.systems.pendulum.start(jax.random.key(0)).astype(float)
    assert float(cost) == pytest.approx(float(dc.solve(problem, x0).cost), rel=1e-12)


@pytest.mark.slow
def test_a_batch_longer_than_the_slots_equals_the_loop():
    """Whoever finishes leaves its slot to the next; the answers stay in their places."""
    problem = cartpole.problem(horizon=8)
    x0s = jax.vmap(cartpole.start)(jax.random.split(jax.random.key(0), 42)).astype(float)
    x0s = x0s.at[7].set(jnp.nan)
    solve = lambda x0: dc.solve(problem, x0, throw=False)
    batch = jax.jit(jax.vmap(solve))(x0s)
    nested = jax.jit(jax.vmap(jax.vmap(solve)))(x0s.reshape(2, 21, -1))
    one = jax.jit(solve)
    for i in (0, 5, 7, 20, 41):
        alone = one(x0s[i])
        for many in (batch, jax.tree.map(lambda leaf: leaf.reshape(42, *leaf.shape[2:]), nested)):
            np.testing.assert_allclose(many.controls[i], alone.controls, atol=1e-7)
            assert int(many.stats.iterations[i]) == int(alone.stats.iterations)
    broken = jax.tree.map(lambda leaf: leaf[7], batch.result)
    assert broken == dc.RESULTS.invalid_input
