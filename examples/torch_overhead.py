"""What the PyTorch layer costs beside the same call in JAX.

    python examples/torch_overhead.py [--quick]

Solution and gradient (by the initial states and every array of the problem) of the same scalar, in
float64: once as one compiled JAX function, once as `dc.torch.Controller` with `backward()`. The
two take turns; of each the best time counts.
"""

import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import torch

import diffcontrol as dc

jax.config.update("jax_enable_x64", True)
REPEATS = 5 if "--quick" in sys.argv else 60
BATCHES = (1, 32) if "--quick" in sys.argv else (1, 32, 128)


def linear_quadratic() -> dc.ControlProblem:
    """Four states, one control without bounds: solved in one iteration."""
    rng = np.random.default_rng(0)
    A, B = 0.8 * np.eye(4) + 0.15 * rng.standard_normal((4, 4)), rng.standard_normal((4, 1))
    return dc.ControlProblem(
        dynamics=eqx.Partial(lambda A, B, x, u, t: A @ x + B @ u, jnp.asarray(A), jnp.asarray(B)),
        stage_cost=dc.GoalCost(weights=np.ones(5), goal=rng.standard_normal(4)),
        horizon=50,
        control_size=1,
    )


def problems():
    """Names, problems, and functions `key -> initial state`."""
    pendulum, cartpole = dc.systems.pendulum, dc.systems.cartpole
    yield "pendulum T=20", pendulum.problem(20), pendulum.start
    yield "cartpole T=25", cartpole.problem(25), cartpole.start
    yield "linear-quadratic n=4 T=50", linear_quadratic(), lambda key: jax.random.normal(key, (4,))


def jax_call(problem):
    """`x0 -> value and gradients`, compiled."""

    def scalar(differentiated):
        problem, x0 = differentiated
        solution = jax.vmap(lambda x: dc.solve(problem, x, throw=False))(x0)
        return jnp.sum(solution.controls**2) + jnp.sum(solution.cost)

    compiled = eqx.filter_jit(eqx.filter_value_and_grad(scalar))
    return lambda x0: jax.block_until_ready(compiled((problem, x0)))


def torch_call(problem):
    """The same by the layer."""
    controller = dc.torch.Controller(problem)

    def call(x0):
        controller.zero_grad()
        solution = controller(x0.requires_grad_())
        ((solution.controls**2).sum() + solution.cost.sum()).backward()

    return call


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'':26}{'batch':>6}{'JAX ms':>10}{'torch ms':>10}{'ratio':>8}{'more us':>9}")
    for name, problem, start in problems():
        calls = jax_call(problem), torch_call(problem)
        for batch in BATCHES:
            x0 = jax.vmap(start)(jax.random.split(jax.random.key(0), batch))
            best = [np.inf, np.inf]
            for _ in range(REPEATS):
                for k, data in enumerate((x0, torch.tensor(np.asarray(x0)))):
                    begin = time.perf_counter()
                    calls[k](data)
                    best[k] = min(best[k], time.perf_counter() - begin)
            a, b = best
            print(
                f"{name:26}{batch:6}{a * 1e3:10.3f}{b * 1e3:10.3f}{b / a:8.2f}{(b - a) * 1e6:9.0f}"
            )


if __name__ == "__main__":
    main()
