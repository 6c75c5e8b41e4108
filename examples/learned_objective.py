"""Moving the optimum of an objective by learning the objective, through a search that samples.

An objective over the plane is a sum of wells. The cross-entropy method with a temperature looks for
its minimum; where that ought to be is given. The gradient of the distance goes through the search
to depths and places of the wells, so the right well becomes the deepest.

    python examples/learned_objective.py [--quick]

Source: Amos and Yarats, The differentiable cross-entropy method (2020), the demonstration in 2-D.
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import diffcontrol as dc

WANTED = jnp.array([0.0, 1.25])


class Wells(eqx.Module):
    """A stage cost that looks at the control alone."""

    places: jax.Array  # (k, 2)
    depths: jax.Array  # (k,)

    def __call__(self, x, u, t):
        squares = jnp.sum((u - self.places) ** 2, axis=1)
        return 0.01 * jnp.sum(u**2) - jnp.sum(jax.nn.softplus(self.depths) * jnp.exp(-squares))


def find(wells, planner, key):
    problem = dc.ControlProblem(
        dynamics=lambda x, u, t: x,
        stage_cost=wells,
        horizon=1,
        control_size=2,
        control_bounds=dc.Bounds(-3.0, 3.0),
    )
    return dc.solve(problem, jnp.zeros(1), planner, key=key).controls[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    steps = 10 if parser.parse_args().quick else 100
    planner = dc.CEM(samples=100, elites=10, iterations=10, temperature=1.0)
    places = jnp.array([[0.0, 1.0], [-1.5, -1.0], [1.5, -0.5]])
    wells = Wells(places, depths=jnp.array([0.0, 1.5, 0.5]))
    optimiser = optax.rmsprop(3e-2, momentum=0.1)
    state = optimiser.init(wells)

    @jax.jit
    def step(wells, state, key):
        distance = lambda wells: jnp.sum((find(wells, planner, key) - WANTED) ** 2)
        value, gradient = jax.value_and_grad(distance)(wells)
        move, state = optimiser.update(gradient, state)
        return optax.apply_updates(wells, move), state, value

    print(f"found at first {find(wells, planner, jax.random.key(0))}, wanted {WANTED}")
    for number in range(steps):
        wells, state, value = step(wells, state, jax.random.key(number))
        if number % (steps // 5) == 0:
            print(f"  step {number}: squared distance {value:.4f}", flush=True)
    print(f"found at last  {find(wells, planner, jax.random.key(0))}")
    print(f"depths {jax.nn.softplus(wells.depths)}, places {wells.places.tolist()}")


if __name__ == "__main__":
    main()
