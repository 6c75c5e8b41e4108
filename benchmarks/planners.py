"""Soft top-k and the differentiable cross-entropy method against eager PyTorch.

    python -m benchmarks.planners [--rounds N]

PyTorch has no such package that is kept, so the same algorithms are written here in its eager mode,
operation by operation as the papers describe them: the projection by repeated subdivision of a
bracket, as published, and DCEM with it. All run in one process, taking turns; the table states
medians and ratios. PyTorch has one thread, JAX as many as there are cores: `taskset -c 0` leaves it
one, too, while starts at once gain from more.
"""

import argparse
import os
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch

import diffcontrol as dc
from diffcontrol.systems import cartpole

SCORES, ROWS, CHOSEN = 1000, 256, 5
SAMPLES, ELITES, ITERATIONS, HORIZON = 100, 10, 10, 20


class EagerProjection(torch.autograd.Function):
    """The limited multi-label projection of each row, and its derivative."""

    @staticmethod
    def forward(ctx, scores, k):
        ordered = torch.sort(scores, dim=1, descending=True).values
        low, high = -ordered[:, k - 1] - 7.0, -ordered[:, k] + 7.0
        parts, width = 10, 1e-4
        shares = torch.linspace(0.0, 1.0, parts, dtype=scores.dtype)
        for _ in range(100):
            if float((high - low).max()) <= width:
                break
            tried = low[:, None] + shares * (high - low)[:, None]
            sums = torch.sigmoid(scores[:, None, :] + tried[:, :, None]).sum(-1)
            below = (sums < k).sum(1).clamp(1, parts - 1)
            low = tried.gather(1, below[:, None] - 1)[:, 0]
            high = tried.gather(1, below[:, None])[:, 0]
        y = torch.sigmoid(scores + 0.5 * (low + high)[:, None])
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        w = y * (1.0 - y)
        shift = (w * gradient).sum(1, keepdim=True) / w.sum(1, keepdim=True)
        return w * (gradient - shift), None


def eager_step(parameters, x, u):
    """The cartpole of `diffcontrol.systems`, `(N, 5)` and `(N, 1)`."""
    gravity, cart, pole, half = parameters
    u = u[:, 0].clamp(-100.0, 100.0)
    position, speed, cos, sin, turn = x.unbind(1)
    angle, mass = torch.atan2(sin, cos), cart + pole
    a = (u + pole * half * turn**2 * sin) / mass
    spin = (gravity * sin - cos * a) / (half * (4.0 / 3.0 - pole * cos**2 / mass))
    along = a - pole * half * spin * cos / mass
    dt = 0.05
    angle = angle + dt * turn
    return torch.stack(
        [
            position + dt * speed,
            speed + dt * along,
            torch.cos(angle),
            torch.sin(angle),
            turn + dt * spin,
        ],
        1,
    )


def eager_cost(parameters, x0, controls, weights, goal):
    """Costs of `(N, T, 1)` controls from one state."""
    x, total = x0.expand(len(controls), -1), 0.0
    for t in range(controls.shape[1]):
        u = controls[:, t]
        tau = torch.cat([x, u], 1)
        total = total + 0.5 * (weights * (tau - goal) ** 2).sum(1)
        x = eager_step(parameters, x, u)
    return total


def eager_plan(parameters, x0, weights, goal, lower, upper):
    """DCEM with temperature 1; the controls' cost, to differentiate."""
    mean = torch.zeros(HORIZON, 1, dtype=x0.dtype)
    spread = torch.full_like(mean, 0.5 * (upper - lower))
    for _ in range(ITERATIONS):
        X = mean + spread * torch.randn(SAMPLES, HORIZON, 1, dtype=x0.dtype)
        X = X.clamp(lower, upper)
        costs = eager_cost(parameters, x0, X, weights, goal)
        z = (costs - costs.mean()) / (costs.std() + 1e-6)
        w = EagerProjection.apply(-z[None], ELITES)[0][:, None, None]
        mean = (w * X).sum(0) / ELITES
        spread = torch.sqrt((w * (X - mean) ** 2).sum(0) / ELITES)
    return eager_cost(parameters, x0, mean[None], weights, goal)[0]


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median time of each [s], taking turns; each first once untimed."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in samples.items()}


def projections() -> tuple[dict[str, Callable[[], object]], str]:
    """Forward and backward of the projection of 256 rows, float32, and how exact both are."""
    rng = np.random.default_rng(0)
    scores, gradient = rng.normal(size=(2, ROWS, SCORES)).astype(np.float32)

    @jax.jit
    def both(scores, gradient):
        k, temperature = jnp.float32(CHOSEN), jnp.float32(1.0)
        y, pull = jax.vjp(jax.vmap(lambda row: dc.limited_multi_label(row, k, temperature)), scores)
        return y, pull(gradient)

    def eager():
        x = torch.tensor(scores, requires_grad=True)
        y = EagerProjection.apply(x, CHOSEN)
        y.backward(torch.tensor(gradient))
        return y.detach().numpy(), x.grad.numpy()

    off = lambda y: float(np.abs(np.asarray(y, np.float64).sum(1) - CHOSEN).max())
    errors = off(both(scores, gradient)[0]), off(eager()[0])
    told = f"largest error of a sum: {errors[0]:.1e} (ours), {errors[1]:.1e}"
    ours = lambda: jax.block_until_ready(both(scores, gradient))
    return {"projection, diffcontrol": ours, "projection, PyTorch": eager}, told


def plans(bits: int) -> tuple[dict[str, Callable[[], object]], str]:
    """Value and gradient, by the four parameters of the dynamics, of one DCEM plan."""
    ours, theirs = {64: (jnp.float64, torch.float64), 32: (jnp.float32, torch.float32)}[bits]
    cast = lambda tree: jax.tree.map(
        lambda leaf: leaf.astype(ours) if eqx.is_inexact_array(leaf) else leaf, tree
    )
    problem, key = cast(cartpole.problem(HORIZON)), jax.random.key(0)
    planner = cast(
        dc.CEM(samples=SAMPLES, elites=ELITES, iterations=ITERATIONS, temperature=jnp.ones(()))
    )
    x0 = cast(cartpole.start(jax.random.key(1)))

    def cost(dynamics, x0, key):
        with_it = eqx.tree_at(lambda problem: problem.dynamics, problem, dynamics)
        return dc.solve(with_it, x0, planner, key=key, throw=False).cost

    one = jax.jit(jax.value_and_grad(cost))
    starts = cast(jax.vmap(cartpole.start)(jax.random.split(jax.random.key(2), 32)))
    keys = jax.random.split(key, 32)
    many = jax.jit(jax.vmap(jax.value_and_grad(cost), in_axes=(None, 0, 0)))

    dynamics = problem.dynamics
    parameters = [
        torch.tensor(float(value), dtype=theirs, requires_grad=True)
        for value in (
            dynamics.gravity,
            dynamics.cart_mass,
            dynamics.pole_mass,
            dynamics.half_length,
        )
    ]
    usual = cartpole.cost()
    weights = torch.tensor(np.asarray(usual.weights))
    goal = torch.zeros_like(weights)
    goal[: usual.goal.size] = torch.tensor(np.asarray(usual.goal))
    state = torch.tensor(np.asarray(x0))

    def eager():
        value = eager_plan(parameters, state, weights, goal, -100.0, 100.0)
        return value, torch.autograd.grad(value, parameters)

    # That both are the same problem: cost of the same controls.
    controls = np.random.default_rng(0).uniform(-5, 5, size=(1, HORIZON, 1))
    with torch.no_grad():
        held = torch.tensor(controls, dtype=theirs)
        eager_says = float(eager_cost(parameters, state, held, weights, goal)[0])
    held = cast(dc.RandomShooting(samples=1, spread=0.0))
    we_say = float(dc.solve(problem, x0, held, guess=controls[0], key=key).cost)
    ready, name = jax.block_until_ready, f"DCEM, float{bits}"
    return {
        f"{name}, diffcontrol": lambda: ready(one(dynamics, x0, key)),
        f"{name}, PyTorch": eager,
        f"{name}, 32 starts at once, diffcontrol": lambda: ready(many(dynamics, starts, keys)),
    }, f"cost of the same controls: {we_say:.6g} (ours), {eager_says:.6g}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planners", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default: 9)")
    rounds = parser.parse_args().rounds
    jax.config.update("jax_enable_x64", True)
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} cores; jax {jax.__version__}, torch {torch.__version__}")
    for make in (projections, lambda: plans(64), lambda: plans(32)):
        runs, told = make()
        times = medians(runs, rounds)
        for name, seconds in times.items():
            print(f"{name:45} {1e3 * seconds:9.3f} ms")
        ours, theirs, *more = times.values()
        print(f"{'':45} {theirs / ours:9.1f} times faster; {told}")
        for at_once in more:
            print(f"{'':45} {at_once / ours:9.1f} times one")


if __name__ == "__main__":
    main()
