"""DiLQR, Figs. 8 to 10: control and prediction from pictures of a pendulum.

    four pictures -> encoder -> state -> controller -> planned states -> decoder -> pictures

The encoder sees nothing but pictures of a line. The networks learn first from pictures of known
states: one finds the state, the other draws it. Then everything is trained through the controller:
the loss is the difference, pixel by pixel, between the pictures of the plan and those of what an
expert did. Its gradient reaches decoder, controller, encoder, and gravity and mass in the
controller's model, which start wrong; for the first quarter only these are learned. The state that
a plan starts from is the encoder's, refined until the decoder draws what was seen: without this the
first predictions are worse than the auto-encoder's.

The auto-encoder predicts the next picture from the last four and is fed with what it predicts. It
starts from the same networks and gets as many further steps, on the same runs and with as many
pictures a step, one picture ahead. A stronger one then gets the same again, eight pictures ahead
through its own predictions. Held-out runs compare the three: how far is each predicted picture
from the true one? Ours are of the controller as it drives its own model from the estimated state.
Last it swings up the true pendulum from its pictures alone.

A first training, in which the decoder drew the encoder's states, gave larger ratios of error and of
variance. The auto-encoders were a little better then, but most of the difference was the
controller's.

The paper publishes neither settings nor numbers for this task.
"""

import dataclasses
import functools
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc

from . import _main, _pictures, _pixels
from ._pixels import DT, FRAMES, Decoder, Encoder, Model, drawn, render, train, windows
from ._rows import Row, short, verdict
from ._sweep import sweep

SWINGS = (3, 6, 10, 15)  # [steps] of full torque to one side, in guesses
LENGTH = 80  # of a recorded run
WRONG = {"gravity": 7.0, "mass": 1.4}  # true: 10 m/s^2 and 1 kg; the length is known
ALONE = 0.25  # share of the training through the controller in which only these are learned
# Whether it is trained on what it predicts itself, and its rate. With 5e-4 the longer one diverges.
AUTO = {"auto-encoder, one step": (False, 5e-4), "auto-encoder, eight steps": (True, 2e-4)}
COLOURS = {"controller": "#0072B2", **dict(zip(AUTO, ("#E69F00", "#D55E00"), strict=True))}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; none is published."""

    seeds: int = 3
    """Initial weights."""
    image_size: int = 32
    """Pixels a side, a multiple of 32. The paper's 224 takes 49 times as long."""
    first_steps: int = 4000
    """Steps of Adam on pictures of known states."""
    steps: int = 600
    """Further steps through the controller, and as many for the auto-encoder in each way."""
    batch: int = 16
    """Windows a step of these."""
    runs: int = 128
    """Of the expert, to learn from."""
    held_out: int = 64
    """Of the expert, to compare predictions."""
    starts: int = 12
    """Closed loops from pictures."""
    loop: int = 200
    """Their length."""
    horizon: int = 40
    """Stages of a plan, and pictures ahead that are compared. Fewer leave some starts hanging."""
    unrolled: int = 8
    """Pictures that one window is compared with in a step of training."""


SIZES = {
    "full": Config(),
    "reduced": Config(seeds=1),
    # Batches of one size are compiled once.
    "quick": Config(
        seeds=1,
        first_steps=4,
        steps=2,
        batch=2,
        runs=4,
        held_out=4,
        starts=4,
        loop=20,
        horizon=10,
        unrolled=1,
    ),
}


@dataclasses.dataclass(frozen=True)
class Job:
    config: Config
    seed: int


# --- The controller ------------------------------------------------------------------------------


def controller(config: Config, pendulum: dc.systems.Pendulum) -> dc.MPC:
    """The papers' cost and bounds, and full torque to either side for a while as further guesses.

    Plans have several minima: left or right, one swing or two. With fewer guesses the same state
    gets another plan from scratch than in the middle of a run.
    """
    early = jnp.arange(config.horizon)[:, None] < jnp.array(SWINGS)[:, None, None]
    swings = jnp.where(early, 2.0, -2.0)
    # With a dtype of their own, known and learned parameters share one compiled program.
    pendulum = jax.tree.map(lambda value: jnp.asarray(value, float), pendulum)
    problem = dc.systems.pendulum.problem(config.horizon, pendulum)
    return dc.MPC(problem, dc.DDP(max_iterations=30), jnp.concatenate([swings, -swings]))


def learned(config: Config, model: Model) -> dc.MPC:
    values = {name: jnp.exp(value) for name, value in model.logarithms.items()}
    return controller(config, dc.systems.Pendulum(**values))


@eqx.filter_jit
def act(mpc: dc.MPC, states, memories):
    """Controls and memories of a batch."""
    return jax.vmap(lambda x, memory: mpc(x, memory))(states, memories)


def drive(mpc: dc.MPC, plant, starts, steps: int, look=lambda states: states):
    """Closed loops.

    XLA's convolutions are slow inside its own loops, so this one is Python's.

    Args:
        look: states of the plant -> what the controller takes them for.

    Returns:
        States `(batch, steps + 1, 3)`.
    """
    advance = eqx.filter_jit(jax.vmap(lambda x, u: plant(x, u, 0)))
    memories, states = jax.vmap(mpc.init)(starts), [starts]
    for _ in range(steps):
        controls, memories = act(mpc, look(states[-1]), memories)
        states.append(advance(states[-1], controls))
    return jnp.stack(states, axis=1)


def expert_runs(config: Config, key):
    """States `(count, LENGTH + 1, 3)` of the expert, to learn from and held out.

    They start anywhere on the circle, within 1 rad/s.
    """
    count = config.runs + config.held_out
    angle, speed = jax.random.uniform(key, (2, count), minval=-1.0) * jnp.array([[jnp.pi], [1.0]])
    starts = jnp.stack([jnp.cos(angle), jnp.sin(angle), speed], axis=1)
    plant = dc.systems.Pendulum()
    run = lambda starts: drive(controller(config, plant), plant, starts, LENGTH)
    return run(starts[: config.runs]), run(starts[config.runs :])


# --- One seed ------------------------------------------------------------------------------------


def follow(model: Model, key, progress, runs, config: Config):
    """Loss through the controller: pictures of the plan against those of the expert.

    At first only the next steps count: a line that is far from where it should be overlaps with
    nothing, so that its pixels do not say where to move. The loss of the first training stays, or
    the networks drift to states of their own with which a wrong pendulum predicts as well.
    """
    keys = jax.random.split(key, 3)
    states = windows(runs, keys[0], config.batch, config.horizon)
    reach = 10.0 + (config.horizon - 10.0) * jnp.clip(2.0 * (progress - ALONE), 0.0, 1.0)
    ahead = (reach + 1.0) * jax.random.uniform(keys[1], (config.batch, config.unrolled)) ** 2
    ahead = ahead.astype(int)

    def one(states, ahead):
        mpc = learned(config, model)
        state = _pixels.refined(model, render(states[:FRAMES], config.image_size))
        plan = mpc.plan(state, mpc.init(state))
        wanted = render(states[FRAMES - 1 + ahead], config.image_size)
        error = jnp.mean((jax.vmap(model.decoder)(plan.states[ahead]) - wanted) ** 2)
        return error, plan.result == dc.RESULTS.successful

    error, good = jax.vmap(one)(states, ahead)
    error = jnp.sum(jnp.where(good, error, 0.0)) / jnp.maximum(jnp.sum(good), 1)
    kept = _pixels.perceive(model, keys[2], runs, config.image_size)
    return error + kept, 1 - jnp.mean(good)


def trained(job: Job, runs) -> tuple[dict[str, Model], Any]:
    """Models by name, and what `train` says of the steps through the controller."""
    config, seed, size = job.config, job.seed, job.config.image_size
    rng = np.random.default_rng(seed)
    logarithms = {name: jnp.log(jnp.asarray(value, float)) for name, value in WRONG.items()}
    model = Model(Encoder(size, rng), Decoder(size, rng), logarithms)

    perceive = lambda model, key, progress: (_pixels.perceive(model, key, runs, size), 0.0)
    first, _ = train("perception", model, perceive, config.first_steps, 2e-3, seed)
    loss = functools.partial(follow, runs=runs, config=config)
    wait = round(ALONE * config.steps)
    ours, told = train("controller", first, loss, config.steps, 3e-4, seed, wait)
    models, auto = {"controller": ours, "before": first}, first
    for name, (unroll, rate) in AUTO.items():
        ahead = config.unrolled if unroll else 1
        # As many pictures as `follow` compares, also to keep the first training.
        count = (config.batch * config.unrolled + _pixels.BATCH) // ahead

        def predict(model, key, progress, count=count, ahead=ahead):
            return _pixels.predict(model, windows(runs, key, count, ahead), size), 0.0

        models[name] = auto = train(name, auto, predict, config.steps, rate, seed)[0]
    return models, told


def run(job: Job) -> dict[str, Any]:
    """One seed: training, and everything that is measured of it."""
    config = job.config
    runs, unseen = expert_runs(config, jax.random.key(1000))
    models, (_, left_out, physics) = trained(job, runs)
    ours = models["controller"]
    pictures = render(unseen[:, : FRAMES + config.horizon], config.image_size)
    seen, wanted = pictures[:, :FRAMES], pictures[:, FRAMES:]
    found = {name: foreseen(models[name], seen, config) for name in ("controller", "before")}
    found["not refined"] = foreseen(ours, seen, config, refine=False)
    found |= {name: _pixels.continued(models[name], seen, config.horizon) for name in AUTO}
    errors = {name: np.mean((found[name] - wanted) ** 2, axis=(2, 3)) for name in found}
    states, at = _pixels.estimated(ours, seen[:8]), slice(0, config.horizon, 5)
    sheet = {
        "observed": seen[:8, -1],
        "reconstructed": drawn(ours, states[:, None])[:, 0],
        "true": wanted[0, at],
        **{name: found[name][0, at] for name in COLOURS},
    }
    return short(
        {
            "errors": {
                name: {"mean": error.mean(axis=0), "variance": error.var(axis=0)}
                for name, error in errors.items()
            },
            "physics": {
                name: curve[:: max(1, config.steps // 100)] for name, curve in physics.items()
            },
            "left out": left_out.mean(),
            "swing": swing_up(ours, config),
            "pictures": {name: _pixels.packed(pictures) for name, pictures in sheet.items()},
        }
    )


def foreseen(model: Model, pictures, config: Config, refine: bool = True):
    """The `config.horizon` pictures that follow if the controller drives its own model."""
    mpc = learned(config, model)
    starts = _pixels.estimated(model, pictures, refine)
    states = drive(mpc, mpc.problem.dynamics, starts, config.horizon)
    return drawn(model, states[:, 1:])


def swing_up(model: Model, config: Config):
    """Closed loops from pictures, from rest within 0.3 rad of hanging."""
    angles = jnp.pi + jnp.linspace(-0.3, 0.3, config.starts)
    starts = jnp.stack([jnp.cos(angles), jnp.sin(angles), jnp.zeros_like(angles)], axis=1)
    # The pendulum is held still until four pictures are taken.
    pictures = jnp.repeat(render(starts, config.image_size)[:, None], FRAMES, axis=1)

    def look(states):
        nonlocal pictures
        newest = render(states, config.image_size)[:, None]
        pictures = jnp.concatenate([pictures[:, 1:], newest], axis=1)
        return _pixels.estimated(model, pictures)

    states = drive(learned(config, model), dc.systems.Pendulum(), starts, config.loop, look)
    angles = np.arctan2(states[..., 1], states[..., 0])
    last = slice(-round(1 / DT), None)
    balanced = (np.abs(angles[:, last]) < 0.2) & (np.abs(states[:, last, 2]) < 0.5)
    return {"angles": angles[:, ::2], "succeeded": np.sum(balanced.all(axis=1))}


def measure(config: Config, context: _main.Context):
    jobs = {f"seed{seed}": Job(config, seed) for seed in range(config.seeds)}
    done = sweep(run, jobs, context.folder, workers=context.workers, ray=context.ray)
    if not done:
        raise ValueError("No seed was finished.")
    pictures = [seed.pop("pictures") for seed in done.values()]
    return {"steps": config.steps, "seeds": list(done.values()), "pictures": pictures[0]}


# --- What comes of it ----------------------------------------------------------------------------


row = functools.partial(Row, "DiLQR", "visual")


def _errors(found, name: str, what: str):
    """`(seeds, horizon)`."""
    return np.array([seed["errors"][name][what] for seed in found["seeds"]], float)


def _row_of_errors(found, what: str, named: str, claim: str):
    ours = _errors(found, "controller", what)
    ratios = {name: ours / _errors(found, name, what) for name in AUTO}
    worst = np.max(list(ratios.values()), axis=0)
    bare = np.max([_errors(found, "not refined", what) / _errors(found, n, what) for n in AUTO])
    said = "; ".join(
        f"against the {name}: median {np.median(ratio):.2g}, largest {ratio.max():.2g}"
        for name, ratio in ratios.items()
    )
    why = (
        f"Ratios over seeds and steps {said}. Above 1 in {np.sum(worst > 1)} of {worst.size}. "
        f"With the encoder's state, not refined through the decoder: {bare:.2g}."
    )
    metric = f"largest ratio of {named}, of all seeds, steps and both auto-encoders"
    return row(claim, metric, None, worst.max(), len(worst), verdict(worst.max(), 1.0), why)


def rows(config: Config, found):
    seeds = len(found["seeds"])
    succeeded = [seed["swing"]["succeeded"] for seed in found["seeds"]]
    share = min(succeeded) / config.starts
    ends = [{name: seed["physics"][name][-1] for name in WRONG} for seed in found["seeds"]]
    # What the motion depends on: gravity / length, and mass length^2, with the length known.
    off = [max(abs(end["gravity"] / 10.0 - 1), abs(end["mass"] - 1)) for end in ends]
    return [
        _row_of_errors(
            found,
            "mean",
            "mean squared errors",
            "predicted pictures are closer to the true ones than the auto-encoders' at every step",
        ),
        _row_of_errors(
            found,
            "variance",
            "variances of the error",
            "and their error varies less from start to start",
        ),
        row(
            "swing-up from pictures with 2 N m, in closed loop from near hanging",
            f"share of {config.starts} starts that end balanced, of the worst seed",
            None,
            share,
            seeds,
            verdict(share, 0.9, lower=False, clearly=1.1),
            f"Balanced of {config.starts}, by seed: {', '.join(map(str, succeeded))}.",
        ),
        row(
            "gravity and mass of the controller's model are learned from pictures, without labels",
            "largest relative error of either, from 0.4 at the start",
            None,
            max(off),
            seeds,
            verdict(max(off), 0.1),
            f"By seed: {', '.join(f'{value:.2g}' for value in off)}. Before that, the networks "
            "learned from pictures of known states.",
        ),
    ]


def _name(ax, title: str, x: str, y: str):
    ax.set_title(title, fontsize=10)
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def draw(found, path):
    figure, axes = _pictures.grid(3, 2, width=12.0, height=8.5)
    (seen, ahead), (errors, spreads), (swings, physics) = axes
    sheet = {name: _pixels.unpacked(stored) for name, stored in found["pictures"].items()}
    _pixels.strips(seen, sheet, ["observed", "reconstructed"])
    seen.set_title("observations and reconstructions (Fig. 8)", fontsize=10)
    _pixels.strips(ahead, sheet, ["true", "controller", *AUTO])
    ahead.set_title("predicted from one observation, every 0.25 s (Fig. 9)", fontsize=10)

    ours = {"before": ("before training through it", ":"), "not refined": ("not refined", "--")}
    for name in (*COLOURS, *ours):
        mean = _errors(found, name, "mean").mean(axis=0)
        spread = np.sqrt(_errors(found, name, "variance").mean(axis=0))
        time = DT * np.arange(1, len(mean) + 1)
        said, line = ours.get(name, ("", "-"))
        label = f"controller, {said}" if said else name
        look = {"color": COLOURS.get(name, COLOURS["controller"]), "linestyle": line}
        errors.semilogy(time, mean, label=label, **look)
        spreads.semilogy(time, spread, **look)
    title = "error of predicted pictures, mean of starts (Fig. 10)"
    _name(errors, title, "time ahead [s]", "squared error a pixel [1]")
    _name(spreads, "the same, from start to start", "time ahead [s]", "its standard deviation [1]")
    errors.legend(fontsize=7)

    for number, seed in enumerate(found["seeds"]):
        colour = _pictures.SEEDS[number % 8]
        angles = np.abs(np.array(seed["swing"]["angles"], float)).T
        swings.plot(2 * DT * np.arange(len(angles)), angles, color=colour, linewidth=0.6, alpha=0.7)
        for name, true, line in (("gravity", 10.0, "-"), ("mass", 1.0, "--")):
            curve = np.array(seed["physics"][name], float) / true
            steps = np.linspace(0, found["steps"], len(curve))
            label = f"{name}, seed {number}"
            physics.plot(steps, curve, color=colour, linestyle=line, label=label)
    for ax, level in ((swings, 0.2), (physics, 1.0)):
        ax.axhline(level, color=_pictures.COLOURS["published"], linewidth=0.8, linestyle=":")
    title = "swing-up from pictures, a line a start"
    _name(swings, title, "time [s]", "angle from upright [rad]")
    title = "physical parameters learned from pictures"
    _name(physics, title, "step of training through the controller [1]", "parameter / true [1]")
    physics.legend(fontsize=7, ncols=max(1, len(found["seeds"])))
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("dilqr_visual", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
