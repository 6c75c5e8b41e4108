r"""The backward sweep of box-constrained iLQR and DDP (Tassa et al. 2014).

A Riccati recursion about a trajectory in which every stage solves a box QP for the change `k_t`
of its control, and the gain is non-zero only for the controls that this leaves free:

    Q_t = H_t + F_t' V_{t+1} F_t,   q_t = g_t + F_t' v_{t+1}
    k_t = argmin_{lower <= k <= upper} 1/2 k' R k + q_u' k,   R = Q_uu + mu I
    K_t = -R_ff^-1 Q_fx
    V_t = Q_xx + K' Q_ux + Q_xu K + K' Q_uu K,   v_t = q_x + Q_xu k + K' (q_u + Q_uu k)
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .box_qp import solve_box_qp
from .cholesky import solve_factored
from .riccati import symmetric


class Policy(eqx.Module):
    """The improvement `u_t + alpha k_t + K_t (x - x_t)` and what the model expects of it.

    The model predicts a change of cost of `alpha * linear + alpha^2 / 2 * quadratic`.
    """

    K: Float[Array, "T m n"]
    k: Float[Array, "T m"]
    linear: Float[Array, ""]
    quadratic: Float[Array, ""]
    positive: Bool[Array, ""]


def sweep(
    H: Float[Array, "T nm nm"],
    H_N: Float[Array, "n n"],
    F: Float[Array, "T n nm"],
    g: Float[Array, "T nm"],
    g_N: Float[Array, " n"],
    lower: Float[Array, "T m"],
    upper: Float[Array, "T m"],
    regularisation: Float[Array, ""],
) -> Policy:
    """One backward sweep. `lower`, `upper` bound the change of the controls."""
    n, m = H_N.shape[0], lower.shape[1]
    identity = jnp.eye(m, dtype=H.dtype)

    def stage(carry, inputs):
        V, v = carry
        H, F, g, lower, upper = inputs
        Q = H + F.T @ V @ F
        q = g + F.T @ v
        Q_xx, Q_ux, Q_uu = Q[:n, :n], Q[n:, :n], Q[n:, n:]
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
        stage, (H_N, g_N), (H, F, g, lower, upper), reverse=True
    )
    return Policy(K, k, jnp.sum(linear), jnp.sum(quadratic), jnp.all(positive))
