"""Linear-quadratic problems whose matrices are diagonal, or the same at every stage."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffcontrol as dc
from diffcontrol._kernel import native

N, M, T = 3, 2, 12
NM = N + M
_rng = np.random.default_rng(7)
_square = lambda *shape: (
    lambda root: jnp.asarray(root @ np.swapaxes(root, -1, -2) + 0.5 * np.eye(NM))
)(_rng.standard_normal((*shape, NM, NM)) / np.sqrt(NM))
_dynamics = lambda *shape: jnp.asarray(
    0.3 * _rng.standard_normal((*shape, N, NM)) + 0.8 * np.eye(N, NM)
)

C = {
    "full": _square(T),
    "diagonal": dc.Diagonal(jnp.asarray(0.5 + _rng.random((T, NM)))),
    "time-invariant": dc.TimeInvariant(_square()),
    "time-invariant diagonal": dc.TimeInvariant(dc.Diagonal(jnp.asarray(0.5 + _rng.random(NM)))),
}
F = {"full": _dynamics(T), "time-invariant": dc.TimeInvariant(_dynamics())}
CASES = [(c, f) for c in C for f in F if (c, f) != ("full", "full")]
c, f, x0 = (jnp.asarray(_rng.standard_normal(shape)) for shape in ((T, NM), (T, N), (N,)))
w = jnp.asarray(_rng.standard_normal((T + 1, N)))


def written_out(matrices, axes):
    """The same matrices with an entry for everything."""
    if isinstance(matrices, dc.TimeInvariant):
        inner = written_out(matrices.matrix, axes)
        return jnp.broadcast_to(inner, (T, *inner.shape))
    if isinstance(matrices, dc.Diagonal):
        return matrices.values[..., None] * jnp.eye(NM)
    return matrices


def solve(C, F, x0):
    return dc.lqr(dc.LinearQuadraticProblem(C, c, F, f), x0)


def loss(C, F, x0):
    solution = solve(C, F, x0)
    return jnp.sum(w * solution.states) + jnp.sum(solution.controls**2) + 0.1 * solution.cost


def in_full(C, F, x0):
    return loss(written_out(C, NM), written_out(F, None), x0)


def agree(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=" C, ".join)
def test_values_and_derivatives_are_those_of_the_full_problem(case):
    args = C[case[0]], F[case[1]], x0
    directions = jax.tree.map(lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape), args)
    gradient = lambda function: jax.grad(function, argnums=(0, 1, 2))

    def every_order(function):
        return jax.jit(
            lambda *args: (
                function(*args),
                jax.jvp(function, args, directions)[1],
                jax.jvp(gradient(function), args, directions),
            )
        )

    agree(every_order(loss)(*args), every_order(in_full)(*args))


@pytest.mark.parametrize("shared", [(0, None, 0), (None, 0, 0), (None, None, 0)], ids=str)
@pytest.mark.parametrize(
    "case", [("time-invariant diagonal", "time-invariant"), ("full", "full")], ids=str
)
def test_batches(case, shared):
    args = C[case[0]], F[case[1]], x0
    stack = lambda a: jnp.stack([a, 1.1 * a, 0.9 * a])
    args = tuple(
        a if axis is None else jax.tree.map(stack, a) for a, axis in zip(args, shared, strict=True)
    )

    def total(function):
        def over_batch(*args):
            return jnp.sum(jax.vmap(function, in_axes=shared)(*args))

        return jax.jit(jax.value_and_grad(over_batch, argnums=(0, 1, 2)))

    agree(total(loss)(*args), total(in_full)(*args))


def test_nothing_is_repeated_in_memory():
    stages = 1000

    def gradient(C, F, c, f, x0):
        def loss(C, F, c, f, x0):
            solution = dc.lqr(dc.LinearQuadraticProblem(C, c, F, f), x0, throw=False)
            return jnp.sum(solution.controls)

        return jax.grad(loss, argnums=(0, 1, 2, 3, 4))(C, F, c, f, x0)

    def program(C, F):
        args = C, F, jnp.zeros((stages, NM)), jnp.zeros((stages, N)), x0
        return jax.jit(gradient).lower(*args).compile().as_text()

    blocks = f"f64[{stages},{NM},{NM}]", f"f64[{stages},{N},{NM}]"
    full = program(jnp.zeros((stages, NM, NM)), jnp.zeros((stages, N, NM)))
    structured = program(C["time-invariant diagonal"], F["time-invariant"])
    assert all(block in full for block in blocks)
    if native.library() is not None:
        assert not any(block in structured for block in blocks)


WRONG = {
    "C.values": lambda: solve(dc.Diagonal(jnp.ones((T, N))), F["full"], x0),
    "C.matrix": lambda: solve(dc.TimeInvariant(jnp.ones((T, NM, NM))), F["full"], x0),
    "C.matrix.values": lambda: solve(dc.TimeInvariant(dc.Diagonal(w)), F["full"], x0),
    "`F` must have shape (n, n+m)": lambda: solve(C["full"], dc.TimeInvariant(F["full"]), x0),
    "`f` must have shape (T, n)": lambda: dc.LinearQuadraticProblem(
        C["full"], c, F["time-invariant"], jnp.ones(N)
    ),
    "`c` must have shape": lambda: dc.LinearQuadraticProblem(
        C["full"], c[1:], F["time-invariant"], f
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_shapes_are_named(sentence):
    with pytest.raises(ValueError) as caught:
        WRONG[sentence]()
    assert sentence in str(caught.value)


def test_nan_in_a_structured_matrix_is_refused():
    bad = eqx.tree_at(
        lambda C: C.matrix.values, C["time-invariant diagonal"], jnp.full(NM, jnp.nan)
    )
    with pytest.raises(ValueError, match="NaN"):
        solve(bad, F["full"], x0)
