r"""DCEM, cartpole: search in the latent subspace and over all controls, iteration by iteration.

The decoder is that of `dcem_cartpole` (latent 2, temperature 1, seed 0), trained first if it is
not there. Latent search draws 100 samples an iteration and moves the Gaussian over two numbers;
full-space search moves one over 20 controls, with 100 or 1000 samples, 10 elites all three. Curves
are the mean cost of the returned plan over the 100 validation states. The published numbers are
those of the released notebook for one state: -5.554 in the latent, -3.368 over all controls with
1000 samples and 5 iterations; its state is not known, so the ratio of the means is compared.

The picture comes with an animation, `dcem_search.gif`: for one state the plans that each
Gaussian stands for, what its mean does to the pole, the Gaussian of the latent and both costs.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc
from diffcontrol.learning import load_checkpoint

from . import _main, _pictures, dcem_cartpole
from ._precision import single
from ._rows import Row, verdict
from ._sweep import say
from .dcem_cartpole import HORIZON, Training, reward_problem, validation_states

LATENT_COST, FULL_COST = -5.554, -3.368  # published, of one state
AFTER = 5  # iterations of full-space search there
SPREADS = 21  # plans drawn from each Gaussian in the animation
COLOURS = {
    "latent, 100 samples": "#0072B2",
    "all controls, 100 samples": "#E69F00",
    "all controls, 1000 samples": "#D55E00",
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are those of the released code."""

    steps: int = 100_000
    """Of the decoder's training."""
    iterations: int = 10
    """Of each search."""
    states: int = 100
    """Initial states whose costs are averaged, of 100."""
    shown: int = 3
    """Number of the state that the animation shows, from 1."""

    def __post_init__(self):
        if max(self.states, self.shown) > 100:
            raise ValueError("--states and --shown are at most 100.")


SIZES = {
    "full": Config(),
    "reduced": Config(steps=5000),
    "quick": Config(steps=dcem_cartpole.EVERY, iterations=2, states=2, shown=1),
}


def decoder(config: Config, folder: Path):
    """Trained by `dcem_cartpole`, or now."""
    job = Training(2, 1.0, 0, config.steps)
    scratch = folder.parent / "dcem_cartpole" / dcem_cartpole.name_of(job)
    if not scratch.exists():
        scratch = folder / "decoder"
    dcem_cartpole.train(job, scratch)
    return load_checkpoint(scratch / "checkpoint", dcem_cartpole.first_state(job))[0].best


def searched(problem, planner: dc.CEM, iterations: int, x0, key):
    """Means, spreads and costs of the plans after each iteration: as many plans of one iteration,
    each from where the last one ended."""

    def advance(state, key):
        mean, spread = state
        one = eqx.tree_at(lambda p: p.spread, planner, spread)
        plan = dc.solve(problem, x0, one, guess=mean, key=key, throw=False)
        return (plan.controls, plan.stats.spread), (plan.controls, plan.stats.spread, plan.cost)

    shape = (problem.horizon, problem.control_size)
    start = (jnp.zeros(shape, jnp.float32), jnp.broadcast_to(planner.spread, shape))
    return jax.lax.scan(advance, start, jax.random.split(key, iterations))[1]


def searches(network):
    """Name -> problem and planner of one iteration."""
    of = lambda samples, spread, soft: dc.CEM(
        samples=samples, elites=10, iterations=1, temperature=soft, spread=jnp.float32(spread)
    )
    latent = single(dc.LatentProblem(reward_problem(), network, 2))
    names = list(COLOURS)
    return {
        names[0]: (latent, of(100, 0.5, jnp.float32(1.0))),
        names[1]: (reward_problem(), of(100, 100.0, None)),
        names[2]: (reward_problem(), of(1000, 100.0, None)),
    }


def measure(config: Config, context: _main.Context):
    ways = searches(decoder(config, context.folder))
    x0s = validation_states()[: config.states]
    keys = jax.random.split(jax.random.key(7), config.states)
    costs = {}
    for name, (problem, planner) in ways.items():
        run = functools.partial(searched, problem, planner, config.iterations)
        costs[name] = np.mean(jax.jit(jax.vmap(run))(x0s, keys)[2], axis=0).tolist()
        say(f"{name}: {costs[name][-1]:.3f}")
    x0 = validation_states()[config.shown - 1]
    return {
        "costs": costs,
        "shown": {
            name: _shown(*ways[name], x0, config.iterations, 1 + at)
            for at, name in enumerate(list(COLOURS)[:2])
        },
        "ground": _ground(ways[next(iter(COLOURS))][0], x0),
    }


def _shown(problem, planner, x0, iterations: int, seed: int) -> dict:
    """For the animation: each iteration's Gaussian, plans drawn from it, and where the mean goes.
    Iteration 0 is the start."""
    means, spreads, costs = searched(problem, planner, iterations, x0, jax.random.key(seed))
    shape = means.shape[1:]
    means = jnp.concatenate([jnp.zeros((1, *shape), jnp.float32), means])
    spreads = jnp.concatenate([jnp.broadcast_to(planner.spread, (1, *shape)), spreads])
    noise = jax.random.normal(jax.random.key(0), (SPREADS, *shape), jnp.float32)
    drawn = means[:, None] + spreads[:, None] * noise
    drawn = drawn.at[:, 0].set(means)  # the first is the mean itself
    if isinstance(problem, dc.LatentProblem):
        plans = jax.vmap(jax.vmap(lambda z: problem.decode(jnp.clip(z[0], -1.0, 1.0))))(drawn)
    else:
        plans = jnp.clip(drawn, -100.0, 100.0)
    pole = reward_problem().dynamics
    step = lambda x, u: (pole(x, u, 0), x)
    runs = jax.vmap(lambda controls: jax.lax.scan(step, x0, controls)[1])(plans[:, 0])
    return {
        "means": np.asarray(means[:, 0, :2]).tolist(),
        "spreads": np.asarray(spreads[:, 0, :2]).tolist(),
        "plans": np.asarray(plans[..., 0]).tolist(),
        "runs": np.asarray(runs).tolist(),
        "costs": np.asarray(costs).tolist(),
    }


def _ground(latent, x0) -> list:
    """Cost of the decoded controls over the latent, 41 by 41 points."""
    axis = np.linspace(-1.0, 1.0, 41, dtype=np.float32)
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    cost = jax.jit(jax.vmap(lambda z: latent.stage_cost(x0, z, 0)))
    return np.asarray(cost(points)).reshape(41, 41).tolist()


def rows(config: Config, found):
    latent, few, many = (np.asarray(found["costs"][name]) for name in COLOURS)
    after = min(AFTER, len(many))
    row = lambda claim, metric, published, ours, judged, why: Row(
        "DCEM", "cartpole", claim, metric, published, ours, config.states, judged, why
    )
    equal, tenfold = latent[-1] / few[-1], latent[-1] / many[after - 1]
    overtaken = np.flatnonzero(many < latent)
    when = f"from iteration {overtaken[0] + 1} on" if overtaken.size else "never"
    return [
        row(
            "at equal samples, search in a latent of two numbers finds better plans than search "
            "over all controls",
            f"ratio of the mean costs after {len(latent)} iterations of 100 samples [1]",
            None,
            equal,
            verdict(equal, 1.0, lower=False, clearly=1.05),
            f"Costs {latent[-1]:.3f} and {few[-1]:.3f}.",
        ),
        row(
            "so it does where the search over all controls has ten times the samples",
            f"the latent's mean cost over the other's after {after} iterations [1]",
            LATENT_COST / FULL_COST,
            tenfold,
            # The published number is one state's; to be better at all is what is claimed.
            verdict(tenfold, 1.0, lower=False, clearly=1.05),
            f"1000 samples over all controls reach {many[after - 1]:.3f} and, after {len(many)} "
            f"iterations, {many[-1]:.3f}; they are better than the latent search {when}. One "
            "decoder; the published number is of one state.",
        ),
    ]


def draw(found, path):
    figure, axes = _pictures.grid(1, 2, width=11.0, height=4.2)
    for name, costs in found["costs"].items():
        number = np.arange(1, len(costs) + 1)
        axes[0, 0].plot(number, costs, "o-", color=COLOURS[name], label=name, markersize=3)
    axes[0, 0].set_xlabel("iterations [1]")
    axes[0, 0].set_ylabel("mean cost of the plan [1]")
    axes[0, 0].legend(fontsize=8)
    for name, shown in found["shown"].items():
        for at, plan in enumerate(shown["plans"][-1]):
            axes[0, 1].plot(
                *_steps(plan),
                color=COLOURS[name],
                linewidth=2.0 if at == 0 else 0.4,
                label=name if at == 0 else None,
            )
    axes[0, 1].set_xlabel("time [s]")
    axes[0, 1].set_ylabel("force [N]")
    axes[0, 1].set_title("mean (thick) and samples after the last iteration", fontsize=10)
    axes[0, 1].legend(fontsize=8)
    _pictures.save(figure, path)
    _animate(found, path.with_suffix(".gif"))


def _steps(plan):
    """Time and control of a plan that holds each control for a step."""
    return np.repeat(0.05 * np.arange(HORIZON + 1), 2)[1:-1], np.repeat(plan, 2)


def _animate(found, path):
    from PIL import Image

    ways = found["shown"]
    frames = []
    for at in range(len(next(iter(ways.values()))["plans"])):
        figure, axes = _pictures.grid(2, 3, width=12.5, height=6.2)
        for row, (name, shown) in zip(axes, ways.items(), strict=True):
            _draw_gaussian(row[0], found, name, shown, at)
            _draw_plans(row[1], name, shown, at)
            _draw_pole(row[2], shown["runs"][at])
        title = "the first Gaussians" if at == 0 else f"after {at} iterations"
        figure.suptitle(title, fontsize=11)
        figure.canvas.draw()
        picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
        frames.append(
            picture.quantize(palette=frames[0], dither=Image.Dither.NONE)
            if frames
            else picture.quantize(200, dither=Image.Dither.NONE)
        )
    durations = [900] * (len(frames) - 1) + [3000]
    settings = dict(format="GIF", save_all=True, duration=durations, loop=0)
    frames[0].save(path, append_images=frames[1:], **settings)


def _draw_gaussian(ax, found, name, shown, at):
    """Over the latent where there is one; else both costs so far."""
    mean, spread = np.asarray(shown["means"][at]), np.asarray(shown["spreads"][at])
    if mean.size == 2 and name.startswith("latent"):
        ends = (-1.0, 1.0, -1.0, 1.0)
        image = ax.imshow(found["ground"], origin="lower", extent=ends, cmap="Greys_r")
        ax.figure.colorbar(image, ax=ax, label="cost of the decoded controls [1]")
        turn = np.linspace(0.0, 2.0 * np.pi, 60)
        ax.plot(
            mean[0] + spread[0] * np.cos(turn),
            mean[1] + spread[1] * np.sin(turn),
            color=COLOURS[name],
            label="one deviation",
        )
        ax.plot(*mean, "o", color=COLOURS[name], label="mean")
        ax.set_xlim(-1.0, 1.0)
        ax.set_ylim(-1.0, 1.0)
        ax.set_xlabel("latent 1 [1]")
        ax.set_ylabel("latent 2 [1]")
        ax.legend(fontsize=7, loc="upper right")
        return
    for other, of in found["shown"].items():
        ax.plot(np.arange(1, at + 1), of["costs"][:at], "o-", color=COLOURS[other], label=other)
    every = [cost for of in found["shown"].values() for cost in of["costs"]]
    ax.set_xlim(0.5, len(of["costs"]) + 0.5)
    ax.set_ylim(min(every) - 0.5, max(every) + 0.5)
    ax.set_xlabel("iterations [1]")
    ax.set_ylabel("cost of the mean [1]")
    if at:
        ax.legend(fontsize=7, loc="upper right")


def _draw_plans(ax, name, shown, at):
    for place, plan in reversed(list(enumerate(shown["plans"][at]))):
        thick, colour = (2.0, "black") if place == 0 else (0.5, COLOURS[name])
        ax.plot(*_steps(plan), linewidth=thick, color=colour)
    ax.set_ylim(-105.0, 105.0)
    ax.set_xlabel("time [s]")
    ax.set_ylabel("force [N]")
    ax.set_title(f"{name}: mean and samples", fontsize=9)


def _draw_pole(ax, run):
    """Where the mean plan takes cart and pole, later stages darker."""
    for k, (position, _, cos, sin, _) in enumerate(run):
        shade = str(0.85 - 0.85 * k / (len(run) - 1))
        ax.plot([position, position + sin], [0.0, cos], color=shade, linewidth=1.5)
        ax.plot(position, 0.0, "s", color=shade, markersize=3)
    ax.set_xlim(-2.5, 2.5)
    ax.set_ylim(-1.3, 1.3)
    ax.set_xlabel("horizontal [m]")
    ax.set_ylabel("height [m]")
    ax.set_title("under the mean plan, later darker", fontsize=9)


EXPERIMENT = _main.Experiment("dcem_search", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
