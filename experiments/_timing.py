"""Time and memory of one solve with its gradient: by the fixed point, and through the iterations.

Both are asked for the same number of iterations of iLQR, with a tolerance of zero. So the load is
artificial, as in the papers' figures. Only rounding stops a run early: the fixed point's forward
pass ends where no step improves the cost any more, while the unrolled one has to go on.

The backward pass alone is a compiled function of its residuals. Figures are medians over rounds in
one process, in which all ways and numbers of iterations take turns. The first call of each turn is
kept apart as "cold": a backward pass follows the forward pass that has just written its residuals,
and not a stranger that has filled the caches with hundreds of megabytes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

from ._sweep import say

ADJOINTS = {"fixed point": dc.ImplicitAdjoint(), "unrolled": dc.UnrolledAdjoint()}
ENOUGH = 0.005  # seconds of each turn


def passes(
    problem: dc.ControlProblem, x0s: jax.Array, counts: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """For each number of iterations: times of forward and backward pass of both ways, warm and cold
    [s], the bytes that each holds for its backward pass, and how far their gradients are apart,
    relative to the fixed point's."""
    runs: dict[tuple[int, str], Callable[[], Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    for count in counts:
        solver = dc.ILQR(tolerance=0.0, max_iterations=count)
        held, gradients = {}, {}
        for name, adjoint in ADJOINTS.items():

            def loss(problem, adjoint=adjoint, solver=solver):
                run = lambda x0: (
                    dc.solve(problem, x0, solver, adjoint=adjoint, throw=False).controls
                )
                return jnp.mean(jax.vmap(run)(x0s) ** 2)

            forward = jax.jit(lambda problem, loss=loss: jax.vjp(loss, problem))
            backward = jax.jit(lambda pull: pull(jnp.ones(())))
            _, pull = jax.block_until_ready(forward(problem))
            gradients[name] = np.concatenate(
                [np.ravel(leaf) for leaf in jax.tree.leaves(backward(pull)[0])]
            )
            held[name] = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
            ready = jax.block_until_ready
            runs[count, f"{name} forward"] = lambda f=forward: ready(f(problem))
            runs[count, f"{name} backward"] = lambda b=backward, p=pull: ready(b(p))
        exact, unrolled = gradients["fixed point"], gradients["unrolled"]
        apart = float(np.linalg.norm(exact - unrolled) / np.linalg.norm(exact))
        found[str(count)] = {"seconds": {}, "cold": {}, "bytes": held, "apart": apart}
        say(f"{count} iterations compiled")
    for (count, name), (warm, cold) in medians(runs).items():
        found[str(count)]["seconds"][name] = warm
        found[str(count)]["cold"][name] = cold
    return found


def medians(
    runs: Mapping[Any, Callable[[], Any]], rounds: int = 7
) -> dict[Any, tuple[float, float]]:
    """Median times of each [s], taking turns: of the later calls of a turn, and of its first."""
    warm: dict[Any, list[float]] = {name: [] for name in runs}
    cold: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            cold[name].append(_seconds(run))
            elapsed = 0.0
            while elapsed < ENOUGH:  # short ones more often
                warm[name].append(_seconds(run))
                elapsed += warm[name][-1]
    return {name: (float(np.median(warm[name])), float(np.median(cold[name]))) for name in runs}


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def when_cold(of_count: Mapping[str, Any]) -> str:
    """The ratio of the cold backward passes; nothing of a run that did not keep their times."""
    if "cold" not in of_count:
        return ""
    ratio = of_count["cold"]["unrolled backward"] / of_count["cold"]["fixed point backward"]
    return f" Cold, by the first call of each turn, the ratio is {ratio:.3g}."
