"""Control with learned dynamics: closed-loop cost, and how many solves do not converge, and why.

An expert with the true model swings up a pole, with noise on its controls so that 50 recorded runs
explore. From them a network learns the dynamics, once with smooth and once with kinked activations,
and a third one corrects a known model with wrong parameters. Then each of them controls. The second
table solves from a guess of zero, where networks are hardest on a solver: with and without its
damping (Levenberg-Marquardt, which shortens steps to where the expansion can be trusted), and with
and without the curvature of the dynamics (DDP, iLQR).

    python examples/neural_dynamics.py [--system cartpole] [--quick]
"""

import argparse

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffcontrol as dc
from diffcontrol import learning
from diffcontrol.systems import cartpole, pendulum

# System; wrong parameters; noise of the expert [unit of the control]; what the network is told of
# the state and its size; epochs.
PENDULUM = (
    pendulum,
    dc.systems.Pendulum(gravity=5.0, mass=2.0),
    1.0,
    dict(state_size=3, angles=((0, 1),)),
    40,
)
CARTPOLE = (
    cartpole,
    dc.systems.Cartpole(cart_mass=1.4, pole_mass=0.15, half_length=0.6),
    20.0,
    dict(state_size=5, angles=((2, 3),), unseen=(0,), width=48),
    200,
)


class Exploring(eqx.Module):
    """A controller whose controls are disturbed within the bounds."""

    controller: dc.MPC
    noise: float
    key: jax.Array

    def init(self, x0):
        return self.controller.init(x0)

    def __call__(self, x, memory):
        u, after = self.controller(x, memory)
        noise = jax.random.normal(jax.random.fold_in(self.key, memory.time), u.shape)
        bounds = self.controller.problem.control_bounds
        return jnp.clip(u + self.noise * noise, bounds.lower, bounds.upper), after


class Undamped:
    """A solver that shortens its steps by the line search alone."""

    def judge(self, *args):
        state = super().judge(*args)
        return eqx.tree_at(lambda s: s.regularisation.mu, state, replace_fn=jnp.zeros_like)


class UndampedDDP(Undamped, dc.DDP):
    pass


class UndampedILQR(Undamped, dc.ILQR):
    pass


def learn(model, runs, steps, epochs):
    """Fit a model to predict `steps` steps of the recorded runs."""
    model = model.fitted_to(runs.states, runs.controls)
    cut = lambda part: learning.windows(part, steps, steps=steps)
    training, validation, _ = runs.split(validation=0.1, test=0.05)
    training, validation = cut(training), cut(validation)
    loss = learning.PredictionLoss(np.std(runs.states, axis=(0, 1)), dynamics_of=lambda m: m)
    coordinates, parametrisation = learning.parametrise(model)
    updates = epochs * -(-training.time.size // 128)
    optimiser = optax.adam(optax.cosine_decay_schedule(5e-3, updates))
    fit = dict(epochs=epochs, batch_size=128, key=jax.random.key(0), optimiser=optimiser)
    return learning.train(loss, parametrisation, coordinates, training, validation, **fit).model


def main(system, wrong, noise, told, epochs, quick):
    jax.config.update("jax_enable_x64", True)
    horizon, runs, length, tests = (8, 6, 12, 4) if quick else (25, 50, 60, 20)
    problem, solver = system.problem(horizon), dc.DDP(max_iterations=100)
    plant, expert = problem.dynamics, dc.MPC(problem, solver)
    of = lambda dynamics: eqx.tree_at(lambda p: p.dynamics, problem, dynamics)
    starts = lambda seed, n: jax.vmap(system.start)(jax.random.split(jax.random.key(seed), n))
    unconverged = lambda result: 100 * float(jnp.mean(result != dc.RESULTS.successful))

    keys = jax.random.split(jax.random.key(1), runs)
    record = lambda x0, key: dc.simulate(Exploring(expert, noise, key), plant, x0, length)
    ran = jax.vmap(record)(starts(0, runs), keys)
    recorded = learning.Demonstrations(np.asarray(ran.states), np.asarray(ran.controls))

    told = dict(control_size=1, key=jax.random.key(2)) | told
    network = lambda activation: dc.NeuralDynamics(activation=activation, **told)
    fresh = {
        "network, tanh": network(jnp.tanh),
        "network, ReLU": network(jax.nn.relu),
        "wrong + network, tanh": dc.ResidualDynamics(wrong, network(jnp.tanh)),
    }
    learned = {k: learn(v, recorded, 4, 2 if quick else epochs) for k, v in fresh.items()}

    print("model                   closed-loop cost   of the true model's   unconverged")
    cost_of = jax.vmap(jax.vmap(lambda x, u: problem.stage_cost(x, u, 0)))
    for name, model in {"true": plant, "wrong": wrong, **learned}.items():
        controller = dc.MPC(of(model), solver)
        loops = jax.vmap(lambda x0, c=controller: dc.simulate(c, plant, x0, 80))(starts(3, tests))
        cost = float(cost_of(loops.states[:, :-1], loops.controls).sum(axis=1).mean())
        true = cost if name == "true" else true
        share = unconverged(loops.memory.result)
        print(f"{name:22} {cost:17.2f} {cost / true:21.3f} {share:11.2f} %", flush=True)

    print("\nsolves from zero        solver         unconverged   iterations (median)")
    x0s, solvers = starts(4, 200), (dc.DDP(), UndampedDDP(), dc.ILQR(), UndampedILQR())
    models = {"network, tanh": learned["network, tanh"]} if quick else {"true": plant, **learned}
    for name, model in models.items():
        for each in solvers[: 2 if quick else 4]:
            solve = lambda x0, m=model, s=each: dc.solve(of(m), x0, s, throw=False)
            found = jax.vmap(solve)(x0s)
            share, count = unconverged(found.result), np.median(found.stats.iterations)
            print(f"{name:22}  {type(each).__name__:13} {share:11.2f} % {count:15.0f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--system", choices=("pendulum", "cartpole"), default="pendulum")
    parser.add_argument("--quick", action="store_true", help="small sizes: seconds, poor figures")
    options = parser.parse_args()
    main(*(PENDULUM if options.system == "pendulum" else CARTPOLE), options.quick)
