"""Time and memory of one solve with its gradient: by the fixed point, and through the iterations.

Both run the same fixed number of iterations of iLQR: a tolerance of zero never stops early. So the
load is artificial, as in the papers' figures. The backward pass alone is a compiled function of
its residuals. Figures are medians of calls that take turns in one process.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

ADJOINTS = {"fixed point": dc.ImplicitAdjoint(), "unrolled": dc.UnrolledAdjoint()}


def passes(problem: dc.ControlProblem, x0s: jax.Array, iterations: int) -> dict[str, Any]:
    """Forward and backward pass of both ways, the bytes that each holds for its backward pass, and
    how far their gradients are apart, relative to the fixed point's."""
    solver = dc.ILQR(tolerance=0.0, max_iterations=iterations)
    runs: dict[str, Callable[[], Any]] = {}
    held, gradients = {}, {}
    for name, adjoint in ADJOINTS.items():

        def loss(problem, adjoint=adjoint):
            run = lambda x0: dc.solve(problem, x0, solver, adjoint=adjoint, throw=False).controls
            return jnp.mean(jax.vmap(run)(x0s) ** 2)

        forward = jax.jit(lambda problem, loss=loss: jax.vjp(loss, problem))
        backward = jax.jit(lambda pull: pull(jnp.ones(())))
        _, pull = jax.block_until_ready(forward(problem))
        gradients[name] = np.concatenate(
            [np.ravel(leaf) for leaf in jax.tree.leaves(backward(pull)[0])]
        )
        held[name] = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
        runs[f"{name} forward"] = lambda f=forward: jax.block_until_ready(f(problem))
        runs[f"{name} backward"] = lambda b=backward, p=pull: jax.block_until_ready(b(p))
    exact, unrolled = gradients["fixed point"], gradients["unrolled"]
    return {
        "seconds": medians(runs),
        "bytes": held,
        "apart": float(np.linalg.norm(exact - unrolled) / np.linalg.norm(exact)),
    }


def medians(runs: dict[str, Callable[[], Any]], repeats: int = 9) -> dict[str, float]:
    """Median time of each [s], taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in samples.items()}
