"""The kernel of logarithmic depth against the sequential recursion."""

import contextlib
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from diffcontrol._kernel import associative, riccati
from diffcontrol._kernel.riccati import System, Unknowns

# (n, m, T): among them one stage, and more controls than states, beyond the unrolled Cholesky.
# Compiling takes all the time.
SMALL = (2, 1, 7)
LARGER = [(2, 9, 3), (4, 2, 20), (5, 1, 33), (12, 4, 50)]
SIZES = [(1, 1, 1), SMALL, *(pytest.param(size, marks=pytest.mark.slow) for size in LARGER)]
KINDS = ("convex", "indefinite states", "cheap controls", "unstable")
PER_KIND = 5
BATCH = PER_KIND * len(KINDS)


def random_systems(rng, kind, n, m, T):
    """New matrices with cross terms at every stage, of a problem that is strictly convex in the
    controls; masks of controls that are random, none and all free."""
    roots = rng.normal(size=(PER_KIND, T, n + m, n + m)) / np.sqrt(n + m)
    H = roots @ roots.swapaxes(2, 3) + 0.1 * np.eye(n + m)
    F = rng.normal(size=(PER_KIND, T, n, n + m)) / np.sqrt(n)
    root_N = rng.normal(size=(PER_KIND, n, n))
    H_N = root_N @ root_N.swapaxes(1, 2)
    if kind == "cheap controls":
        scale = np.concatenate([np.ones(n), np.full(m, 1e-4)])
        H = H * scale[:, None] * scale
    if kind == "unstable":
        F[..., :n] *= 2
    if kind == "indefinite states":
        # Less x' P x at every stage, and its value at the next one more: that adds up to nothing.
        roots_P = rng.normal(size=(PER_KIND, T + 1, n, n))
        P = 3 * roots_P @ roots_P.swapaxes(2, 3)
        H = H + F.swapaxes(2, 3) @ P[:, 1:] @ F
        H[..., :n, :n] -= P[:, :-1]
        H_N = H_N - P[:, -1]
        assert np.linalg.eigvalsh(H[..., :n, :n]).min() < -1
    free = rng.random((PER_KIND, T, m)) < 0.7
    free[-2], free[-1] = False, True
    return System(*map(jnp.asarray, (H, H_N, F, free)))


@functools.cache
def systems(n, m, T):
    """A batch, `PER_KIND` systems of every kind."""
    rng = np.random.default_rng([n, m, T])
    every = [random_systems(rng, kind, n, m, T) for kind in KINDS]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *every)


def random_rows(system):
    """Rows of the KKT system, those of held controls zero."""
    rng = np.random.default_rng(0)
    batch, T, n, _ = system.F.shape
    shapes = (batch, T + 1, n), system.free.shape, (batch, T + 1, n)
    x, u, costate = (jnp.asarray(rng.normal(size=shape), system.F.dtype) for shape in shapes)
    return Unknowns(x, jnp.where(system.free, u, 0.0), costate)


@jax.jit
@jax.vmap
def compare_compiled(system, rows):
    rhs = riccati.right_hand_side(rows)
    factors, in_turn = associative.factor(system), riccati.factor_in_jax(system)
    solved = associative.solve(system, factors, rhs)
    residual = jax.tree.map(jnp.subtract, riccati.multiply(system, solved), rows)
    solved_in_turn = riccati.solve_in_jax(system, in_turn, rhs)
    return associative.applicable(system), factors, in_turn, solved, solved_in_turn, residual


@contextlib.contextmanager
def patched(**settings):
    """Without the fallback: `factor` answers NaN where it would take it."""
    nan_instead = lambda _: (
        lambda _, factors, right: jax.tree.map(
            lambda leaf: jnp.where(right, leaf, jnp.nan), factors
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_replaced_unless_right": nan_instead, **settings}.items():
            patch.setattr(associative, name, value)
        yield


def compare(system, rows):
    """Both kernels on a batch, without the fallback.

    Returns whether the kernel is applicable; the factors, then the solution, each by this kernel
    and then in turn; and the residual.
    """
    with patched():
        return compare_compiled(system, rows)


def assert_agree(seen, expected, tolerance=1e-9):
    """Sample by sample, relative to the largest entry of the array."""
    for a, b in zip(jax.tree.leaves(seen), jax.tree.leaves(expected), strict=True):
        scale = np.abs(b).max(axis=tuple(range(1, b.ndim)), keepdims=True)
        scale = np.where(scale == 0, 1, scale)
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_the_recursion(size):
    system = systems(*size)
    rows = random_rows(system)
    applicable, factors, in_turn, solved, solved_in_turn, residual = compare(system, rows)
    assert np.all(applicable)
    assert np.all(np.asarray(in_turn.pivots) > 0)
    assert_agree(factors, in_turn)
    np.testing.assert_array_equal(factors.V, factors.V.swapaxes(2, 3))
    assert_agree(solved, solved_in_turn)
    assert np.all(np.asarray(solved.u)[~np.asarray(system.free)] == 0)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves((solved, rows)))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(residual)) <= 1e-11 * largest


def test_newton_steps_repair_rounding_and_no_more():
    """They would also repair a wrong element. Where nothing is badly conditioned none is needed."""
    system = systems(*SMALL)
    with patched(_NEWTON_STEPS=0, _ROUNDINGS=1000):
        factors = jax.jit(jax.vmap(lambda system: associative.factor(system)))(system)
    unfinished = np.isnan(factors.K).any(axis=(1, 2, 3))
    cheap = np.arange(BATCH) // PER_KIND == KINDS.index("cheap controls")
    assert not np.any(unfinished & ~cheap)
    assert np.any(unfinished & cheap)


@pytest.mark.slow
def test_single_precision():
    single = lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == float else leaf
    ordinary = slice(2 * PER_KIND)  # cheap controls are beyond this precision
    system = jax.tree.map(lambda leaf: single(leaf[ordinary]), systems(*SMALL))
    _, factors, in_turn, solved, solved_in_turn, _ = compare(system, random_rows(system))
    assert {leaf.dtype for leaf in jax.tree.leaves((factors, solved))} == {jnp.dtype("float32")}
    assert_agree(factors, in_turn, 1e-4)
    assert_agree(solved, solved_in_turn, 1e-4)


def test_unsymmetric_hessians_are_read_through_their_symmetric_part():
    system = systems(*SMALL)
    rows = random_rows(system)
    skew = np.random.default_rng(0).normal(size=system.H.shape)
    skew = 1e-3 * (skew - skew.swapaxes(2, 3))
    twisted = System(system.H + skew, system.H_N, system.F, system.free)
    assert_agree(compare(twisted, rows)[1], compare(system, rows)[1])


def peculiar():
    """Problems of the size of `SMALL`: two states that stay, one of them pushed by the control.

    The stages 4 and 5 are joined early, through the number `1 + curvature`; the end makes up for
    what curvature is negative.
    """
    n, m, T = SMALL
    F = jnp.tile(jnp.concatenate([jnp.eye(n), jnp.eye(n, m)], axis=1), (T, 1, 1))
    H = jnp.tile(jnp.eye(n + m), (T, 1, 1))

    def one(curvature, control_cost, end):
        changed = H.at[5, 0, 0].set(curvature).at[3, n, n].set(control_cost)
        return System(changed, end * jnp.eye(n), F, jnp.ones((T, m), bool))

    every = [
        one(1e-6 - 1, 1, 1),  # badly conditioned
        one(-1, 1, 1),  # cannot be joined
        one(1, 0, 1),  # a control without a cost
        one(1, -0.1, 1),  # a control that is rewarded
        one(1, 1, -10),  # a saddle
        one(1, 1, jnp.nan),
    ]
    every += [one(1, 1, 1)] * (BATCH - len(every))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)


def test_falls_back_where_it_must_and_only_there():
    system = peculiar()
    applicable, alone, in_turn, *_ = compare(system, random_rows(system))
    assert np.flatnonzero(~np.asarray(applicable)).tolist() == [2, 3]
    wanting = np.isnan(alone.K).any(axis=(1, 2, 3))
    assert np.flatnonzero(wanting).tolist() == [1, 2, 3, 4, 5]

    factors = jax.jit(jax.vmap(associative.factor))(system)
    part = lambda tree, at: jax.tree.map(lambda leaf: leaf[at], tree)
    finite = np.arange(BATCH) != 5
    convex = np.all(np.asarray(in_turn.pivots) > 0, axis=(1, 2))
    assert np.flatnonzero(~convex).tolist() == [4, 5]
    assert_agree(part(factors, finite), part(in_turn, finite))
    # The others of the batch do not take the numbers of the recursion.
    jax.tree.map(np.testing.assert_array_equal, part(factors, ~wanting), part(alone, ~wanting))
    assert np.isnan(factors.V[5, 0]).all()


@pytest.mark.slow
def test_batch_of_batches_equals_the_loop():
    system = jax.tree.map(lambda leaf: leaf[:4], peculiar())
    in_twos = jax.tree.map(lambda leaf: leaf.reshape(2, 2, *leaf.shape[1:]), system)
    nested = jax.jit(jax.vmap(jax.vmap(associative.factor)))(in_twos)
    one = jax.jit(associative.factor)
    for b in range(4):
        alone = one(jax.tree.map(lambda leaf, b=b: leaf[b], system))
        for a, many in zip(jax.tree.leaves(alone), jax.tree.leaves(nested), strict=True):
            np.testing.assert_allclose(many[b // 2, b % 2], a, rtol=1e-12, atol=1e-12)


def loops(jaxpr):
    """The loops of a program, with their lengths, and without what a condition may leave out."""
    found = []
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("scan", "while"):
            found.append((name, equation.params.get("length")))
        if name != "cond":
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                found += loops(inner)
    return found


@pytest.mark.parametrize("batched", [False, True], ids=["one", "batch"])
def test_no_loop_grows_with_the_horizon(batched):
    """The levels of an associative scan are unrolled, so loops are all that may take `T` steps."""
    over = jax.vmap if batched else lambda function: function

    def loops_of(T):
        system = systems(2, 1, T)
        rhs = jax.vmap(riccati.right_hand_side)(random_rows(system))
        factors = jax.vmap(riccati.factor_in_jax)(system)
        args = (system, factors, rhs)
        if not batched:
            args = jax.tree.map(lambda leaf: leaf[0], args)
        factor = jax.make_jaxpr(over(associative.factor))(args[0])
        return loops(factor.jaxpr), loops(jax.make_jaxpr(over(associative.solve))(*args).jaxpr)

    in_factor, in_solve = loops_of(70)
    assert (in_factor, in_solve) == loops_of(7)
    # Steps of the recursion are loops of length one; Newton's method ends after a few steps.
    assert sorted(in_factor, key=str) == [("scan", 1), ("scan", 1), ("while", None)]
    assert in_solve == []


def test_diagonals_and_blocks_that_stages_share():
    n, m, T = 2, 1, 3
    rng = np.random.default_rng(0)
    H, F = jnp.asarray(0.5 + rng.random((1, n + m))), jnp.asarray(rng.normal(size=(1, n, n + m)))
    system = System(H, jnp.eye(n), F, jnp.ones((T, m), bool))
    assert_agree(jax.jit(associative.factor)(system), riccati.factor_in_jax(system))
