r"""DCEM, cartpole table: planning in a learned subspace of the controls.

Reward of a step cos(angle) - 0.1 x^2 - 1e-5 u^2, 20 steps of 0.05 s, |u| <= 100 N. A decoder turns
a latent of 2, 8 or 16 numbers in [-1, 1] into 20 controls; the cross-entropy method (100 samples,
10 elites, 10 iterations) looks for the latent, and the decoder learns from the cost of what it
finds, one initial state a step. With temperature 1 or 0.1 the gradient goes through the search
(DCEM); with 0 the elites are chosen hard and the latent is held constant: "plain CEM".

Validation is the mean cost of 100 initial states, drawn with PyTorch's seed 0 in the order
position, speed, angle, turn; the released code's order is not known. The learning rate is halved
when 21 validations, one each 100 steps, have brought nothing better, and training ends before its
100,000 steps where that has brought it below 1e-7: nothing moves any more. Improvement is the best
validation cost over -9.046, the published cost of full-space CEM with 30 iterations: more is
better. Two references say what a subspace can do: full-space CEM here, and the two principal
components of 10,000 of its plans, searched on a grid.
"""

import dataclasses
import functools
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffcontrol as dc
from diffcontrol._control_problem import stage_problem
from diffcontrol._plan_cost import plan_costs
from diffcontrol.learning import CheckpointError, load_checkpoint, save_checkpoint
from diffcontrol.systems import Cartpole, cartpole

from . import _main, _pictures
from ._precision import single
from ._rows import Row, interval, verdict
from ._sweep import say, sweep

HORIZON, FULL_COST = 20, -9.046
# Latent size -> temperature -> improvement: latent 2 from the costs of three seeds, others read off
# the figure.
PUBLISHED = {
    2: {1.0: 1.083, 0.1: 1.048, 0.0: 1.088},
    8: {1.0: 1.18, 0.1: 0.80, 0.0: 0.89},
    16: {1.0: 1.09, 0.1: 0.81, 0.0: 0.66},
}
PUBLISHED_PCA = 1.068
EVERY = 100  # steps between validations
KEPT = 20  # validations between checkpoints
STILL = 1e-7  # a learning rate at which the decoder stands still


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the paper's, with two seeds more where the paper has most."""

    latents: tuple[int, ...] = (2, 8, 16)
    """Sizes of the latent."""
    temperatures: tuple[float, ...] = (1.0, 0.1, 0.0)
    """Of the choice of elites; 0 is hard."""
    seeds: int = 3
    """Trainings of each."""
    more_seeds: int = 5
    """Trainings with latent 2 and temperature 1."""
    steps: int = 100_000
    """Of training."""
    plans: int = 10_000
    """Whose principal components are taken."""
    side: int = 200
    """Points of the grid of principal components, along each axis."""

    def __post_init__(self):
        for option, given, known in (
            ("--latents", self.latents, PUBLISHED),
            ("--temperatures", self.temperatures, PUBLISHED[2]),
        ):
            if not set(given) <= set(known):
                raise ValueError(f"{option} has only {', '.join(map(str, known))}.")


SIZES = {
    "full": Config(),
    "reduced": Config(
        latents=(2,), temperatures=(1.0, 0.0), seeds=1, more_seeds=2, steps=5000, plans=2000
    ),
    "quick": Config((2,), (1.0,), 1, 1, steps=EVERY, plans=20, side=5),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """One decoder."""

    latent: int
    temperature: float
    seed: int
    steps: int


def reward_problem() -> dc.ControlProblem:
    """In single precision, as the paper's."""
    problem = dc.ControlProblem(
        dynamics=Cartpole(),
        stage_cost=lambda x, u, t: 0.1 * x[0] ** 2 + 1e-5 * u[0] ** 2 - x[2],
        horizon=HORIZON,
        control_size=1,
        control_bounds=dc.Bounds(-100.0, 100.0),
    )
    return single(problem)


@functools.cache
def validation_states() -> np.ndarray:
    """`(100, 5)`."""
    import torch

    generator = torch.Generator().manual_seed(0)
    limits = (0.5, 0.5, np.pi, 1.0)
    drawn = [(2 * torch.rand(100, generator=generator) - 1) * limit for limit in limits]
    position, speed, angle, turn = (values.numpy() for values in drawn)
    states = [position, speed, np.cos(angle), np.sin(angle), turn]
    return np.stack(states, axis=1).astype(np.float32)


def planner(temperature: float) -> dc.CEM:
    """In the latent."""
    soft = None if temperature == 0 else jnp.float32(temperature)
    spread = jnp.float32(0.5)
    return dc.CEM(samples=100, elites=10, iterations=10, temperature=soft, spread=spread)


def planned(decoder, x0, key, size: int, temperature: float) -> dc.Solution:
    latent = dc.LatentProblem(reward_problem(), decoder, size)
    return dc.solve(single(latent), x0, planner(temperature), key=key, throw=False)


class State(eqx.Module):
    """What training goes on from; the learning rate falls where validation stands still."""

    decoder: dc.ControlDecoder
    optimiser: optax.OptState
    best: dc.ControlDecoder
    best_cost: jax.Array
    rate: jax.Array
    waited: jax.Array


OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())


@functools.cache
def _compiled(size: int, temperature: float):
    """A step of training, and a validation. Steps are called one by one: in a compiled loop, where
    the weights move, each takes more than twice as long."""

    def cost(decoder, x0, key):
        return planned(decoder, x0, key, size, temperature).cost

    @eqx.filter_jit(donate="all-except-first")
    def step(key, state: State) -> State:
        of_state, of_plan = jax.random.split(key)
        x0 = cartpole.start(of_state).astype(jnp.float32)
        gradient = eqx.filter_grad(cost)(state.decoder, x0, of_plan)
        direction, optimiser = OPTIMISER.update(gradient, state.optimiser)
        move = jax.tree.map(lambda d: -state.rate * d, direction)
        decoder = eqx.apply_updates(state.decoder, move)
        return eqx.tree_at(lambda s: (s.decoder, s.optimiser), state, (decoder, optimiser))

    @eqx.filter_jit
    def validate(state: State) -> tuple[State, jax.Array]:
        keys = jax.random.split(jax.random.key(0), 100)
        costs = jax.vmap(lambda x0, key: cost(state.decoder, x0, key))(validation_states(), keys)
        judged = jnp.mean(costs)
        # Progress is a ten-thousandth of the best. (PyTorch's scheduler multiplies by it, so with
        # negative costs it takes what is a little worse for progress.)
        progress = judged < state.best_cost - 1e-4 * jnp.abs(state.best_cost)
        waited = jnp.where(progress | ~jnp.isfinite(state.best_cost), 0, state.waited + 1)
        falls = waited > 20
        keep = lambda new, old: jnp.where(judged < state.best_cost, new, old)
        arrays = [eqx.filter(decoder, eqx.is_array) for decoder in (state.decoder, state.best)]
        return State(
            decoder=state.decoder,
            optimiser=state.optimiser,
            best=eqx.combine(jax.tree.map(keep, *arrays), state.best),
            best_cost=keep(judged, state.best_cost),
            rate=jnp.where(falls, 0.5, 1.0) * state.rate,
            waited=jnp.where(falls, 0, waited),
        ), judged

    return step, validate


def first_state(job: Training) -> State:
    decoder = single(dc.ControlDecoder(job.latent, HORIZON, 1, key=jax.random.key(job.seed)))
    none = jnp.float32(jnp.inf)
    optimiser = OPTIMISER.init(eqx.filter(decoder, eqx.is_array))
    # What is donated must not be held twice.
    best = jax.tree.map(lambda leaf: leaf.copy() if eqx.is_array(leaf) else leaf, decoder)
    return State(decoder, optimiser, best, none, jnp.float32(5e-4), jnp.array(0))


def train(job: Training, scratch: Path):
    """Train one decoder, going on from its checkpoint; the best one stays in the folder."""
    scratch.mkdir(parents=True, exist_ok=True)
    state, costs, path = first_state(job), [], scratch / "checkpoint"
    facts = dataclasses.asdict(job)
    if path.exists():
        try:
            found, told = load_checkpoint(path, state)
            if told["job"] == facts:
                state, costs = found, told["costs"]
        except CheckpointError:
            pass  # of another version: start anew
    (step, validate), key = _compiled(job.latent, job.temperature), jax.random.key(1000 + job.seed)
    unfinished = lambda: len(costs) * EVERY < job.steps and float(state.rate) > STILL
    while unfinished():
        for step_key in jax.random.split(jax.random.fold_in(key, len(costs)), EVERY):
            state = step(step_key, state)
        state, judged = validate(state)
        costs.append(float(judged))
        if len(costs) % KEPT == 0 or not unfinished():
            save_checkpoint(path, state, {"job": facts, "costs": costs})
            name = f"latent {job.latent}, temperature {job.temperature:g}, seed {job.seed}"
            say(f"  {name}: step {len(costs) * EVERY}, best cost {min(costs):.3f}")
    return {"best": float(state.best_cost), "costs": costs[:: max(1, len(costs) // 200)]}


# --- References ----------------------------------------------------------------------------------


def full_space(x0s, seed: int) -> dc.Solution:
    """CEM over the controls themselves."""
    spread = jnp.float32(100.0)
    usual = dc.CEM(samples=100, elites=10, iterations=30, spread=spread)
    keys = jax.random.split(jax.random.key(seed), len(x0s))
    solve = lambda x0, key: dc.solve(reward_problem(), x0, usual, key=key, throw=False)
    return jax.jit(jax.vmap(solve))(x0s, keys)


def principal_components(config: Config) -> float:
    """Validation cost of the best point of a grid of the first two, +-200 N along each."""
    keys = jax.random.split(jax.random.key(1), config.plans)
    x0s = jax.vmap(cartpole.start)(keys).astype(jnp.float32)
    plans = np.asarray(full_space(x0s, 2).controls)[:, :, 0]
    mean = plans.mean(axis=0)
    _, _, directions = np.linalg.svd(plans - mean, full_matrices=False)
    axis = np.linspace(-200.0, 200.0, config.side, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    found = jnp.asarray(np.clip(mean + points @ directions[:2], -100.0, 100.0), jnp.float32)

    @jax.jit
    def cheapest(x0):
        problem, _ = stage_problem(reward_problem(), x0)
        return jnp.min(plan_costs(problem, x0, found[:, :, None], found[0, :, None]))

    return float(np.mean([cheapest(x0) for x0 in validation_states()]))


def searches(folder: Path, config: Config) -> dict:
    """For the picture: costs over the latent of three states, and what the latents mean."""
    job = Training(2, max(config.temperatures), 0, config.steps)
    state, _ = load_checkpoint(folder / name_of(job) / "checkpoint", first_state(job))
    latent = single(dc.LatentProblem(reward_problem(), state.best, 2))
    axis = np.linspace(-1.0, 1.0, 41, dtype=np.float32)
    points = jnp.asarray(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    shown = {"axis": axis, "states": []}
    cost = jax.jit(jax.vmap(lambda x0, z: latent.stage_cost(x0, z, 0), in_axes=(None, 0)))
    for which in (0, 1, 2):
        x0 = validation_states()[which]
        found = planned(state.best, x0, jax.random.key(which), 2, max(config.temperatures))
        shown["states"].append(
            {
                "angle": float(jnp.arctan2(x0[3], x0[2])),
                "costs": np.asarray(cost(x0, points)).reshape(41, 41),
                "found": np.asarray(found.controls[0]),
                "cost": float(found.cost),
            }
        )
    shown["decoded"] = [
        np.asarray(latent.decode(jnp.array([a, 0.0], jnp.float32)))[:, 0] for a in axis[::5]
    ]
    return shown


# --- What is reported ----------------------------------------------------------------------------


def name_of(job: Training) -> str:
    return f"{job.latent}-{job.temperature:g}-{job.seed}"


def measure(config: Config, context: _main.Context):
    jobs = {}
    for size in config.latents:
        for temperature in config.temperatures:
            most = (size, temperature) == (2, 1.0)
            for seed in range(config.more_seeds if most else config.seeds):
                job = Training(size, temperature, seed, config.steps)
                jobs[name_of(job)] = job
    work = lambda job: job.steps * (1.0 if job.temperature else 0.5)
    results = sweep(
        train,
        jobs,
        context.folder,
        workers=context.workers,
        ray=context.ray,
        work=work,
        scratch=True,
    )
    say("references")
    costs = np.array([full_space(validation_states(), seed).cost.mean() for seed in range(5)])
    trained: dict = {}
    for name, result in results.items():
        job = jobs[name]
        of = trained.setdefault(str(job.latent), {}).setdefault(f"{job.temperature:g}", [])
        of.append(result)
    found = {
        "trained": trained,
        "full": costs.tolist(),
        "components": principal_components(config),
    }
    if name_of(Training(2, max(config.temperatures), 0, config.steps)) in results:
        found["shown"] = searches(context.folder, config)
    return found


def rows(config: Config, found):
    full = float(np.mean(found["full"]))
    row = lambda claim, metric, published, ours, seeds, judged, why: Row(
        "DCEM", "cartpole", claim, metric, published, ours, seeds, judged, why
    )
    made = [
        row(
            "cross-entropy method over all 20 controls, 30 iterations",
            "relative difference of the validation cost to the published one [1]",
            0.0,
            abs(full / FULL_COST - 1.0),
            len(found["full"]),
            verdict(max(abs(full / FULL_COST - 1.0), 1e-9), 0.03),
            f"Costs {', '.join(f'{cost:.3f}' for cost in found['full'])}; published {FULL_COST}.",
        ),
        row(
            "the best of a grid over two principal components of its plans",
            "validation cost over the published one of full-space CEM [1]",
            PUBLISHED_PCA,
            found["components"] / FULL_COST,
            1,
            verdict(found["components"] / FULL_COST, PUBLISHED_PCA, lower=False, clearly=1.02),
            f"Cost {found['components']:.3f}; {config.plans} plans, {config.side}^2 points.",
        ),
    ]
    for size, by_temperature in found["trained"].items():
        for temperature, results in by_temperature.items():
            factors = np.array([result["best"] for result in results]) / FULL_COST
            paper = PUBLISHED[int(size)][float(temperature)]
            mean, half = interval(factors)
            # Of three seeds or more the published mean may lie within what seeds make.
            near = len(factors) > 2 and abs(mean - paper) < half
            judged = verdict(
                mean, paper, lower=False, clearly=1.05, otherwise="explained" if near else "short"
            )
            what = "plain CEM" if temperature == "0" else f"DCEM, temperature {temperature}"
            made.append(
                row(
                    f"{what}, latent {size}",
                    "mean improvement over full-space CEM [1]",
                    paper,
                    mean,
                    len(factors),
                    judged,
                    f"By seed {', '.join(f'{value:.3f}' for value in factors)}"
                    + (f" (+- {half:.2g})" if len(factors) > 1 else "")
                    + f"; at most {config.steps} steps. Over our own full-space cost, {full:.3f}: "
                    f"{mean * FULL_COST / full:.3f}.",
                )
            )
    return made


def draw(found, path):
    shown = found.get("shown")
    figure, axes = _pictures.grid(2, 3, width=13.0, height=7.6)
    _draw_table(axes[0, 0], found)
    _draw_training(axes[0, 1], found)
    if shown:
        import matplotlib

        shades = matplotlib.colormaps["viridis"]
        stages = 0.05 * np.arange(HORIZON)
        for value, controls in zip(shown["axis"][::5], shown["decoded"], strict=True):
            colour = shades(0.5 * (value + 1.0))
            axes[0, 2].plot(stages, controls, color=colour, label=f"z = ({value:.1f}, 0)")
        axes[0, 2].set_xlabel("time [s]")
        axes[0, 2].set_ylabel("decoded control [N]")
        axes[0, 2].legend(fontsize=6)
        for ax, state in zip(axes[1], shown["states"], strict=True):
            ends = (-1.0, 1.0, -1.0, 1.0)
            image = ax.imshow(state["costs"], origin="lower", extent=ends, cmap="viridis")
            figure.colorbar(image, ax=ax, label="cost of the decoded controls [1]")
            ax.plot(*state["found"], "o", color="#D55E00", label="found by DCEM")
            ax.set_xlabel("latent 1 [1]")
            ax.set_ylabel("latent 2 [1]")
            ax.set_title(f"angle {state['angle']:.2f} rad, cost {state['cost']:.2f}", fontsize=10)
            ax.legend(fontsize=7)
    _pictures.save(figure, path)


def _draw_table(ax, found):
    colours = {"1": "#0072B2", "0.1": "#56B4E9", "0": "#E69F00"}
    for at, (size, by_temperature) in enumerate(found["trained"].items()):
        for place, (temperature, results) in enumerate(by_temperature.items()):
            factors = np.array([result["best"] for result in results]) / FULL_COST
            x = at + 0.2 * (place - 1)
            label = f"temperature {temperature}" if at == 0 else None
            colour = colours.get(temperature, "#000000")
            ax.plot([x] * len(factors), factors, "o", color=colour, label=label)
            paper = PUBLISHED[int(size)][float(temperature)]
            ax.plot(x, paper, "x", color="black", label=None if at or place else "published")
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.axhline(found["components"] / FULL_COST, color="#999999", label="principal components")
    ax.set_xticks(range(len(found["trained"])), list(found["trained"]))
    ax.set_xlabel("size of the latent [1]")
    ax.set_ylabel("improvement over full-space CEM [1]")
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.5 * (high - low), high)  # room for the legend below all points
    ax.legend(fontsize=7, loc="lower left")


def _draw_training(ax, found):
    colours = {"1": "#0072B2", "0.1": "#56B4E9", "0": "#E69F00"}
    smallest = next(iter(found["trained"]))
    for temperature, results in found["trained"][smallest].items():
        for at, result in enumerate(results):
            costs = np.minimum.accumulate(result["costs"])
            label = f"temperature {temperature}" if at == 0 else None
            share = np.linspace(0.0, 1.0, len(costs))
            ax.plot(share, costs, color=colours.get(temperature, "#000000"), label=label)
    ax.axhline(np.mean(found["full"]), color="black", linewidth=0.8, label="full-space CEM")
    ax.set_xlabel("share of the training [1]")
    ax.set_ylabel(f"best validation cost, latent {smallest} [1]")
    ax.legend(fontsize=7)


EXPERIMENT = _main.Experiment("dcem_cartpole", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
