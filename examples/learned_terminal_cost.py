"""A horizon of 5 that acts like one of 25: its terminal cost is learned from plans of the long one.

Source of the idea: Tamar, Thomas, Zhang, Levine and Abbeel, "Learning from the Hindsight Plan",
ICRA 2017. By dynamic programming a horizon of 5 acts exactly like one of 25 if its terminal cost is
the optimal cost of the other 20 stages. Every long plan tells that cost, and through its costates
the slope of it, at each state that it passes in stage 5: this is what a network is fitted to.

A network is no cheaper than the simple stages that it replaces unless it is small, and its shape
asks for more iterations; a fixed number of them (real-time iteration) is enough in a closed loop.

    python examples/learned_terminal_cost.py [--quick]
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffcontrol as dc
from diffcontrol import learning
from diffcontrol.models import Normalisation
from diffcontrol.systems import pendulum

LONG, SHORT = 25, 5


class Told(eqx.Module):
    """What a plan tells about one state: the cost from there on, and its slope."""

    state: jax.Array
    cost: jax.Array
    slope: jax.Array


class Fits(learning.AbstractLoss):
    """Squared errors of a terminal cost and of its slope, each in units of its usual size."""

    cost: jax.Array
    slope: jax.Array

    def start(self, sample):
        return None

    def __call__(self, model, sample, memory):
        value, slope = jax.value_and_grad(model)(sample.state)
        error = ((value - sample.cost) / self.cost) ** 2
        error += jnp.mean(((slope - sample.slope) / self.slope) ** 2)
        return learning.Judged(error, jnp.isfinite(error), None)


def closed_loops(controller, keys, steps):
    """The closed loop from one random start for each key."""
    plant, x0s = controller.problem.dynamics, jax.vmap(pendulum.start)(keys)
    return jax.vmap(lambda x0: dc.simulate(controller, plant, x0, steps))(x0s)


def costs_of(loops):
    cost = jax.vmap(jax.vmap(lambda x, u: pendulum.cost()(x, u, 0)))
    return np.asarray(cost(loops.states[:, :-1], loops.controls).sum(axis=1))


@eqx.filter_jit
def told_by(problem, states, guesses):
    """What long plans from `states` tell about their states in stage 5, and which converged."""

    def one(x0, guess):
        plan = dc.solve(problem, x0, guess=guess, throw=False)
        stage = jax.vmap(lambda x, u: problem.stage_cost(x, u, 0))(plan.states[:-1], plan.controls)
        told = Told(plan.states[SHORT], jnp.sum(stage[SHORT:]), plan.costates[SHORT])
        return told, plan.result == dc.RESULTS.successful

    return jax.vmap(one)(states, guesses)


def microseconds_per_step(controller, keys, steps, repeats):
    """The time of one step of one closed loop in a batch of them, the best of several runs [us]."""
    run = eqx.filter_jit(closed_loops)
    taken = []
    for _ in range(repeats + 1):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready(run(controller, keys, steps))
        taken.append(time.perf_counter() - start)
    return 1e6 * min(taken[1:]) / (len(keys) * steps)


def main(quick):
    jax.config.update("jax_enable_x64", True)
    runs, steps, epochs, tests = (6, 20, 10, 4) if quick else (60, 60, 150, 64)
    problem = pendulum.problem(horizon=LONG)
    long = dc.MPC(problem)

    # Some noise leads the recorded states off the few paths that the controller would take.
    keys = jax.random.split(jax.random.key(0), runs)
    wander = lambda x, u, t: (
        problem.dynamics(x, u, t) + 0.1 * jnp.sin(x[2] + 7.0 * t) * jnp.array([0.0, 0.0, 1.0])
    )
    loops = jax.vmap(lambda x0: dc.simulate(long, wander, x0, steps))(
        jax.vmap(pendulum.start)(keys)
    )
    flat = lambda array: array.reshape(-1, *array.shape[2:])
    told, solved = told_by(problem, flat(loops.states[:, 1:]), flat(loops.memory.controls))
    print(f"{int(solved.sum())} of {solved.size} plans converged; the others tell nothing.")
    told = jax.tree.map(lambda array: array[np.asarray(solved)], told)

    network = dc.NeuralTerminalCost(
        3, width=16, outputs=4, inputs=Normalisation.fitted_to(told.state), key=jax.random.key(1)
    )
    coordinates, parametrisation = learning.parametrise(network)
    order = np.random.default_rng(0).permutation(told.cost.size)
    held, used = (
        jax.tree.map(lambda a, i=i: a[i], told) for i in np.split(order, [order.size // 10])
    )
    batches = -(-used.cost.size // 128)
    fitted = learning.train(
        Fits(jnp.std(told.cost), jnp.std(told.slope, axis=0)),
        parametrisation,
        coordinates,
        used,
        held,
        optimiser=optax.adam(optax.cosine_decay_schedule(5e-3, epochs * batches)),
        epochs=epochs,
        batch_size=128,
        key=jax.random.key(2),
    )
    print(f"relative squared error on held-out states: {fitted.best_loss:.4f}\n")

    brief = pendulum.problem(horizon=SHORT)
    learned = eqx.tree_at(
        lambda p: p.terminal_cost, brief, fitted.model, is_leaf=lambda leaf: leaf is None
    )
    keys = jax.random.split(jax.random.key(3), tests)
    print("controller                   closed-loop cost   of the first   us a step")
    for name, controller in {
        "25": long,
        "25, 2 iterations": dc.MPC(problem, dc.DDP(fixed_iterations=2)),
        "5": dc.MPC(brief),
        "5, learned": dc.MPC(learned),
        "5, learned, 2 iterations": dc.MPC(learned, dc.DDP(fixed_iterations=2)),
    }.items():
        cost = costs_of(closed_loops(controller, keys, 60)).mean()
        whole = cost if controller is long else whole
        us = microseconds_per_step(controller, keys, 60, 1 if quick else 6)
        print(f"{name:26} {cost:18.2f} {cost / whole:14.3f} {us:11.1f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, poor figures")
    main(parser.parse_args().quick)
