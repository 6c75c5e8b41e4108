"""diffcontrol. With `DIFFCONTROL_KERNEL=jax` in the environment, without its compiled kernel."""

import jax
import jax.numpy as jnp
from protocol import serve

import diffcontrol as dc
from diffcontrol.systems import cartpole, pendulum

# The raw projected gradient that every answer must reach is 1e-6. The solver's own measure divides
# it by a scale, which is about 30 at most for these systems.
TOLERANCE = 1e-6 / 30


def prepare(case, arrays):
    if case["kind"] == "lq":
        return _lq(arrays)
    return _mpc({"pendulum": pendulum, "cartpole": cartpole}[case["kind"]], case, arrays)


def _lq(arrays):
    data = {name: jnp.asarray(array) for name, array in arrays.items()}
    names = ("C", "c", "F", "f", "x0")
    inputs = tuple(data[name] for name in names)

    def solve(C, c, F, f, x0):
        solution = dc.lqr(dc.LinearQuadraticProblem(C, c, F, f), x0, throw=False)
        return solution.states[:-1], solution.controls

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
        "memory": lambda: _memory(both, *inputs),
    }


def _mpc(system, case, arrays):
    x0s = jnp.asarray(arrays["x0"])
    start = system.problem(horizon=case["T"])
    limit = case["max_iterations"]
    solver = dc.DDP(tolerance=TOLERANCE, **({} if limit is None else {"max_iterations": limit}))
    guesses = jnp.zeros((len(x0s), case["T"], 1))
    if case["from_solution"]:
        found = jax.jit(jax.vmap(lambda x0: dc.solve(start, x0, throw=False).controls))
        guesses, solver = found(x0s), dc.DDP(fixed_iterations=limit)

    # The samples are shared out among as many devices as there are cores; see `peers.py`.
    mesh = jax.make_mesh((case["threads"],), ("batch",))
    everywhere, parts = jax.P(), jax.P("batch")

    def on_every_core(function, out_specs):
        return jax.jit(
            jax.shard_map(
                function,
                mesh=mesh,
                in_specs=(everywhere, parts, parts),
                out_specs=out_specs,
                check_vma=False,
            )
        )

    def solve(problem, x0s, guesses):
        def one(x0, guess):
            solution = dc.solve(problem, x0, solver, guess=guess, throw=False)
            return solution.states, solution.controls, solution.stats.iterations

        return jax.vmap(one)(x0s, guesses)

    def gradient(learned, x0s, guesses):
        def loss(learned):
            dynamics, cost = learned
            problem = dc.ControlProblem(
                dynamics=dynamics,
                stage_cost=cost,
                horizon=case["T"],
                control_size=1,
                control_bounds=start.control_bounds,
            )
            x, u, _ = solve(problem, x0s, guesses)
            return jnp.mean(x[:, :-1] ** 2) + jnp.mean(u**2)

        return jax.lax.pmean(jax.grad(loss)(learned), "batch")

    forward, both = on_every_core(solve, parts), on_every_core(gradient, everywhere)
    x0s, guesses = jax.device_put((x0s, guesses), jax.NamedSharding(mesh, parts))
    learned = start.dynamics, start.stage_cost
    problem, learned = jax.device_put((start, learned), jax.NamedSharding(mesh, everywhere))

    def answer(results):
        _, controls, iterations = results["forward"]
        dynamics, cost = results["forward+backward"]
        return {
            "controls": controls,
            "iterations": iterations,
            "dweights": cost.weights,
            "dgoal": cost.goal,
            "ddynamics": jnp.stack(jax.tree.leaves(dynamics)),
        }

    return {
        "forward": lambda: jax.block_until_ready(forward(problem, x0s, guesses)),
        "forward+backward": lambda: jax.block_until_ready(both(learned, x0s, guesses)),
        "answer": answer,
        "memory": lambda: _memory(both, learned, x0s, guesses),
    }


def _memory(function, *inputs):
    """What the compiled gradient allocates, exactly [MB]: its results and all in between."""
    found = function.lower(*inputs).compile().memory_analysis()
    return {"memory_mb": (found.temp_size_in_bytes + found.output_size_in_bytes) / 1e6}


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    serve(prepare, "diffcontrol", "jax", "jaxlib", "equinox", "numpy")
