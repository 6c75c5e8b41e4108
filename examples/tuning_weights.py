"""Tuning the weights of a tracking controller by how well it tracks.

A cart on a spring follows a reference. The controller's model is wrong: its mass is too small and
it knows nothing of the motor's lag. So the weights that *mean* what is wanted are not those that
*do* it. The task is judged in closed loop on the true plant; the gradient by the weights passes
through forty solves, each warm-started from the last, and through the plant.

    python examples/tuning_weights.py [--quick]
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import diffcontrol as dc
from diffcontrol import learning

STEPS, HORIZON, STEP = 40, 10, 0.1


def reference(t, phase):
    return 0.5 * jnp.sin(0.25 * t + phase)  # [m]


class Cart(eqx.Module):
    """State: position [m], speed [m/s], force of the motor [N]; control: the force asked for [N].

    `lag` is how much of the force remains from one step to the next; 0 is a perfect motor.
    """

    mass: float
    lag: float

    def __call__(self, x, u, t):
        force = self.lag * x[2] + (1.0 - self.lag) * u[0]
        speed = x[1] + STEP * (force - 2.0 * x[0] - 0.1 * x[1]) / self.mass
        return jnp.stack([x[0] + STEP * speed, speed, force])


class Tracking(eqx.Module):
    """Weighted squares of the distance to the reference, of the speed, and of the force.

    The phase of the reference differs from one closed loop to the next.
    """

    weights: jax.Array
    phase: jax.Array

    def __call__(self, x, u, t):
        v = jnp.stack([x[0] - reference(t, self.phase), x[1], u[0]])
        return 0.5 * jnp.sum(self.weights * v**2)


def controller_of(cost):
    return dc.MPC(
        dc.ControlProblem(
            dynamics=Cart(mass=0.7, lag=0.0),
            stage_cost=cost,
            horizon=HORIZON,
            control_size=1,
            control_bounds=dc.Bounds(-4.0, 4.0),
        )
    )


def situations(key, number, start, measure):
    """Closed loops that differ in where they start and in the phase of the reference."""
    key_x, key_phase = jax.random.split(key)
    x0 = 0.3 * jax.random.normal(key_x, (number, 3)) * jnp.array([1.0, 1.0, 0.0])
    phases = jax.random.uniform(key_phase, (number,), maxval=2 * jnp.pi)
    return learning.Situation(
        x0,
        policy=learning.replacing(
            controller_of(start), lambda controller: controller.problem.stage_cost.phase, phases
        ),
        measure=learning.replacing(measure, lambda m: m.stage_cost.phase, phases),
    )


def main(quick):
    jax.config.update("jax_enable_x64", True)
    loops, epochs = (4, 2) if quick else (32, 30)
    wanted = jnp.array([20.0, 0.0, 0.01])  # close to the reference, with little effort
    measure = learning.TotalCost(Tracking(wanted, jnp.asarray(0.0)))
    start = Tracking(wanted.at[1].set(0.01), jnp.asarray(0.0))
    task = learning.TaskLoss(Cart(mass=1.0, lag=0.6), measure, STEPS, controller_of)

    coordinates, parametrisation = learning.parametrise(start, logarithmic=lambda c: c.weights)
    keys = jax.random.split(jax.random.key(0), 3)
    training, validation, test = (situations(key, loops, start, measure) for key in keys)
    batch = min(8, loops)
    tuned = learning.train(
        task,
        parametrisation,
        coordinates,
        training,
        validation,
        optimiser=optax.adam(optax.cosine_decay_schedule(0.2, epochs * -(-loops // batch))),
        epochs=epochs,
        batch_size=batch,
        key=jax.random.key(1),
    )
    for line in tuned.metrics[:: max(1, epochs // 6)]:
        print(f"epoch {line['epoch']:3}: cost of held-out loops {line['validation_loss']:.3f}")
    print("\n              weights of distance, speed, force   cost of new closed loops   left out")
    for name, cost in {"as wanted": start, "tuned": tuned.model}.items():
        judged = learning.evaluate(task, cost, test)
        weights = " ".join(f"{float(w):9.4f}" for w in cost.weights)
        print(f"{name:14}{weights}   {judged.loss:22.3f} {judged.left_out:14.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, poor figures")
    main(parser.parse_args().quick)
