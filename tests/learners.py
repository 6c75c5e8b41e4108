"""A small learning task that tests of training share: a cart whose mass is unknown."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import diffcontrol as dc
from diffcontrol import learning

HORIZON = 6
STEPS = 8


class Cart(eqx.Module):
    """`p+ = p + v / 4`, `v+ = v + u / (4 mass) - drag v^3 / 4`."""

    mass: Array
    drag: Array

    def __call__(self, x, u, t):
        speed = x[1] + 0.25 * u[0] / self.mass - 0.25 * self.drag * x[1] ** 3
        return jnp.stack([x[0] + 0.25 * x[1], speed])


def problem(mass: float = 1.0, drag: float = 0.3) -> dc.ControlProblem:
    """Stop the cart at the origin."""
    return dc.ControlProblem(
        dynamics=Cart(jnp.asarray(mass), jnp.asarray(drag)),
        stage_cost=dc.GoalCost(jnp.array([1.0, 0.1, 0.1]), jnp.zeros(2)),
        horizon=HORIZON,
        control_size=1,
        control_bounds=dc.Bounds(-1.0, 1.0),
    )


def demonstrations(runs: int = 6, seed: int = 0) -> learning.Demonstrations:
    """Closed loops of the true controller from random starts."""
    expert = dc.MPC(problem())
    starts = np.random.default_rng(seed).uniform(-1.0, 1.0, (runs, 2))
    trajectories = jax.vmap(lambda x0: dc.simulate(expert, expert.problem.dynamics, x0, STEPS))(
        jnp.asarray(starts)
    )
    return learning.Demonstrations(
        np.asarray(trajectories.states), np.asarray(trajectories.controls), 0.25, {"made": "here"}
    )


def mass_and_drag(model: dc.ControlProblem):
    """What is learned."""
    return model.dynamics.mass, model.dynamics.drag
