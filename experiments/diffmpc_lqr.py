"""DiffMPC, Fig. 3: imitating a linear-quadratic regulator; half of the trials converge.

An expert with random linear dynamics controls from random states. Learners that know its cost start
from other random dynamics and minimise the difference to its states and controls, by gradients
through the regulator. The paper states bounds of 1 on the controls; the released code has none.
Both are run, and an option under which the failing seeds recover: the one-step prediction error of
the same recorded states, added to the loss.

All seeds are one `vmap`. The random numbers are torch's, so that the seeds are the released ones.
"""

import dataclasses
import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffcontrol as dc

from . import _main, _pictures
from ._rows import Row, verdict

N, M, HORIZON = 3, 3, 5
ARMS = {
    "bounds of 1": dict(bound=1.0, prediction=0.0),
    "no bounds": dict(bound=None, prediction=0.0),
    "no bounds, with prediction": dict(bound=None, prediction=1.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the released code's."""

    seeds: int = 8
    """Learners, each from random dynamics of its own."""
    iterations: int = 5000
    """Steps of RMSprop."""
    batch: int = 128
    """Fresh initial states a step."""
    learning_rate: float = 1e-2
    """Of RMSprop, with torch's decay of 0.99."""
    converged: float = 0.05
    """A seed converges if its imitation loss, smoothed, ends below this."""


SIZES = {
    "full": Config(),
    "reduced": Config(iterations=1000),
    "quick": Config(seeds=2, iterations=20, batch=8),
}


class Linear(eqx.Module):
    """x' = A x + B u."""

    A: jax.Array
    B: jax.Array

    def __call__(self, x, u, t):
        return self.A @ x + self.B @ u


def drawn(seed: int, discarded: int, also_goal: bool):
    """The released code's draws: goal p `(6,)` if asked for, and dynamics."""
    import torch

    torch.manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape).double().numpy()
    if discarded:
        draw(discarded)
    goal = draw(N + M) if also_goal else None
    return goal, Linear(np.eye(N) + 0.2 * draw(N, N), draw(N, M))


def measure(config: Config, context: _main.Context):
    goal, expert = drawn(42, N + M, True)
    learners = [drawn(seed, 0, False)[1] for seed in range(config.seeds)]
    learners = jax.tree.map(lambda *leaves: jnp.stack(leaves), *learners)
    expert = jax.tree.map(jnp.asarray, expert)
    curves = {}
    for arm, settings in ARMS.items():
        ran = learn(config, expert, jnp.asarray(goal), learners, **settings)
        curves[arm] = {name: _thinned(values) for name, values in ran.items()}
    return {"curves": curves, "step": max(1, config.iterations // 200)}


def learn(config, expert, goal, learners, bound, prediction):
    """Losses of all seeds at every iteration, `(seeds, iterations)`."""
    bounds = None if bound is None else dc.Bounds(-bound, bound)
    cost = dc.QuadraticCost(jnp.eye(N + M), goal)
    solver = dc.DDP(max_iterations=100)

    def plan(dynamics, x0):
        problem = dc.ControlProblem(
            dynamics=dynamics,
            stage_cost=cost,
            horizon=HORIZON,
            control_size=M,
            control_bounds=bounds,
        )
        return dc.solve(problem, x0, solver, throw=False)

    def loss(learner, x0s):
        wanted = jax.lax.stop_gradient(jax.vmap(functools.partial(plan, expert))(x0s))
        found = jax.vmap(functools.partial(plan, learner))(x0s)
        # The papers' states are those at which a control is chosen.
        states, seen = found.states[:, :-1], wanted.states[:, :-1]
        good = (found.result == dc.RESULTS.successful) & (wanted.result == dc.RESULTS.successful)
        mean = lambda values: (
            jnp.mean(jnp.where(good[:, None, None], values, 0.0))
            / jnp.maximum(jnp.mean(good), 1e-9)
        )
        imitation = mean((found.controls - wanted.controls) ** 2) + mean((states - seen) ** 2)
        following = jax.vmap(jax.vmap(lambda x, u: learner(x, u, 0)))(
            wanted.states[:, :-1], wanted.controls
        )
        predicted = mean((following - wanted.states[:, 1:]) ** 2)
        return imitation + prediction * predicted, (imitation, 1.0 - jnp.mean(good))

    optimiser = optax.rmsprop(config.learning_rate, decay=0.99, eps=1e-8, eps_in_sqrt=False)

    def step(carry, key):
        learner, state = carry
        x0s = jax.random.normal(key, (config.batch, N))
        (_, (imitation, left_out)), gradient = jax.value_and_grad(loss, has_aux=True)(learner, x0s)
        update, state = optimiser.update(gradient, state)
        model = sum(
            jnp.mean((a - b) ** 2)
            for a, b in zip(jax.tree.leaves(learner), jax.tree.leaves(expert), strict=True)
        )
        return (optax.apply_updates(learner, update), state), (imitation, model, left_out)

    @jax.jit
    def run(learner, key):
        keys = jax.random.split(key, config.iterations)
        return jax.lax.scan(step, (learner, optimiser.init(learner)), keys)[1]

    keys = jax.random.split(jax.random.key(0), config.seeds)
    imitation, model, left_out = jax.vmap(run)(learners, keys)
    return {"imitation": imitation, "model": model, "left_out": left_out}


def _thinned(values):
    """At most 200 points of every curve, each the mean of what it stands for."""
    values = np.asarray(values)
    step = max(1, values.shape[1] // 200)
    whole = values[:, : values.shape[1] // step * step]
    return whole.reshape(len(values), -1, step).mean(axis=2).tolist()


def _converged(config, curves):
    last = np.array([curve[-5:] for curve in curves["imitation"]], float).mean(axis=1)
    model = np.array([curve[-1] for curve in curves["model"]], float)
    return last < config.converged, last, model


def rows(config: Config, found):
    stuck = {}
    for arm in ARMS:
        good, last, model = _converged(config, found["curves"][arm])
        stuck[arm] = (int(good.sum()), last, model)
    count, last, model = stuck["no bounds"]
    bounded = stuck["bounds of 1"]
    helped = stuck["no bounds, with prediction"]
    recovered = int((helped[2] < 1e-2).sum())
    return [
        Row(
            "DiffMPC",
            "Fig. 3",
            "LQR imitation converges in half of the trials (released code: no bounds)",
            f"seeds of {config.seeds} that converge",
            4,
            count,
            config.seeds,
            "reached" if count == 4 else "explained",
            f"Imitation losses at the end: {', '.join(f'{v:.2g}' for v in sorted(last))}.",
        ),
        Row(
            "DiffMPC",
            "Fig. 3",
            "the same with the bounds of 1 that the paper states",
            f"seeds of {config.seeds} that converge",
            4,
            bounded[0],
            config.seeds,
            "reached" if bounded[0] == 4 else "explained",
            f"Imitation losses at the end: {', '.join(f'{v:.2g}' for v in sorted(bounded[1]))}.",
        ),
        Row(
            "DiffMPC",
            "Fig. 3",
            "with the one-step prediction error added, the learners recover the expert",
            f"seeds of {config.seeds} whose model loss ends below 0.01",
            None,
            recovered,
            config.seeds,
            verdict(recovered, 7 / 8 * config.seeds, lower=False, clearly=8 / 7),
            f"Model losses at the end: {', '.join(f'{v:.1g}' for v in sorted(helped[2]))}.",
        ),
    ]


def draw(found, path):
    figure, axes = _pictures.grid(2, len(ARMS), width=12.0, height=6.0, sharex=True)
    for column, (arm, curves) in enumerate(found["curves"].items()):
        for row, (name, label) in enumerate(
            (("imitation", "imitation loss [1]"), ("model", "model loss [1]"))
        ):
            ax = axes[row, column]
            for seed, curve in enumerate(curves[name]):
                at = found["step"] * (np.arange(len(curve)) + 0.5)
                ax.plot(
                    at,
                    np.asarray(curve, float),
                    color=_pictures.SEEDS[seed % 8],
                    linewidth=1.2,
                    label=f"seed {seed}",
                )
            ax.set_yscale("log")
            ax.set_ylabel(label)
        axes[0, column].set_title(arm, fontsize=10)
        axes[1, column].set_xlabel("iteration [1]")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, fontsize=8)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("diffmpc_lqr", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
