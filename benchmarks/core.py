"""Figures of the core: convergence from the papers' starts, and the cost of the backward pass.

    python -m benchmarks.core [--starts FILE.json]

`FILE.json` may hold `{"pendulum": {"x0": ..., "cost": ...}, "cartpole": ...}` from another solver,
so that both are judged from the same starts; without it the starts are drawn here. All times are
ratios of medians measured in one process, interleaved.
"""

import argparse
import json
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc
from diffcontrol.systems import cartpole, pendulum

SYSTEMS = {"pendulum": pendulum, "cartpole": cartpole}


def convergence(reference: dict | None) -> None:
    """Iterations, stationarity and mean cost over 100 starts of each system, T = 20."""
    for name, system in SYSTEMS.items():
        if reference:
            x0s = np.asarray(reference[name]["x0"])
        else:
            x0s = np.asarray(jax.vmap(system.start)(jax.random.split(jax.random.key(0), 100)))
        for dtype in (jnp.float64, jnp.float32):
            problem = jax.tree.map(lambda leaf, d=dtype: leaf.astype(d), system.problem(horizon=20))
            for solver in (dc.DDP(), dc.ILQR()):
                run = jax.jit(
                    jax.vmap(lambda x0, p=problem, s=solver: dc.solve(p, x0, s, throw=False))
                )
                solution = run(jnp.asarray(x0s, dtype))
                iterations = np.asarray(solution.stats.iterations)
                good = np.asarray(jax.vmap(lambda r: r == dc.RESULTS.successful)(solution.result))
                costs = _costs_in_float64(system, x0s, np.asarray(solution.controls, float))
                residual = np.asarray(solution.stats.stationarity)[good].max()
                line = (
                    f"{name:9} {dtype.__name__} {type(solver).__name__:4}: {good.sum()}/100 "
                    f"solved, stationarity up to {residual:.1e}, iterations mean "
                    f"{iterations.mean():.2f} max {iterations.max()}, mean cost {costs.mean():.8f}"
                )
                if reference:
                    theirs = np.asarray(reference[name]["cost"]) + 10.0
                    excess = (costs.mean() - theirs.mean()) / abs(theirs.mean())
                    line += f", reference {theirs.mean():.8f} (excess {100 * excess:+.4f} %)"
                print(line, flush=True)


def _costs_in_float64(system, x0s, controls) -> np.ndarray:
    """Every answer rolled out again in float64, by one common function."""
    problem = system.problem(horizon=controls.shape[1])

    def cost(x0, us):
        def advance(x, u):
            return problem.dynamics(x, u, 0), problem.stage_cost(x, u, 0)

        return jnp.sum(jax.lax.scan(advance, x0, us)[1])

    return np.asarray(jax.jit(jax.vmap(cost))(jnp.asarray(x0s), jnp.asarray(controls)))


def backward_cost() -> None:
    """Time of the backward pass against the number of iterations (DiLQR, Fig. 2)."""
    for horizon, batch in ((10, 32), (30, 32)):
        problem = pendulum.problem(horizon=horizon)
        problem = eqx.tree_at(lambda p: p.control_bounds, problem, dc.Bounds())
        x0s = jax.vmap(pendulum.start)(jax.random.split(jax.random.key(0), batch))
        for iterations in (50, 100, 300):
            # A tolerance of zero never stops early: the load is artificial, as in the paper.
            solver = dc.ILQR(tolerance=0.0, max_iterations=iterations)
            times = {
                "implicit": _backward(problem, x0s, solver, dc.ImplicitAdjoint()),
                "unrolled": _backward(problem, x0s, solver, dc.UnrolledAdjoint()),
                "plain scan": _pullback_of(lambda p, i=iterations: _plain(p, x0s, i), problem),
            }
            medians = _interleaved(times)
            print(
                f"T={horizon} batch={batch} iterations={iterations}: backward "
                + ", ".join(f"{k} {1e3 * v:.3f} ms" for k, v in medians.items())
                + f"; unrolled/implicit {medians['unrolled'] / medians['implicit']:.0f}x, "
                f"unrolled/plain {medians['unrolled'] / medians['plain scan']:.2f}",
                flush=True,
            )


def _backward(problem, x0s, solver, adjoint):
    def loss(problem):
        run = lambda x0: dc.solve(problem, x0, solver, adjoint=adjoint, throw=False).controls
        return jnp.mean(jax.vmap(run)(x0s) ** 2)

    return _pullback_of(loss, problem)


def _pullback_of(loss, problem):
    """The backward pass alone, compiled: residuals in, gradient out."""
    residuals = jax.jit(lambda p: jax.vjp(loss, p)[1])(problem)
    pull = jax.jit(lambda residuals: residuals(jnp.ones(())))
    jax.block_until_ready(pull(residuals))
    return lambda: jax.block_until_ready(pull(residuals))


def _plain(problem, x0s, iterations):
    """Unrolled iLQR as one would write it: linearise, Riccati, roll out, repeat; nothing else."""
    T, n, m = problem.horizon, x0s.shape[1], problem.control_size

    def solve(x0):
        def rollout(us):
            step = lambda x, u: (problem.dynamics(x, u, 0),) * 2
            return jnp.concatenate([x0[None], jax.lax.scan(step, x0, us)[1]])

        def iterate(carry, _):
            xs, us = carry
            cost = lambda tau: problem.stage_cost(tau[:n], tau[n:], 0)
            f = lambda tau: problem.dynamics(tau[:n], tau[n:], 0)
            taus = jnp.concatenate([xs[:-1], us], axis=1)
            H, g, F = (
                jax.vmap(jax.hessian(cost))(taus),
                jax.vmap(jax.grad(cost))(taus),
                jax.vmap(jax.jacfwd(f))(taus),
            )

            def backward(carry, inputs):
                V, v = carry
                H, g, F = inputs
                Q, q = H + F.T @ V @ F, g + F.T @ v
                K = -jnp.linalg.solve(Q[n:, n:], Q[n:, :n])
                k = -jnp.linalg.solve(Q[n:, n:], q[n:])
                return (Q[:n, :n] + Q[:n, n:] @ K, q[:n] + Q[:n, n:] @ k), (K, k)

            zero = jnp.zeros(n)
            _, (K, k) = jax.lax.scan(backward, (jnp.zeros((n, n)), zero), (H, g, F), reverse=True)

            def forward(x, inputs):
                x_old, u_old, K, k = inputs
                u = u_old + k + K @ (x - x_old)
                x_next = problem.dynamics(x, u, 0)
                return x_next, (x_next, u)

            _, (following, us) = jax.lax.scan(forward, x0, (xs[:-1], us, K, k))
            return (jnp.concatenate([x0[None], following]), us), None

        us = jnp.zeros((T, m))
        (_, us), _ = jax.lax.scan(iterate, (rollout(us), us), length=iterations)
        return us

    return jnp.mean(jax.vmap(solve)(x0s) ** 2)


def _interleaved(runs: dict, repeats: int = 9) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - started)
    return {name: float(np.median(values)) for name, values in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=Path, default=None)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    convergence(json.loads(arguments.starts.read_text()) if arguments.starts else None)
    backward_cost()


if __name__ == "__main__":
    main()
