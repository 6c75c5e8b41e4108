"""What did it want? The cost behind a demonstrated trajectory, by inverse optimal control.

An expert swings a pendulum up, by a cost that we do not know. We see its planned trajectories and
look for goal and weights under which our own plans are the same. A cost times a number gives the
same plans, so the weight of the torque is held at its true value and the others are relative to it.

    python examples/inverse_optimal_control.py [--quick]
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import diffcontrol as dc
from diffcontrol import learning
from diffcontrol.systems import pendulum

HORIZON = 15
TORQUE = 0.5  # weight [cost / (N m)^2]


class Wanted(eqx.Module):
    """The unknown: an angle [rad], and weights of the cosine and sine and of the speed."""

    angle: jax.Array
    weights: jax.Array

    def problem(self):
        w, s = self.weights
        goal = jnp.stack([jnp.cos(self.angle), jnp.sin(self.angle), jnp.zeros_like(self.angle)])
        return dc.ControlProblem(
            dynamics=dc.systems.Pendulum(),
            stage_cost=dc.GoalCost(jnp.stack([w, w, s, jnp.full_like(w, TORQUE)]), goal),
            horizon=HORIZON,
            control_size=1,
            control_bounds=pendulum.bounds(),
        )


def demonstrations(expert, runs):
    """Plans of the expert from random starts, those that its solver has finished."""
    x0s = jax.vmap(pendulum.start)(jax.random.split(jax.random.key(0), runs))
    plans = jax.vmap(lambda x0: dc.solve(expert.problem(), x0, throw=False))(x0s)
    solved = plans.result == dc.RESULTS.successful
    return learning.Demonstrations(plans.states[solved], plans.controls[solved])


def main(quick):
    jax.config.update("jax_enable_x64", True)
    runs, epochs = (12, 2) if quick else (40, 60)
    expert = Wanted(jnp.asarray(0.4), jnp.array([1.5, 0.2]))
    guess = Wanted(jnp.asarray(0.0), jnp.array([0.5, 0.5]))
    seen = demonstrations(expert, runs)
    print(f"{seen.runs} plans of {seen.steps} stages")

    # Whole plans are compared, stage by stage, states and controls.
    training_runs, validation_runs, _ = seen.split(seed=0)
    cut = lambda runs: learning.windows(runs, HORIZON, steps=HORIZON)
    training, validation = cut(training_runs), cut(validation_runs)
    loss = learning.ImitationLoss(
        dc.DDP(max_iterations=100), states_weight=1.0, problem_of=Wanted.problem
    )
    coordinates, parametrisation = learning.parametrise(
        guess, raw=lambda model: model.angle, logarithmic=lambda model: model.weights
    )
    batch = min(8, training.time.size)
    steps = epochs * -(-training.time.size // batch)
    found = learning.train(
        loss,
        parametrisation,
        coordinates,
        training,
        validation,
        optimiser=optax.adam(optax.cosine_decay_schedule(0.1, steps), b2=0.95),
        epochs=epochs,
        batch_size=batch,
        key=jax.random.key(1),
        clip=1.0,
        describe=lambda model: {"angle": float(model.angle)},
    )
    for line in found.metrics[:: max(1, epochs // 6)]:
        print(
            f"epoch {line['epoch']:3}: imitation loss {line['validation_loss']:.2e}, "
            f"left out {line['validation_left_out']:.0%}"
        )
    print("\n                                 true    guess    found")
    rows = {"angle wanted [rad]": lambda m: m.angle}
    rows["weight of cosine and sine"] = lambda m: m.weights[0]
    rows["weight of the speed"] = lambda m: m.weights[1]
    for name, read in rows.items():
        values = (float(read(model)) for model in (expert, guess, found.model))
        print(f"{name:28}", *(f"{value:8.4f}" for value in values))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, poor figures")
    main(parser.parse_args().quick)
