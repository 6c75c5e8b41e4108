r"""The backward sweep of box-constrained iLQR and DDP (Tassa et al. 2014).

A Riccati recursion about a trajectory in which every stage solves a box QP for the change `k_t`
of its control, and the gain is non-zero only for the controls that this leaves free:

    Q_t = H_t + F_t' V_{t+1} F_t,   q_t = g_t + F_t' v_{t+1}
    k_t = argmin_{lower <= k <= upper} 1/2 k' R k + q_u' k,   R = Q_uu + mu I
    K_t = -R_ff^-1 Q_fx
    V_t = Q_xx + K' Q_ux + Q_xu K + K' Q_uu K,   v_t = q_x + Q_xu k + K' (q_u + Q_uu k)

Three Hessians are tried, and the first that is of use taken:

1. the exact one `H + D`, if every `R_ff` is positive definite;
2. the Gauss-Newton one `H`, if that holds for it and it promises a decrease that is `worthwhile`:
   far from a solution its steps are the better ones;
3. the exact one with every `Q_uu` made positive definite (Gill, Murray and Wright 1981, section
   4.4.2.2). Near a saddle Gauss-Newton steps creep, hundreds of them; these leave along the
   direction of negative curvature, twice as far each time.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from . import native
from .box_qp import solve_box_qp
from .cholesky import convexify, solve_factored
from .riccati import symmetric


class Policy(eqx.Module):
    """The improvement `u_t + alpha k_t + K_t (x - x_t)` and what the model expects of it.

    The model predicts a change of cost of `alpha * linear + alpha^2 / 2 * quadratic`.
    """

    K: Float[Array, "*B T m n"]
    k: Float[Array, "*B T m"]
    linear: Float[Array, "*B"]
    quadratic: Float[Array, "*B"]
    positive: Bool[Array, "*B"]


class Expansion(eqx.Module):
    """The problem about a trajectory, to second order.

    `D` is what the curvature of the dynamics adds to `H`; None leaves it out. `lower`, `upper`
    bound the change of the controls.
    """

    H: Float[Array, "*B T nm nm"]
    D: Float[Array, "*B T nm nm"] | None
    H_N: Float[Array, "*B n n"]
    F: Float[Array, "*B T n nm"]
    g: Float[Array, "*B T nm"]
    g_N: Float[Array, "*B n"]
    lower: Float[Array, "*B T m"]
    upper: Float[Array, "*B T m"]


@jax.custom_jvp
def sweep(
    expansion: Expansion,
    regularisation: Float[Array, ""],
    worthwhile: Float[Array, ""],
    wanted: Bool[Array, ""],
) -> Policy:
    """One backward sweep. Where it is not `wanted` the result means nothing and costs little."""

    def compiled(e, *args):
        arrays = (e.H, e.D, e.H_N, e.F, e.g, e.g_N, e.lower, e.upper)
        return Policy(*native.sweep(*arrays, *args))

    controls = expansion.lower.shape[-1]
    args = (expansion, regularisation, worthwhile, wanted)
    return native.dispatch(compiled, sweep_in_jax, controls, *args)


@sweep.defjvp
def _sweep_jvp(primals, tangents):
    return jax.jvp(lambda *args: native.batch_first(sweep_in_jax(*args)), primals, tangents)


def sweep_in_jax(
    expansion: Expansion,
    regularisation: Float[Array, ""],
    worthwhile: Float[Array, ""],
    wanted: Bool[Array, ""],
) -> Policy:
    """`sweep`, stage by stage; all Hessians at once."""
    e = expansion
    del wanted
    if e.D is None:
        return _sweep_with(e.H, jnp.asarray(False), e, regularisation)
    exact = e.H + e.D
    policies = jax.vmap(_sweep_with, in_axes=(0, 0, None, None))(
        jnp.stack([exact, e.H, exact]), jnp.array([False, False, True]), e, regularisation
    )
    promised = -(policies.linear + 0.5 * policies.quadratic)
    useful = policies.positive & jnp.array([True, promised[1] >= worthwhile, True])
    first = jnp.where(jnp.any(useful), jnp.argmax(useful), 2)
    return jax.tree.map(lambda leaf: leaf[first], policies)


def _sweep_with(
    H: Float[Array, "T nm nm"], convexified: Bool[Array, ""], e: Expansion, regularisation: Array
) -> Policy:
    n, m = e.H_N.shape[0], e.lower.shape[1]
    identity = jnp.eye(m, dtype=H.dtype)

    def stage(carry, inputs):
        V, v = carry
        H, F, g, lower, upper = inputs
        Q = H + F.T @ V @ F
        q = g + F.T @ v
        Q_xx, Q_ux, Q_uu = Q[:n, :n], Q[n:, :n], Q[n:, n:]
        Q_uu = jnp.where(convexified, convexify(Q_uu), Q_uu)
        step = solve_box_qp(Q_uu + regularisation * identity, q[n:], lower, upper)
        k = step.k
        K = -solve_factored(step.L, jnp.where(step.free[:, None], Q_ux, 0.0))
        coupling = K.T @ (Q_ux + 0.5 * Q_uu @ K)
        # The antisymmetric part of V is rounding, but the recursion would let it grow with the
        # open-loop dynamics, which may be unstable; so it is dropped.
        V = symmetric(Q_xx) + coupling + coupling.T
        v = q[:n] + Q_ux.T @ k + K.T @ (q[n:] + Q_uu @ k)
        return (V, v), (K, k, q[n:] @ k, k @ Q_uu @ k, jnp.all(step.pivots > 0))

    _, (K, k, linear, quadratic, positive) = jax.lax.scan(
        stage, (e.H_N, e.g_N), (H, e.F, e.g, e.lower, e.upper), reverse=True
    )
    return Policy(K, k, jnp.sum(linear), jnp.sum(quadratic), jnp.all(positive))
