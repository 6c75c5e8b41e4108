"""Friction learned from the task alone: nothing is recorded but what the control achieved.

A sled is pushed to a mark and must stop there. Its drag is unknown; the controller's model starts
without any. Nobody fits the model to data: its drag is moved down the gradient of the closed-loop
cost on the true sled, under gusts that differ from run to run. What comes out is the drag with
which the controller acts best, which here is close to the true one.

    python examples/learning_friction.py [--quick]
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import diffcontrol as dc
from diffcontrol import learning

STEPS, HORIZON, STEP = 30, 15, 0.1
TRUE = (2.0, 1.0)


class Sled(eqx.Module):
    """State: position [m] and speed [m/s]; control: push [N]; mass 1 kg.

    Attributes:
        viscous: force per speed [N s/m].
        quadratic: force per square of speed [N s^2/m^2].
    """

    viscous: jax.Array
    quadratic: jax.Array

    def __call__(self, x, u, t):
        speed = x[1]
        # The root is smooth where the speed changes sign, as the solver likes it.
        drag = self.viscous * speed + self.quadratic * speed * jnp.sqrt(speed**2 + 1e-4)
        speed = speed + STEP * (u[0] - drag)
        return jnp.stack([x[0] + STEP * speed, speed])


def cost():
    return dc.GoalCost(weights=[1.0, 0.02, 0.002], goal=[0.0, 0.0])


def controller_of(model):
    return dc.MPC(
        dc.ControlProblem(
            dynamics=model,
            stage_cost=cost(),
            horizon=HORIZON,
            control_size=1,
            control_bounds=dc.Bounds(-6.0, 6.0),
        )
    )


def situation(key):
    """A start up to 3 m away, and gusts."""
    key_x, key_gusts = jax.random.split(key)
    gusts = 0.02 * jax.random.normal(key_gusts, (STEPS, 2)) * jnp.array([0.0, 1.0])
    return learning.Situation(
        jax.random.uniform(key_x, (2,), minval=-1.0) * jnp.array([3.0, 1.0]), disturbances=gusts
    )


def main(quick):
    jax.config.update("jax_enable_x64", True)
    loops, epochs = (4, 2) if quick else (32, 40)
    true = Sled(*map(jnp.asarray, TRUE))
    guess = Sled(jnp.asarray(0.05), jnp.asarray(0.05))
    task = learning.TaskLoss(true, learning.TotalCost(cost()), STEPS, controller_of)

    # Through logarithms drag stays drag.
    coordinates, parametrisation = learning.parametrise(
        guess, logarithmic=lambda sled: (sled.viscous, sled.quadratic)
    )
    keys = jax.random.split(jax.random.key(0), 3)
    training, validation, test = (
        learning.draw_situations(situation, key, number)
        for key, number in zip(keys, (loops, loops, 4 * loops), strict=True)
    )
    batch = min(8, loops)
    learned = learning.train(
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
    for line in learned.metrics[:: max(1, epochs // 6)]:
        print(f"epoch {line['epoch']:3}: cost of held-out loops {line['validation_loss']:.4f}")
    print("\nmodel          viscous   quadratic   cost of new closed loops   left out")
    for name, model in {"first guess": guess, "learned": learned.model, "true": true}.items():
        judged = learning.evaluate(task, model, test)
        drag = f"{float(model.viscous):9.3f} {float(model.quadratic):11.3f}"
        print(f"{name:12} {drag} {judged.loss:26.4f} {judged.left_out:10.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, poor figures")
    main(parser.parse_args().quick)
