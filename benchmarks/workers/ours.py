"""diffcontrol."""

import jax
import jax.numpy as jnp
from protocol import serve

import diffcontrol as dc
from diffcontrol.systems import cartpole, pendulum


def prepare(case, arrays):
    if case["kind"] == "lq":
        return _lq(arrays)
    return _mpc({"pendulum": pendulum, "cartpole": cartpole}[case["kind"]], case["T"], arrays)


def _lq(arrays):
    data = {name: jnp.asarray(array) for name, array in arrays.items()}
    inputs = tuple(data[name] for name in ("C", "c", "F", "f", "x0"))

    def solve(C, c, F, f, x0):
        solution = dc.lqr(dc.LinearQuadraticProblem(C, c, F, f), x0, throw=False)
        return solution.states[:-1], solution.controls

    def loss(*inputs):
        x, u = jax.vmap(solve)(*inputs)
        return jnp.sum(data["wx"] * x) + jnp.sum(data["wu"] * u)

    forward = jax.jit(jax.vmap(solve))
    both = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))
    return {
        "forward": lambda: jax.block_until_ready(forward(*inputs)),
        "forward+backward": lambda: jax.block_until_ready(both(*inputs)),
        "answer": lambda: {
            "controls": forward(*inputs)[1],
            **{f"d{k}": g for k, g in zip(("C", "c", "F", "f", "x0"), both(*inputs), strict=True)},
        },
    }


def _mpc(system, T, arrays):
    x0s = jnp.asarray(arrays["x0"])
    start = system.problem(horizon=T)
    solver = dc.DDP(tolerance=1e-6 / 30)  # relative; the raw measure divides by at most about 30

    def solve(problem, x0):
        solution = dc.solve(problem, x0, solver, throw=False)
        return solution.states, solution.controls, solution.stats.iterations

    def loss(dynamics, cost):
        problem = dc.ControlProblem(
            dynamics=dynamics,
            stage_cost=cost,
            horizon=T,
            control_size=1,
            control_bounds=start.control_bounds,
        )
        x, u, _ = jax.vmap(lambda x0: solve(problem, x0))(x0s)
        return jnp.mean(x[:, :-1] ** 2) + jnp.mean(u**2)

    forward = jax.jit(lambda problem: jax.vmap(lambda x0: solve(problem, x0))(x0s))
    both = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return {
        "forward": lambda: jax.block_until_ready(forward(start)),
        "forward+backward": lambda: jax.block_until_ready(both(start.dynamics, start.stage_cost)),
        "answer": lambda: {"controls": forward(start)[1], "iterations": forward(start)[2]},
    }


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    serve(prepare)
