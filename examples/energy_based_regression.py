"""Energy-based regression: the prediction is where a learned energy is least.

A network gives every pair (x, y) an energy, and the prediction for x is the y of least energy, as a
planner finds it: by sampling (the cross-entropy method with a temperature) or by ten steps of
gradient descent. Training asks for the right y and goes through the search. As a control problem it
has one stage: x is the state, y the control.

    python examples/energy_based_regression.py [--quick]

Source: Amos and Yarats, The differentiable cross-entropy method (2020), section 4.1: y = x sin x.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import diffcontrol as dc

PLANNERS = {
    "sampling (DCEM)": dc.CEM(samples=100, elites=10, iterations=10, temperature=1.0, spread=7.0),
    "gradient descent": dc.GradientDescent(iterations=10, step_size=0.1),
}


class Energy(eqx.Module):
    """A stage cost: `(x, y, t) -> energy`."""

    network: eqx.nn.MLP

    def __init__(self, key):
        self.network = eqx.nn.MLP(2, "scalar", 128, 3, jax.nn.softplus, key=key)

    def __call__(self, x, y, t):
        return self.network(jnp.concatenate([x, y]))


def predict(energy, planner, x, key):
    problem = dc.ControlProblem(
        dynamics=lambda x, y, t: x, stage_cost=energy, horizon=1, control_size=1
    )
    key = key if planner.draws else None
    return dc.solve(problem, x[None], planner, key=key, throw=False).controls[0, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth of the training")
    steps = 30 if parser.parse_args().quick else 3000
    x = jnp.linspace(0.0, 2.0 * jnp.pi, 100)
    y = x * jnp.sin(x)

    for name, planner in PLANNERS.items():
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
        energy = Energy(jax.random.key(0))
        state = optimiser.init(eqx.filter(energy, eqx.is_inexact_array))

        def error(energy, x, y, key, planner=planner):
            keys = jax.random.split(key, len(x))
            found = jax.vmap(lambda x, key: predict(energy, planner, x, key))(x, keys)
            return jnp.mean((found - y) ** 2)

        @eqx.filter_jit
        def step(energy, state, key, error=error, optimiser=optimiser):
            pick, search = jax.random.split(key)
            rows = jax.random.randint(pick, (10,), 0, len(x))
            value, gradient = eqx.filter_value_and_grad(error)(energy, x[rows], y[rows], search)
            move, state = optimiser.update(gradient, state)
            return eqx.apply_updates(energy, move), state, value

        judge = eqx.filter_jit(error)
        before = judge(energy, x, y, jax.random.key(1))
        for number in range(steps):
            energy, state, value = step(energy, state, jax.random.key(number))
            if steps > 100 and number % 500 == 0:
                print(f"  {name}: step {number} of {steps}, error {value:.3g}", flush=True)
        after = judge(energy, x, y, jax.random.key(1))
        print(f"{name:18} mean squared error {before:.3g} -> {after:.3g} after {steps} steps")


if __name__ == "__main__":
    main()
