"""What the PyTorch layer costs beside the same call in JAX.

    python examples/torch_overhead.py [--quick]

A scalar of a batch of solutions and its gradient by initial states and all arrays, in float64: as
one compiled function of JAX, and by `dc.torch.Controller`. They take turns; the best times count.
"""

import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch

import diffcontrol as dc
from diffcontrol.systems import cartpole, pendulum

QUICK = "--quick" in sys.argv
REPEATS, BATCHES = (5, (4,)) if QUICK else (100, (1, 32, 128))


def linear_quadratic() -> dc.ControlProblem:
    """Four states, one control, no bounds: solved in one iteration."""
    rng = np.random.default_rng(0)
    A, B = 0.8 * np.eye(4) + 0.15 * rng.standard_normal((4, 4)), rng.standard_normal((4, 1))
    return dc.ControlProblem(
        dynamics=eqx.Partial(lambda A, B, x, u, t: A @ x + B @ u, jnp.asarray(A), jnp.asarray(B)),
        stage_cost=dc.GoalCost(weights=np.ones(5), goal=rng.standard_normal(4)),
        horizon=50,
        control_size=1,
    )


def jax_call(problem):
    def scalar(both):
        solution = jax.vmap(lambda x0: dc.solve(both[0], x0, throw=False))(both[1])
        return jnp.sum(solution.controls**2) + jnp.sum(solution.cost)

    compiled = eqx.filter_jit(eqx.filter_value_and_grad(scalar))
    return lambda x0: jax.block_until_ready(compiled((problem, x0)))


def torch_call(problem):
    controller = dc.torch.Controller(problem)

    def call(x0):
        controller.zero_grad()
        solution = controller(x0.requires_grad_())
        ((solution.controls**2).sum() + solution.cost.sum()).backward()

    return call


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    cases = [
        ("pendulum T=20", pendulum.problem(20), pendulum.start),
        ("cartpole T=25", cartpole.problem(25), cartpole.start),
        ("linear-quadratic T=50", linear_quadratic(), lambda key: jax.random.normal(key, (4,))),
    ]
    print(f"{'':22}{'batch':>6}{'JAX ms':>10}{'torch ms':>10}{'ratio':>7}{'more us':>9}")
    for name, problem, start in cases[: 1 if QUICK else None]:
        calls = jax_call(problem), torch_call(problem)
        for batch in BATCHES:
            x0 = jax.vmap(start)(jax.random.split(jax.random.key(0), batch))
            best = [np.inf, np.inf]
            for _ in range(REPEATS):
                for k, data in enumerate((x0, torch.tensor(np.asarray(x0)))):
                    begin = time.perf_counter()
                    calls[k](data)
                    best[k] = min(best[k], 1e3 * (time.perf_counter() - begin))
            a, b = best
            print(f"{name:22}{batch:6}{a:10.3f}{b:10.3f}{b / a:7.2f}{1e3 * (b - a):9.0f}")


if __name__ == "__main__":
    main()
