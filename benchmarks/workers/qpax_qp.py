"""qpax: dense quadratic programs in JAX, by an interior-point method, differentiated implicitly.

The problem is a program in `z = (tau_0, ..., tau_{T-1})`; the dynamics are its equations. qpax
wants inequalities, too: controls get bounds far from any solution.
"""

import jax
import jax.numpy as jnp
import numpy as np
import qpax
from protocol import Unable, serve

_MOST_WORK = 2e8  # batch times unknowns cubed, as its matrices are dense; seconds a call
_FAR = 1e3
# Its defaults (1e-5 and 1e-3) would return gradients that are 10 % off.
_SETTINGS = dict(solver_tol=1e-8, target_kappa=1e-8, max_iter=50)


def prepare(case, arrays):
    n, m, T = case["n"], case["m"], case["T"]
    size = T * (n + m)
    if case["batch"] * size**3 > _MOST_WORK:
        raise Unable(f"left out: dense matrices of {size} unknowns take minutes a call")
    data = {name: jnp.asarray(array) for name, array in arrays.items()}
    names = ("C", "c", "F", "f", "x0")
    inputs = tuple(data[name] for name in names)
    controls = np.arange(size).reshape(T, n + m)[:, n:].ravel()
    G = jnp.asarray(np.concatenate([np.eye(size)[controls], -np.eye(size)[controls]]))
    h = jnp.full(len(G), _FAR)

    def solve(C, c, F, f, x0):
        Q = jax.scipy.linalg.block_diag(*C)
        # x_0 = x0 and x_{t+1} - F_t tau_t = f_t: the states of all stages, less what F makes.
        A = jnp.zeros((T, n, T, n + m))
        A = A.at[np.arange(T), :, np.arange(T), :n].set(jnp.eye(n))
        A = A.at[np.arange(1, T), :, np.arange(T - 1)].set(-F[:-1])
        b = jnp.concatenate([x0[None], f[:-1]]).ravel()
        z = qpax.solve_qp_primal(Q, c.ravel(), A.reshape(T * n, size), b, G, h, **_SETTINGS)
        tau = z.reshape(T, n + m)
        return tau[:, :n], tau[:, n:]

    def loss(*inputs):
        x, u = jax.vmap(solve)(*inputs)
        return jnp.sum(data["wx"] * x) + jnp.sum(data["wu"] * u)

    forward = jax.jit(jax.vmap(solve))
    both = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))

    def answer(results):
        gradients = zip(names, results["forward+backward"], strict=True)
        return {"controls": results["forward"][1], **{f"d{name}": g for name, g in gradients}}

    return {
        "forward": lambda: jax.block_until_ready(forward(*inputs)),
        "forward+backward": lambda: jax.block_until_ready(both(*inputs)),
        "answer": answer,
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    serve(prepare, "qpax", "jax", "numpy")
