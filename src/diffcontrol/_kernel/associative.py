r"""The Riccati kernel with logarithmic depth in the horizon: `riccati.py` by associative scans.

Notation, equations and results are those of `riccati.py`. Where that takes `T` steps one after the
other, this takes about `2 log2 T` rounds of products of `n x n` matrices, each over many stages at
once, and several times the arithmetic. That is for a device with more lanes than the batch fills,
and for long horizons; on one core of a CPU factoring is slower. Nothing chooses it: until a rule
has been measured on such a device, `riccati.factor` and `riccati.solve` take the sequential form.

**Elements.** Let stages `s ... e-1` lead from `x` to `y`, and let their cheapest cost be

    W(x, y) = max_l  1/2 x' J x - 1/2 l' C l + l' (y - A x).

For one stage, `u = -R^-1 H_ux x + w` with `R` the free block of `H_uu` separates the cost of `x`
from that of `w`. The cheapest `w` with `F_u w = z` costs `max_l l' z - 1/2 l' F_u R^-1 F_u' l`, so

    A = F_x - F_u R^-1 H_ux,   C = F_u R^-1 F_u',   J = H_xx - H_xu R^-1 H_ux,

which needs `R` positive definite (`applicable`). Held controls are left out of `R`, `F_u`, `H_ux`.
The end is the element `A = 0, C = 0, J = H_N`, whose `W` does not depend on `y`.

**Joining.** Of `W_1(x, y) + W_2(y, z)`, stationary in `l_1` and in `y`:

    y = A_1 x + C_1 l_1,   l_1 + J_2 y - A_2' l_2 = 0,
    so  y = M (A_1 x + C_1 A_2' l_2)  with  M = (I + C_1 J_2)^-1.

The derivatives `z - A_2 y - C_2 l_2` and `J_1 x - A_1' l_1` of what is left, in `l_2` and in `x`,
have the same form again with

    A = A_2 M A_1,   C = C_2 + A_2 M C_1 A_2',   J = J_1 + A_1' J_2 M A_1.

This is associative, since it minimises over the states in between, in whatever order. From `t` to
the end it gives `J = V_t`. Terms of first order have no place in it: they follow, given the
factors, from affine maps (`solve`).

**Precision.** `M` is harmless where every `J` is positive semidefinite and `R` is not small. Else
`I + C_1 J_2` may be badly conditioned, even singular, though the problem is not: `J_2` is the value
of an interval whose end costs nothing, and that may have no minimum. Therefore the result is tested
and improved. A step of the recursion at every stage at once, `V'_t` out of `V_{t+1}`, should give
`V_t` again. If it does not to rounding, the residual's effect on all earlier stages is, to first
order, linear in the closed loop `Phi = F_x + F_u K`:

    E_t = Phi_t' E_{t+1} Phi_t + (V'_t - V_t),   E_T = 0,   V <- V + E,

again an associative scan. This is Newton's method, and what remains is quadratic in `E`. None of
these steps is needed as a rule, one or two where `R` is 1e-2 to 1e-8 of the rest, three at 1e-12
(float64). If four do not do, the sequential recursion decides, so nothing is wrong in silence.

Source: S. Särkkä and A. F. García-Fernández, Temporal Parallelization of Dynamic Programming and
Linear Quadratic Control, IEEE Transactions on Automatic Control 68 (2023); with cross terms, held
controls and the Newton steps added, and without the terms of first order.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .cholesky import cholesky, solve_factored, solve_lower
from .riccati import (
    Factorisation,
    RightHandSide,
    System,
    Unknowns,
    factor_in_jax,
    restrict,
    symmetric,
    written_out,
)

# Each squares the relative error: what needs more has hardly begun near the solution.
_NEWTON_STEPS = 4
# How many units of rounding, for each state and control, a step of the recursion may be off.
_ROUNDINGS = 16


class _Interval(eqx.Module):
    """The cheapest cost `W(x, y)` of some stages, or of a stack of them."""

    A: Float[Array, "*B n n"]
    C: Float[Array, "*B n n"]
    J: Float[Array, "*B n n"]


def applicable(system: System) -> Bool[Array, ""]:
    """Whether the free block of `H_uu` is clearly positive definite at every stage.

    To the rounding that `cholesky` allows for. Elsewhere `factor` is the sequential recursion.
    """
    return _intervals(written_out(system))[1]


def factor(system: System) -> Factorisation:
    """`riccati.factor` in logarithmic depth, where `applicable` says so.

    Where not, and where four Newton steps do not lead to a fixed point of the recursion (module
    docstring), the result is that of `riccati.factor_in_jax`, and its `T` steps come on top. Under
    `jax.vmap` they do if one sample of the batch needs them; only that sample takes the numbers.

    Error: a step of the recursion from any stage gives the stage before to a few hundred units of
    rounding. Against the sequential recursion that is 1e-13 or less of the largest entry of `V`
    (float64) where the closed loop does not amplify it. No derivative in reverse mode.
    """
    system = written_out(system)
    intervals, valid = _intervals(system)
    V = jax.lax.associative_scan(jax.vmap(_join), intervals, reverse=True).J

    def unfinished(state):
        count, _, _, right = state
        return valid & ~right & (count < _NEWTON_STEPS)

    def improve(state):
        count, V, steps, _ = state
        V = _newton_step(system, V, steps)
        steps = _every_stage(system, V)
        return count + 1, V, steps, _reproduced(system, V, steps.V)

    steps = _every_stage(system, V)
    start = jnp.asarray(0), V, steps, _reproduced(system, V, steps.V)
    _, V, steps, right = jax.lax.while_loop(unfinished, improve, start)
    factors = Factorisation(steps.K, jnp.concatenate([steps.V, V[-1:]]), steps.L, steps.pivots)
    return _replaced_unless_right(factor_in_jax)(system, factors, valid & right)


def solve(system: System, factors: Factorisation, rhs: RightHandSide) -> Unknowns:
    """`riccati.solve` in logarithmic depth, for any factors.

    With `u = K x + k` the recursions of `riccati.solve_in_jax` are affine,

        v_t = Phi_t' (v_{t+1} + V_{t+1} r_t) + g_x + K' g_u,    x_{t+1} = Phi_t x_t + F_u k_t + r_t,

    and affine maps compose associatively. Held controls have rows of zeros in `K`.
    """
    n = system.H_N.shape[0]
    system = written_out(system)
    K, V, F_u, Phi = factors.K, factors.V, system.F[:, :, n:], _closed_loop(system, factors.K)
    g_x, g_u, r = rhs.g[:, :n], rhs.g[:, n:], rhs.r[1:]
    V_r = jnp.einsum("tij,tj->ti", V[1:], r)
    offsets = jnp.einsum("tji,tj->ti", Phi, V_r) + g_x + jnp.einsum("tji,tj->ti", K, g_u)
    zero = jnp.zeros_like(Phi[:1])
    v = _compose(
        jnp.concatenate([jnp.swapaxes(Phi, 1, 2), zero]),
        jnp.concatenate([offsets, rhs.g_N[None]]),
        reverse=True,
    )
    q_u = jnp.where(system.free, g_u + jnp.einsum("tji,tj->ti", F_u, v[1:] + V_r), 0.0)
    k = -jax.vmap(solve_factored)(factors.L, q_u)
    x = _compose(
        jnp.concatenate([zero, Phi]),
        jnp.concatenate([rhs.r[:1], jnp.einsum("tij,tj->ti", F_u, k) + r]),
    )
    u = jnp.einsum("tij,tj->ti", K, x[:-1]) + k
    return Unknowns(x, u, jnp.einsum("tij,tj->ti", V, x) + v)


def _intervals(system: System) -> tuple[_Interval, Bool[Array, ""]]:
    """The elements of stages `0 ... T-1` and of the end, and whether they are valid."""
    n = system.H_N.shape[0]

    def stage(H, F, free):
        L, pivots = cholesky(restrict(H[n:, n:], free))
        H_ux = jnp.where(free[:, None], H[n:, :n], 0.0)
        F_u = jnp.where(free, F[:, n:], 0.0)
        # With R = L L', Y = L^-1 H_ux and Z = L^-1 F_u', C and the change of J are symmetric.
        Y, Z = jnp.split(solve_lower(L, jnp.concatenate([H_ux, F_u.T], axis=1)), [n], axis=1)
        return _Interval(F[:, :n] - Z.T @ Y, Z.T @ Z, H[:n, :n] - Y.T @ Y), pivots

    stages, pivots = jax.vmap(stage)(symmetric(system.H), system.F, system.free)
    zero = jnp.zeros_like(system.H_N)
    end = _Interval(zero, zero, symmetric(system.H_N))
    every = jax.tree.map(lambda stage, end: jnp.concatenate([stage, end[None]]), stages, end)
    return every, jnp.all(pivots > 0)


def _join(later: _Interval, earlier: _Interval) -> _Interval:
    """Two adjoining intervals as one."""
    n = later.A.shape[0]
    I_CJ = jnp.eye(n, dtype=later.A.dtype) + earlier.C @ later.J
    M_AC = jnp.linalg.solve(I_CJ, jnp.concatenate([earlier.A, earlier.C], axis=1))
    M_A, M_C = M_AC[:, :n], M_AC[:, n:]
    return _Interval(
        later.A @ M_A,
        symmetric(later.C + later.A @ M_C @ later.A.T),
        symmetric(earlier.J + earlier.A.T @ later.J @ M_A),
    )


def _every_stage(system: System, V: Float[Array, "T1 n n"]) -> Factorisation:
    """One step of the recursion from each `V_{t+1}`: its `V` has the rows `0 ... T-1` alone.

    A step is the factorisation of a problem with one stage.
    """

    def step(H, F, free, V_next):
        factors = factor_in_jax(System(H[None], V_next, F[None], free[None]))
        return jax.tree.map(lambda leaf: leaf[0], factors)

    return jax.vmap(step)(system.H, system.F, system.free, V[1:])


def _closed_loop(system: System, K: Float[Array, "T m n"]) -> Float[Array, "T n n"]:
    n = system.H_N.shape[0]
    return system.F[:, :, :n] + system.F[:, :, n:] @ K


def _newton_step(
    system: System, V: Float[Array, "T1 n n"], steps: Factorisation
) -> Float[Array, "T1 n n"]:
    """`V + E`, with `E` as in the module's docstring; `steps` are those from `V`."""

    def compose(later, earlier):
        (Phi_2, E_2), (Phi_1, E_1) = later, earlier
        change = jnp.swapaxes(Phi_1, 1, 2) @ E_2 @ Phi_1
        return Phi_2 @ Phi_1, E_1 + symmetric(change)

    maps = _closed_loop(system, steps.K), steps.V - V[:-1]
    _, E = jax.lax.associative_scan(compose, maps, reverse=True)
    return jnp.concatenate([V[:-1] + E, V[-1:]])


def _reproduced(
    system: System, V: Float[Array, "T1 n n"], V_step: Float[Array, "T n n"]
) -> Bool[Array, ""]:
    """Whether `V_step`, a step of the recursion from `V`, is `V` to rounding. False for NaN.

    Entry `ij` is measured by the diagonal entries `ii` and `jj` of what the step sums up, so that
    units of states do not matter.
    """
    T, n, nm = system.F.shape
    F_x, H_xx = jnp.abs(system.F[:, :, :n]), jnp.abs(system.H[:, :n, :n])
    size = jnp.diagonal(H_xx, axis1=1, axis2=2) + jnp.einsum(
        "tki,tkl,tli->ti", F_x, jnp.abs(V[1:]), F_x
    )
    root = jnp.sqrt(size)
    allowed = _ROUNDINGS * nm * float(jnp.finfo(V.dtype).eps) * root[:, :, None] * root[:, None, :]
    return jnp.all(jnp.abs(V_step - V[:-1]) <= allowed)


def _replaced_unless_right(in_turn: Callable) -> Callable:
    """`factors` where `right`, else `in_turn(system)`, which is left out if all are right.

    `jax.lax.cond` alone would always run both under `jax.vmap`.
    """

    @jax.custom_batching.custom_vmap
    def choose(system, factors, right):
        def replaced():
            where = lambda a, b: jnp.where(jnp.expand_dims(right, range(right.ndim, a.ndim)), a, b)
            return jax.tree.map(where, factors, in_turn(system))

        return jax.lax.cond(jnp.all(right), lambda: factors, replaced)

    @choose.def_vmap
    def choose_for_each(size, batched, *args):
        spread = lambda leaf, is_batched: (
            leaf if is_batched else jnp.broadcast_to(leaf, (size, *leaf.shape))
        )
        system, factors, right = jax.tree.map(spread, args, tuple(batched))
        out = _replaced_unless_right(jax.vmap(in_turn))(system, factors, right)
        return out, jax.tree.map(lambda _: True, out)

    return choose


def _compose(
    matrices: Float[Array, "T1 n n"], offsets: Float[Array, "T1 n"], reverse: bool = False
) -> Float[Array, "T1 n"]:
    """`y_t = matrices_t y_{t-1} + offsets_t` (reversed: `y_{t+1}`), where the first matrix is 0."""

    def then(first, second):
        (A_1, b_1), (A_2, b_2) = first, second
        return A_2 @ A_1, jnp.einsum("tij,tj->ti", A_2, b_1) + b_2

    return jax.lax.associative_scan(then, (matrices, offsets), reverse=reverse)[1]
