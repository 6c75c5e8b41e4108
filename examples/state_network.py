"""A network that sees, a controller that acts: trained together by what the plan achieves.

A cart knows its position only through two distorted sensors. A network turns their readings into
the state that the controller plans from; the loss is what the planned controls cost *from the true
state*. The gradient passes through the controller into the network. Beside it the usual way: the
same network fitted to the true states, all errors counting alike, whether they matter or not.

    python examples/state_network.py [--quick]
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import diffcontrol as dc

HORIZON = 15


class Cart(eqx.Module):
    """State: position [m] and speed [m/s]; control: force [N]."""

    mass: jax.Array

    def __call__(self, x, u, t):
        return jnp.stack([x[0] + 0.1 * x[1], x[1] + 0.1 * u[0] / self.mass])


def problem():
    return dc.ControlProblem(
        dynamics=Cart(jnp.asarray(1.0)),
        stage_cost=dc.GoalCost([1.0, 0.3, 0.02], [0.0, 0.0]),
        horizon=HORIZON,
        control_size=1,
        control_bounds=dc.Bounds(-3.0, 3.0),
    )


def readings(x, noise):
    """What the sensors say about a state, twice 0.1 s apart."""
    later = x[0] - 0.1 * x[1]
    seen = jnp.stack([jnp.tanh(x[0]), jnp.sin(2 * x[0]), jnp.tanh(later), jnp.sin(2 * later)])
    return seen + 0.02 * noise


def drawn(key, number):
    """True states, and what is seen of them."""
    key_x, key_noise = jax.random.split(key)
    x = jax.random.uniform(key_x, (number, 2), minval=-1.5, maxval=1.5)
    return x, jax.vmap(readings)(x, jax.random.normal(key_noise, (number, 4)))


def achieved(network, x, seen):
    """What the controls planned from the seen state cost from the true one; whether it is valid."""
    task = problem()
    plan = dc.solve(task, network(seen), throw=False)

    def step(x, u):
        return task.dynamics(x, u, 0), task.stage_cost(x, u, 0)

    _, costs = jax.lax.scan(step, x, plan.controls)
    return jnp.sum(costs), plan.result == dc.RESULTS.successful


def by_achievement(network, x, seen):
    costs, solved = jax.vmap(achieved, (None, 0, 0))(network, x, seen)
    return jnp.sum(jnp.where(solved, costs, 0.0)) / jnp.maximum(jnp.sum(solved), 1)


def by_regression(network, x, seen):
    return jnp.mean((jax.vmap(network)(seen) - x) ** 2)


def trained(loss, steps, batch):
    """The same network, data and optimiser, whatever the loss."""
    network = eqx.nn.MLP(4, 2, 12, 1, jnp.tanh, key=jax.random.key(1))
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    state = optimiser.init(eqx.filter(network, eqx.is_array))

    @eqx.filter_jit
    def update(network, state, key):
        value, gradient = eqx.filter_value_and_grad(loss)(network, *drawn(key, batch))
        change, state = optimiser.update(gradient, state)
        return eqx.apply_updates(network, change), state, value

    for k in range(steps):
        network, state, value = update(network, state, jax.random.key(100 + k))
        if (k + 1) % max(1, steps // 5) == 0:
            print(f"  step {k + 1:4}: loss {float(value):.4f}", flush=True)
    return network


def main(quick):
    jax.config.update("jax_enable_x64", True)
    steps, batch, tests = (5, 16, 32) if quick else (600, 64, 1000)
    x, seen = drawn(jax.random.key(2), tests)
    judge = eqx.filter_jit(by_achievement)
    for name, loss in {"regression": by_regression, "achievement": by_achievement}.items():
        print(f"trained by {name}:")
        network = trained(loss, steps, batch)
        error = float(jnp.sqrt(by_regression(network, x, seen)))
        print(f"  cost achieved {float(judge(network, x, seen)):.4f}; error of state {error:.3f}")
    best, _ = jax.vmap(achieved, (None, 0, 0))(lambda x: x, x, x)
    print(f"with the true state the cost is {float(jnp.mean(best)):.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, poor figures")
    main(parser.parse_args().quick)
