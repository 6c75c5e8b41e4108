r"""Riccati factorisation and solve of the stage-structured KKT system.

The unknowns are `x_0 ... x_T`, `u_0 ... u_{T-1}`, `lambda_0 ... lambda_T`; the equations

    H_t tau_t + F_t' lambda_{t+1} - [lambda_t; 0] = -g_t      (rows of free controls only)
    H_N x_T - lambda_T                            = -g_N
    -x_0                                          = -r_{-1}
    F_t tau_t - x_{t+1}                           = -r_t

are the optimality conditions of a linear-quadratic problem with initial state `r_{-1}`, and
their matrix is symmetric. Controls that are not free have the equation `u = b`, with `b` moved to
the right-hand side by the caller, so here they are zero.

Factoring (`factor`) is separate from solving (`solve`): one factorisation serves the forward
pass, the adjoint, and every further right-hand side.

On CPUs the compiled kernel does both (`native.py`). It has no derivative of its own: what the
adjoints need comes from the linear solve below, and where the recursion itself is differentiated
its form in JAX is.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from .._tree import stop_gradient
from . import native
from .cholesky import cholesky, solve_factored, solve_lower
from .products import curvature_product, dynamics_products


class System(eqx.Module):
    """The matrix: blocks of the stages and which controls are free.

    `H` has shape `(T, nm, nm)`, or `(T, nm)` where only diagonals are given; `F` has shape
    `(T, n, nm)`. Blocks that are the same at every stage may be given once, with a first axis of
    one, and are read there without being repeated in memory.

    Here and below, axes `*B` are those of a stack that `jax.vmap` takes apart.
    """

    H: Float[Array, "..."]
    H_N: Float[Array, "*B n n"]
    F: Float[Array, "..."]
    free: Bool[Array, "*B T m"]


class RightHandSide(eqx.Module):
    """Linear cost terms `g`, `g_N` and offsets `r`, whose first row is the initial state."""

    g: Float[Array, "*B T nm"]
    g_N: Float[Array, "*B n"]
    r: Float[Array, "*B T1 n"]


class Unknowns(eqx.Module):
    """States `(T+1, n)`, controls `(T, m)`, costates `(T+1, n)`."""

    x: Float[Array, "*B T1 n"]
    u: Float[Array, "*B T m"]
    costate: Float[Array, "*B T1 n"]


class Factorisation(eqx.Module):
    """Gains `K`, cost-to-go Hessians `V` of stages `0 ... T`, Cholesky factors `L` of `Q_ff`.

    `pivots (T, m)` are the pivots of `Q_ff` relative to its diagonal. All positive means that the
    reduced Hessian is positive definite, so the point is a strict minimiser (mathematically: the
    recursion is its block elimination). Not positive means that the factorisation is meaningless.
    """

    K: Float[Array, "*B T m n"]
    V: Float[Array, "*B T1 n n"]
    L: Float[Array, "*B T m m"]
    pivots: Float[Array, "*B T m"]


@jax.custom_jvp
def factor(system: System) -> Factorisation:
    """The backward Riccati recursion on the free controls."""
    return native.dispatch(
        lambda system: Factorisation(*native.factor(system.H, system.H_N, system.F, system.free)),
        factor_in_jax,
        system.free.shape[-1],
        system,
    )


@factor.defjvp
def _factor_jvp(primals, tangents):
    return jax.jvp(lambda system: native.batch_first(factor_in_jax(system)), primals, tangents)


def factor_in_jax(system: System) -> Factorisation:
    """`factor`, stage by stage."""
    n = system.H_N.shape[0]
    system = written_out(system)

    def stage(V, inputs):
        H, F, free = inputs
        Q = H + F.T @ V @ F
        Q_ux = jnp.where(free[:, None], Q[n:, :n], 0.0)
        L, pivots = cholesky(restrict(Q[n:, n:], free))
        # With Q_ff = L L' and Y = L^-1 Q_fx:  V = Q_xx - Y'Y is symmetric by construction.
        Y = solve_lower(L, Q_ux)
        K = -solve_factored(L, Q_ux)
        V = symmetric(Q[:n, :n]) - Y.T @ Y
        return V, (K, V, L, pivots)

    H_N = symmetric(system.H_N)
    inputs = (symmetric(system.H), system.F, system.free)
    _, (K, V, L, pivots) = jax.lax.scan(stage, H_N, inputs, reverse=True)
    return Factorisation(K, jnp.concatenate([V, H_N[None]]), L, pivots)


def written_out(system: System) -> System:
    """The same with a full block for every stage."""
    T, m = system.free.shape
    n = system.H_N.shape[0]
    H = system.H
    if H.ndim == 2:
        H = H[:, :, None] * jnp.eye(n + m, dtype=H.dtype)
    H = jnp.broadcast_to(H, (T, n + m, n + m))
    return System(H, system.H_N, jnp.broadcast_to(system.F, (T, n, n + m)), system.free)


def solve(system: System, factors: Factorisation, rhs: RightHandSide) -> Unknowns:
    """States, controls and costates for one right-hand side. Has no derivative of its own."""
    return native.dispatch(
        lambda system, factors, rhs: Unknowns(
            *native.solve(
                system.F, system.free, factors.K, factors.V, factors.L, rhs.g, rhs.g_N, rhs.r
            )
        ),
        solve_in_jax,
        system.free.shape[-1],
        system,
        factors,
        rhs,
    )


def solve_in_jax(system: System, factors: Factorisation, rhs: RightHandSide) -> Unknowns:
    """`solve`, stage by stage."""
    n = system.H_N.shape[0]
    system = written_out(system)

    def backward(v, inputs):
        F, free, K, V_next, L, g, r = inputs
        q = g + F.T @ (v + V_next @ r)
        q_u = jnp.where(free, q[n:], 0.0)
        k = -solve_factored(L, q_u)
        return q[:n] + K.T @ q_u, (k, v)

    def forward(x, inputs):
        F, K, k, r = inputs
        u = K @ x + k
        x_next = F @ jnp.concatenate([x, u]) + r
        return x_next, (x_next, u)

    F, r = system.F, rhs.r
    stages = (F, system.free, factors.K, factors.V[1:], factors.L, rhs.g, r[1:])
    v_0, (k, v_next) = jax.lax.scan(backward, rhs.g_N, stages, reverse=True)
    _, (x_next, u) = jax.lax.scan(forward, r[0], (F, factors.K, k, r[1:]))
    x = jnp.concatenate([r[:1], x_next])
    v = jnp.concatenate([v_0[None], v_next])
    return Unknowns(x, u, jnp.einsum("tij,tj->ti", factors.V, x) + v)


@eqx.filter_custom_jvp
def gains(system: System, factors: Factorisation) -> Float[Array, "T m n"]:
    """The gains of `factors`, with the derivative of factoring `system` again."""
    return factors.K


@gains.def_jvp
def _gains_jvp(primals, tangents):
    system, factors = primals
    d_system, _ = tangents
    _, d_K = eqx.filter_jvp(lambda system: factor_in_jax(system).K, (system,), (d_system,))
    return native.batch_first((gains(system, factors), d_K))


def multiply(system: System, unknowns: Unknowns) -> Unknowns:
    """The matrix times a vector; rows and columns of held controls are those of the identity.

    The result is laid out like the unknowns: rows of the states, of the controls, of the
    dynamics.
    """
    n = system.H_N.shape[0]
    free_u = jnp.where(system.free, unknowns.u, 0.0)
    rows = full_product(system, Unknowns(unknowns.x, free_u, unknowns.costate), n)
    return Unknowns(rows.x, jnp.where(system.free, rows.u, unknowns.u), rows.costate)


def full_product(system: System, unknowns: Unknowns, n: int) -> Unknowns:
    """The matrix times a vector with every control treated as free."""
    tau = jnp.concatenate([unknowns.x[:-1], unknowns.u], axis=1)
    pulled, predicted = dynamics_products(system.F, unknowns.costate[1:], tau)
    rows = multiply_curvature(system.H, tau) + pulled
    last = symmetric(system.H_N) @ unknowns.x[-1]
    return Unknowns(
        jnp.concatenate([rows[:, :n], last[None]]) - unknowns.costate,
        rows[:, n:],
        jnp.concatenate([jnp.zeros_like(last)[None], predicted]) - unknowns.x,
    )


def multiply_curvature(H: Float[Array, "..."], tau: Float[Array, "T nm"]) -> Float[Array, "T nm"]:
    """`H tau` of every stage, for the blocks or diagonals of a `System`."""
    return H * tau if H.ndim == 2 else curvature_product(H, tau)


def right_hand_side(rows: Unknowns) -> RightHandSide:
    """Read a vector of rows (as `multiply` returns) as the data of a linear-quadratic problem."""
    return RightHandSide(
        g=-jnp.concatenate([rows.x[:-1], rows.u], axis=1), g_N=-rows.x[-1], r=-rows.costate
    )


def rows_of(rhs: RightHandSide) -> Unknowns:
    """The inverse of `right_hand_side`."""
    n = rhs.g_N.shape[0]
    return Unknowns(
        x=-jnp.concatenate([rhs.g[:, :n], rhs.g_N[None]]), u=-rhs.g[:, n:], costate=-rhs.r
    )


def solve_rows(system: System, factors: Factorisation, rows: Unknowns) -> Unknowns:
    """`multiply(system, .)` inverted: rows of held controls are their values."""
    solved = solve(system, factors, right_hand_side(rows))
    return Unknowns(solved.x, jnp.where(system.free, solved.u, rows.u), solved.costate)


def differentiable_solve(system: System, factors: Factorisation, rows: Unknowns) -> Unknowns:
    """`solve_rows` with derivatives of every order with respect to `system` and `rows`.

    The derivative is that of a symmetric linear solve, which reuses `factors` in both modes: JAX
    differentiates `multiply`, never the recursion. The unknowns travel as one vector, since the
    transpose of JAX's linear solve wants every array of the right-hand side to be perturbed.
    """
    flat, unflatten = ravel_pytree(rows)

    def in_flat(function):
        return lambda flat: ravel_pytree(function(unflatten(flat)))[0]

    solved = jax.lax.custom_linear_solve(
        in_flat(lambda unknowns: multiply(system, unknowns)),
        flat,
        solve=lambda _, rows: in_flat(lambda rows: solve_rows(system, factors, rows))(rows),
        symmetric=True,
    )
    return unflatten(solved)


@jax.custom_jvp
def factor_and_solve(system: System, rhs: RightHandSide) -> tuple[Unknowns, Factorisation]:
    """`solve` with a new factorisation, the data being read once for both.

    The unknowns have derivatives of every order. The factors are differentiated as constants.
    """

    def compiled(system, rhs):
        out = native.factor_solve(
            system.H, system.H_N, system.F, system.free, rhs.g, rhs.g_N, rhs.r
        )
        return Unknowns(*out[4:]), Factorisation(*out[:4])

    def in_jax(system, rhs):
        factors = factor_in_jax(system)
        return solve(system, factors, rhs), factors

    return native.dispatch(compiled, in_jax, system.free.shape[-1], system, rhs)


@factor_and_solve.defjvp
def _factor_and_solve_jvp(primals, tangents):
    # M z = rows, so M dz = d_rows - dM z.
    (system, rhs), (d_system, d_rhs) = primals, tangents
    z, factors = factor_and_solve(system, rhs)
    constant = stop_gradient(factors)
    _, moved = jax.jvp(lambda system: multiply(system, z), (system,), (d_system,))
    d_rows = rows_of(d_rhs)
    d_rows = Unknowns(d_rows.x, jnp.where(system.free, d_rows.u, 0.0), d_rows.costate)
    d_z = differentiable_solve(system, constant, jax.tree.map(jnp.subtract, d_rows, moved))
    no_change = jax.tree.map(jnp.zeros_like, factors)
    return native.batch_first(((z, constant), (d_z, no_change)))


def restrict(A: Float[Array, "m m"], free: Bool[Array, " m"]) -> Float[Array, "m m"]:
    """`A` on the free rows and columns, the identity elsewhere."""
    both = free[:, None] & free[None, :]
    return jnp.where(both, A, jnp.eye(A.shape[0], dtype=A.dtype))


def symmetric(A: Array) -> Array:
    """The symmetric part of the last two axes."""
    return 0.5 * (A + jnp.swapaxes(A, -1, -2))
