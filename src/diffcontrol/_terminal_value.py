r"""The cost of going on for ever, as a terminal cost: the discrete algebraic Riccati equation.

At an equilibrium of the dynamics, with `F = [f_x f_u] = [A B]` and `H` the Hessian of the stage
cost, the cost-to-go of the infinite horizon is `1/2 d'P d + p'd` (`d` the distance from the
equilibrium), with

    M = H + F'P F,   K = -M_uu^-1 M_ux,   W = [I; K],   P = W'M W,   A_cl = A + B K

`P` is found by structured doubling (Chu, Fan, Lin and Wang 2004), which doubles the number of
stages in every step, and differentiated through the equation: `K` is optimal, so its variation
drops out and

    dP = A_cl' dP A_cl + W' (dH + dF'P F + F'P dF) W,

a Lyapunov equation.
"""

from typing import NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Bool, Float

from ._captured import remembered_jit
from ._control_problem import ControlProblem, check_concrete_values, stage_problem
from ._kernel.cholesky import cholesky
from ._kernel.riccati import symmetric
from ._tree import promoted_dtype
from ._types import Numbers, as_floats

# Of the state and control given as an equilibrium: meant to catch a wrong one, not rounding, and
# wide enough to let finite differences pass.
_EQUILIBRIUM_TOLERANCE = 1e-4
# Doublings reach 2^40 stages; in the last of them nothing is left to add, or nothing ever will be.
_DOUBLINGS = 40

_FAILURES = (
    "`state` and `control` are not an equilibrium: f(state, control, 0) differs from `state`. "
    "Give a point where the system rests.",
    "`control` lies outside the problem's control bounds, so the system cannot be held there.",
    "the stage cost is not strictly convex in the control there. Add a cost on every control.",
    "the system is not stabilisable there, or the stage cost does not see some mode that does not "
    "decay by itself. Check that the control reaches, and the cost weighs, every such mode (or use "
    "float64).",
)


class TerminalValue(eqx.Module):
    """Quadratic terminal cost `1/2 d'P d + p'd` with `d = x - state`; a callable `(x) -> scalar`.

    Attributes:
        state: the equilibrium, `(n,)`.
        P: Hessian, `(n, n)` [cost / unit^2].
        p: slope at the equilibrium, `(n,)` [cost / unit]; zero where the stage cost is stationary
            there.
        gain: `(m, n)`: the controller `control + gain @ (x - state)` holds the system there.
    """

    state: Float[Array, " n"]
    P: Float[Array, "n n"]
    p: Float[Array, " n"]
    gain: Float[Array, "m n"]

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        d = x - self.state
        return 0.5 * d @ self.P @ d + self.p @ d


def terminal_value(problem: ControlProblem, state: Numbers, control: Numbers) -> TerminalValue:
    r"""The infinite-horizon cost near an equilibrium, for use as a `terminal_cost`.

    Dynamics and stage cost are taken at stage 0, the one to first and the other to second order
    about `(state, control)`; bounds are not active in the value. The cost of resting at the
    equilibrium is left out, it would be paid for ever. Where the stage cost has a slope there
    (resting elsewhere would be cheaper) the value is the relative one, with a linear term.

    The result is differentiable to any order with respect to everything in `problem`, `state` and
    `control`. If parameters move the equilibrium, compute `state` and `control` from them.

    Args:
        problem: its `terminal_cost` is ignored.
        state: equilibrium, shape `(n,)`.
        control: what holds it there, shape `(m,)`.

    Returns:
        The value, callable as `(x) -> scalar`, with the gain of its controller.

    Raises:
        TypeError: if `problem` is not a `ControlProblem`, or `state` or `control` not made of real
            numbers.
        ValueError: for wrong shapes, NaN, a point that is not an equilibrium or outside the
            bounds, a stage cost not strictly convex in the control, a system that is not
            stabilisable or a cost that does not see what does not decay. Under `jax.jit`,
            `jax.grad` and `jax.vmap` the values are not known in time: then the last four are
            errors at run time, and one bad sample of a batch raises for the batch.
    """
    if not isinstance(problem, ControlProblem):
        raise TypeError(f"`problem` must be a ControlProblem, got {type(problem).__name__}.")
    state, control = as_floats("state", state), as_floats("control", control)
    if state.ndim != 1 or state.shape[0] == 0:
        raise ValueError(f"`state` must have shape (n,), but has shape {state.shape}.")
    if control.shape != (problem.control_size,):
        raise ValueError(
            f"`control` must have shape (m,) = ({problem.control_size},), but has shape "
            f"{control.shape}."
        )
    for name, tree in (("problem", problem), ("state", state), ("control", control)):
        check_concrete_values(name, tree)
    value, failed, numbers = _terminal_value(problem, state, control)
    if isinstance(failed, jax.core.Tracer):
        return eqx.branched_error_if(
            value, jnp.any(failed), jnp.argmax(failed), [f"terminal_value: {s}" for s in _FAILURES]
        )
    if np.any(failed):
        _refuse(int(np.argmax(failed)), numbers)
    return value


def _refuse(which: int, numbers: tuple[Array, Array]) -> NoReturn:
    gap, radius = (float(number) for number in numbers)
    seen = {
        0: f" (The largest difference is {gap:.3g}.)",
        3: f" (The spectral radius of the closed loop is {radius:.6g}, and must be below 1.)",
    }
    raise ValueError(f"terminal_value: {_FAILURES[which]}{seen.get(which, '')}")


@remembered_jit
def _terminal_value(problem: ControlProblem, state: Array, control: Array):
    """The value, which of `_FAILURES` occurred, and numbers for their messages."""
    stages, state = stage_problem(problem, state.astype(promoted_dtype(problem, state, control)))
    control = control.astype(state.dtype)
    n, eps = state.shape[0], jnp.finfo(state.dtype).eps
    tau, k = jnp.concatenate([state, control]), jnp.asarray(0)

    dynamics = lambda tau: stages.dynamics(tau[:n], tau[n:], k)
    stage_cost = lambda tau: stages.stage_cost(tau[:n], tau[n:], k)
    F = jax.jacfwd(dynamics)(tau)
    g, H = jax.grad(stage_cost)(tau), jax.hessian(stage_cost)(tau)
    H = symmetric(H)

    P = _riccati(F, H)
    M = H + F.T @ P @ F
    K = _gain(M, n)
    W = jnp.concatenate([jnp.eye(n, dtype=P.dtype), K])
    A_cl = F @ W
    # The slope of the cost-to-go: p = W'(g + F'p).
    p = jnp.linalg.solve(jnp.eye(n, dtype=P.dtype) - A_cl.T, W.T @ g)

    gap = jnp.max(jnp.abs(dynamics(tau) - state))
    outside = jnp.max(jnp.maximum(stages.lower[0] - control, control - stages.upper[0]))
    radius = _spectral_radius(jax.lax.stop_gradient(A_cl))
    residual = jnp.max(jnp.abs(W.T @ M @ W - P)) / jnp.maximum(1.0, jnp.max(jnp.abs(M)))
    # Written so that NaN fails.
    holds = [
        gap <= _EQUILIBRIUM_TOLERANCE * jnp.maximum(1.0, jnp.max(jnp.abs(state))),
        outside <= _EQUILIBRIUM_TOLERANCE * jnp.maximum(1.0, jnp.max(jnp.abs(control))),
        _positive(H[n:, n:]),
        (radius < 1.0 - eps**0.5) & (residual <= eps**0.5) & _positive(M[n:, n:]),
    ]
    return TerminalValue(state, P, p, K), ~jnp.stack(holds), (gap, radius)


@jax.custom_jvp
def _riccati(F: Float[Array, "n nm"], H: Float[Array, "nm nm"]) -> Float[Array, "n n"]:
    """The stabilising solution `P`; not finite, or not a solution, where there is none."""
    n = F.shape[0]
    A, B, Q, S, R = F[:, :n], F[:, n:], H[:n, :n], H[n:, :n], H[n:, n:]
    eye = jnp.eye(n, dtype=F.dtype)
    # The substitution u = v - R^-1 S x removes the cross term. Then, for 2^k stages at once: how
    # states move (A), what controls reach at unit cost (U U'), and what is paid (P). Keeping the
    # root U, as B R^-1 B' = U U', is what makes cheap controls safe in single precision.
    L = jnp.linalg.cholesky(R)
    R_S = cho_solve((L, True), S)
    U = _square_root(jnp.concatenate([solve_triangular(L, B.T, lower=True), 0.0 * eye]))
    start = (A - B @ R_S, U, Q - S.T @ R_S)

    def double(carry):
        k, (A, U, P), _ = carry
        # (I + U U'P)^-1 = I - U (I + U'P U)^-1 U'P
        L = jnp.linalg.cholesky(eye + symmetric(U.T @ P @ U))
        X = solve_triangular(L, U.T @ P @ A, lower=True)
        Y = solve_triangular(L, U.T @ A.T, lower=True)
        step = symmetric(A.T @ P @ A) - X.T @ X
        following = (A @ A - Y.T @ X, _square_root(jnp.concatenate([U.T, Y])), P + step)
        return k + 1, following, jnp.max(jnp.abs(step)) / jnp.max(jnp.abs(P + step))

    def unfinished(carry):
        k, _, change = carry
        # A comparison with NaN ends the loop.
        return (k < _DOUBLINGS) & (change > jnp.finfo(F.dtype).eps)

    def newton(_, P):
        W = jnp.concatenate([eye, _gain(H + F.T @ P @ F, n)])
        return _lyapunov(F @ W, W.T @ H @ W)

    _, (_, _, P), _ = jax.lax.while_loop(unfinished, double, (0, start, jnp.inf))
    # Newton's method (Kleinman 1968) takes away the rounding of R^-1 and of the doublings.
    return jax.lax.fori_loop(0, 2, newton, P)


@_riccati.defjvp
def _riccati_jvp(primals, tangents):
    (F, H), (dF, dH) = primals, tangents
    n = F.shape[0]
    P = _riccati(F, H)
    W = jnp.concatenate([jnp.eye(n, dtype=P.dtype), _gain(H + F.T @ P @ F, n)])
    dM = dH + dF.T @ P @ F + F.T @ P @ dF
    return P, _lyapunov(F @ W, W.T @ dM @ W)


def _lyapunov(A: Float[Array, "n n"], Y: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`X = A'X A + Y`, the sum of `A^i' Y A^i`, by doubling the number of terms.

    A fixed number of plain products, so JAX differentiates it as it stands, in both modes.
    """

    def double(carry, _):
        A, X = carry
        return (A @ A, X + A.T @ X @ A), None

    (_, X), _ = jax.lax.scan(double, (A, Y), length=_DOUBLINGS)
    return symmetric(X)


def _spectral_radius(A: Float[Array, "n n"]) -> Float[Array, ""]:
    """`lim |A^k|^(1/k)` by squaring, for lack of nonsymmetric eigenvalues on accelerators."""

    def square(carry, _):
        A, logarithm, power = carry
        norm = jnp.sqrt(jnp.sum(A**2))
        unit = A / jnp.where(norm > 0, norm, 1.0)
        return (unit @ unit, logarithm + jnp.log(norm) / power, 2.0 * power), None

    one = jnp.ones((), A.dtype)
    (_, logarithm, _), _ = jax.lax.scan(square, (A, 0.0 * one, one), length=_DOUBLINGS)
    return jnp.exp(logarithm)


def _gain(M: Float[Array, "nm nm"], n: int) -> Float[Array, "m n"]:
    return -jnp.linalg.solve(M[n:, n:], M[n:, :n])


def _positive(A: Float[Array, "m m"]) -> Bool[Array, ""]:
    """Whether a symmetric matrix is positive definite, to rounding."""
    return jnp.all(cholesky(A)[1] > 0.0)


def _square_root(rows: Float[Array, "k n"]) -> Float[Array, "n n"]:
    """`U` with `U U' = rows' rows`."""
    return jnp.linalg.qr(rows, mode="r").T
