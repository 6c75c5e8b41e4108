"""The Riccati factorisation against a dense matrix that is assembled here, equation by equation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcontrol._kernel import dense, riccati
from diffcontrol._kernel.riccati import RightHandSide, System, Unknowns

BATCH = 24
# (T, n, m): one stage; the usual; more controls than states, beyond the unrolled Cholesky.
SIZES = [(1, 1, 1), (6, 3, 2), (2, 2, 9)]


@functools.cache
def systems(T, n, m, positive=True):
    """Random systems with random masks; the last two have no free control, and only free ones."""
    rng = np.random.default_rng([T, n, m, positive])
    roots = rng.normal(size=(BATCH, T, n + m, n + m))
    H = np.einsum("btij,btkj->btik", roots, roots) + 0.1 * np.eye(n + m)
    root_N = rng.normal(size=(BATCH, n, n))
    H_N = np.einsum("bij,bkj->bik", root_N, root_N)
    if not positive:
        bend = rng.normal(size=H.shape) * rng.uniform(0, 3, (BATCH, 1, 1, 1))
        H = H + bend + bend.swapaxes(2, 3)
    free = rng.random((BATCH, T, m)) < 0.7
    free[-2], free[-1] = False, True
    F = rng.normal(size=(BATCH, T, n, n + m)) / np.sqrt(n + m)
    return System(*map(jnp.asarray, (H, H_N, F, free)))


def item(tree, b):
    return jax.tree.map(lambda leaf: np.asarray(leaf[b]), tree)


def kkt(system):
    """The matrix of the equations in the docstring of `riccati.py`, every control free.

    Rows: states, controls, dynamics. Columns: states, controls, costates.
    """
    H, H_N, F = system.H, system.H_N, system.F
    T, n = F.shape[:2]
    m = F.shape[2] - n
    x = lambda t: slice(t * n, (t + 1) * n)
    u = lambda t: slice((T + 1) * n + t * m, (T + 1) * n + (t + 1) * m)
    c = lambda t: slice((T + 1) * n + T * m + t * n, (T + 1) * n + T * m + (t + 1) * n)
    M = np.zeros((2 * (T + 1) * n + T * m,) * 2)
    for t in range(T):
        M[x(t), x(t)] += H[t][:n, :n]
        M[x(t), u(t)] += H[t][:n, n:]
        M[u(t), x(t)] += H[t][n:, :n]
        M[u(t), u(t)] += H[t][n:, n:]
        M[x(t), c(t + 1)] += F[t][:, :n].T
        M[u(t), c(t + 1)] += F[t][:, n:].T
        M[c(t + 1), x(t)] += F[t][:, :n]
        M[c(t + 1), u(t)] += F[t][:, n:]
    M[x(T), x(T)] += H_N
    for t in range(T + 1):
        M[x(t), c(t)] -= np.eye(n)
        M[c(t), x(t)] -= np.eye(n)
    return M


def with_held(system, M):
    """Rows and columns of held controls replaced by those of the identity."""
    T, n = system.F.shape[:2]
    held = np.zeros(len(M), bool)
    held[(T + 1) * n : (T + 1) * n + system.free.size] = ~system.free.ravel()
    M = M.copy()
    M[held], M[:, held] = 0.0, 0.0
    M[held, held] = 1.0
    return M


def flat(unknowns):
    return np.concatenate([np.ravel(part) for part in (unknowns.x, unknowns.u, unknowns.costate)])


def random_unknowns(system, seed):
    rng = np.random.default_rng(seed)
    T, n = system.F.shape[1:3]
    m = system.free.shape[2]
    shapes = ((T + 1, n), (T, m), (T + 1, n))
    return Unknowns(*(jnp.asarray(rng.normal(size=(BATCH, *shape))) for shape in shapes))


@jax.jit
@jax.vmap
def factor_and_solve(system, rows):
    return riccati.solve_rows(system, riccati.factor(system), rows)


@pytest.mark.parametrize("size", SIZES, ids=str)
class TestAgainstTheDenseMatrix:
    def test_product(self, size):
        system = systems(*size)
        v = random_unknowns(system, 1)
        product = jax.jit(jax.vmap(riccati.multiply))(system, v)
        for b in range(BATCH):
            one = item(system, b)
            expected = with_held(one, kkt(one)) @ flat(item(v, b))
            np.testing.assert_allclose(flat(item(product, b)), expected, atol=1e-11)

    def test_product_with_every_control_free(self, size):
        system = systems(*size)
        v = random_unknowns(system, 2)
        product = jax.vmap(lambda s, v: riccati.full_product(s, v, size[1]))(system, v)
        for b in range(BATCH):
            expected = kkt(item(system, b)) @ flat(item(v, b))
            np.testing.assert_allclose(flat(item(product, b)), expected, atol=1e-11)

    def test_dense_oracle_is_the_same_matrix(self, size):
        system = systems(*size)
        matrices = jax.jit(jax.vmap(dense.matrix))(system)
        for b in range(BATCH):
            one = item(system, b)
            np.testing.assert_allclose(matrices[b], with_held(one, kkt(one)), atol=1e-12)

    def test_solve(self, size):
        system = systems(*size)
        rows = random_unknowns(system, 3)
        solved = factor_and_solve(system, rows)
        by_oracle = jax.jit(jax.vmap(dense.solve_rows))(system, rows)
        for b in range(BATCH):
            one = item(system, b)
            expected = np.linalg.solve(with_held(one, kkt(one)), flat(item(rows, b)))
            scale = np.abs(expected).max()
            np.testing.assert_allclose(flat(item(solved, b)) / scale, expected / scale, atol=1e-9)
            np.testing.assert_allclose(
                flat(item(by_oracle, b)) / scale, expected / scale, atol=1e-9
            )

    def test_operator_is_symmetric(self, size):
        system = systems(*size)
        v, w = random_unknowns(system, 4), random_unknowns(system, 5)
        M_v, M_w = (jax.vmap(riccati.multiply)(system, each) for each in (v, w))
        for b in range(BATCH):
            left, right = (
                flat(item(M_v, b)) @ flat(item(w, b)),
                flat(item(v, b)) @ flat(item(M_w, b)),
            )
            assert abs(left - right) <= 1e-12 * np.abs(flat(item(M_v, b))).sum()


def reduced_hessian(system):
    """Hessian of the cost in the free controls once the states are eliminated."""
    T, n = system.F.shape[:2]
    m = system.free.shape[1]
    columns = np.flatnonzero(system.free.ravel())
    x, total = np.zeros((n, T * m)), np.zeros((T * m, T * m))
    for t in range(T):
        pick = np.zeros((m, T * m))
        pick[:, t * m : (t + 1) * m] = np.eye(m)
        tau = np.concatenate([x, pick])
        total += tau.T @ system.H[t] @ tau
        x = system.F[t] @ tau
    total += x.T @ system.H_N @ x
    return total[np.ix_(columns, columns)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pivots_are_positive_exactly_where_the_reduced_hessian_is(size):
    seen = set()
    for positive in (True, False):
        system = systems(*size, positive=positive)
        factors = jax.jit(jax.vmap(riccati.factor))(system)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(factors))
        for b in range(BATCH):
            reduced = reduced_hessian(item(system, b))
            smallest = np.linalg.eigvalsh(reduced).min() if reduced.size else 1.0
            assert abs(smallest) > 1e-6, "the random system is too close to singular to tell"
            assert np.all(np.asarray(factors.pivots[b]) > 0) == (smallest > 0)
            seen.add(bool(smallest > 0))
    assert seen == {True, False}


def test_gains_and_cost_to_go():
    """`K` minimises, and `V` is the value of, the linear-quadratic problem of the tail."""
    system = systems(6, 3, 2)
    factors = jax.jit(jax.vmap(riccati.factor))(system)
    one, K, V = item(system, 0), factors.K[0], factors.V[0]
    T, n = one.F.shape[:2]
    for t in range(T):
        tail = System(*map(jnp.asarray, (one.H[t:], one.H_N, one.F[t:], one.free[t:])))
        tail = jax.tree.map(np.asarray, tail)
        matrix = with_held(tail, kkt(tail))
        rows = np.zeros((len(matrix), n))
        rows[-(T - t + 1) * n :][:n] = -np.eye(n)  # the row of the initial state
        solved = np.linalg.solve(matrix, rows)
        controls = solved[(T - t + 1) * n :][:2]
        costate = solved[-(T - t + 1) * n :][:n]
        np.testing.assert_allclose(K[t], controls, atol=1e-9)
        np.testing.assert_allclose(V[t], costate, atol=1e-8)


def test_unsymmetric_hessians_are_read_through_their_symmetric_part():
    system = systems(6, 3, 2)
    skew = np.random.default_rng(0).normal(size=system.H.shape)
    twisted = System(
        system.H + 0.3 * (skew - skew.swapaxes(2, 3)), system.H_N, system.F, system.free
    )
    rows = random_unknowns(system, 6)
    straight, through = factor_and_solve(system, rows), factor_and_solve(twisted, rows)
    np.testing.assert_allclose(through.u, straight.u, atol=1e-9)


def test_one_factorisation_serves_many_right_hand_sides():
    one = jax.tree.map(lambda leaf: leaf[0], systems(6, 3, 2))
    rng = np.random.default_rng(8)
    sides = RightHandSide(
        *(jnp.asarray(rng.normal(size=shape)) for shape in ((5, 6, 5), (5, 3), (5, 7, 3)))
    )
    factors = jax.jit(riccati.factor)(one)
    solve = jax.jit(lambda side: riccati.solve(one, factors, side))
    together = jax.jit(jax.vmap(solve))(sides)
    for k in range(5):
        alone = solve(jax.tree.map(lambda leaf, k=k: leaf[k], sides))
        np.testing.assert_allclose(together.u[k], alone.u, atol=1e-12)


def test_one_bad_system_leaves_the_others_alone():
    system = systems(6, 3, 2)
    rows = random_unknowns(system, 9)
    bad = System(system.H.at[3].set(jnp.nan), system.H_N, system.F, system.free)
    good, with_bad = factor_and_solve(system, rows), factor_and_solve(bad, rows)
    others = np.arange(BATCH) != 3
    assert np.array_equal(good.u[others], with_bad.u[others])


def test_single_precision():
    system = systems(6, 3, 2)
    single = jax.tree.map(lambda a: a.astype(jnp.float32) if a.dtype == float else a, system)
    rows = random_unknowns(system, 10)
    rows32 = jax.tree.map(lambda a: a.astype(jnp.float32), rows)
    solved, reference = factor_and_solve(single, rows32), factor_and_solve(system, rows)
    assert solved.u.dtype == jnp.float32
    scale = np.abs(reference.u).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(solved.u / scale, reference.u / scale, atol=1e-3)
