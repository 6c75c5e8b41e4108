"""DiLQR, Figs. 8 to 10: control and prediction from pictures of a pendulum.

    four pictures -> encoder -> state -> controller -> planned states -> decoder -> pictures

The encoder sees nothing but pictures of a line. Networks learn first from pictures of known states
(state and picture are to come out again). Then everything is trained through the controller: the
loss is the difference, pixel by pixel, between the pictures of the plan and those of what an expert
did. Its gradient reaches decoder, controller, encoder, and gravity and mass in the controller's
model, which start wrong; for the first quarter only these are learned. The state that the plan
starts from is the encoder's, refined through the decoder (see _pixels.py).

The auto-encoder predicts the next picture from the last four and is fed with what it predicts. It
starts from the same networks and gets as many further steps, on the same runs and with as many
pictures a step, one picture ahead. A stronger one then gets the same again, eight pictures ahead
through its own predictions. Held-out runs compare the three: how far is each predicted picture
from the true one? Ours are of the controller as it drives its own model from the estimated state.
Last it swings up the true pendulum from its pictures alone.

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
import optax

import diffcontrol as dc

from . import _main, _pictures
from ._pixels import (
    DT,
    FRAMES,
    Decoder,
    Encoder,
    continued,
    drawn,
    estimated,
    packed,
    perception_loss,
    prediction_loss,
    refined,
    render,
    strips,
    unpacked,
    windows,
)
from ._rows import Row, verdict
from ._sweep import say, sweep

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
    guesses: int = 4
    """Pairs of further guesses for a plan, at most 4."""
    unrolled: int = 8
    """Pictures that one window is compared with in a step of training."""


SIZES = {
    "full": Config(),
    "reduced": Config(seeds=1),
    # Batches of one size are compiled once.
    "quick": Config(
        seeds=1,
        first_steps=20,
        steps=2,
        batch=2,
        runs=4,
        held_out=4,
        starts=4,
        loop=20,
        horizon=10,
        guesses=1,
        unrolled=1,
    ),
}


@dataclasses.dataclass(frozen=True)
class Job:
    config: Config
    seed: int


# --- The controller ------------------------------------------------------------------------------


class Model(eqx.Module):
    """Everything that is learned; the physical parameters by their logarithms."""

    encoder: Encoder
    decoder: Decoder
    logarithms: dict[str, jax.Array]


def controller(config: Config, pendulum: dc.systems.Pendulum) -> dc.MPC:
    """The papers' cost and bounds, and full torque to either side for a while as further guesses.

    Plans have several minima: left or right, one swing or two. With fewer guesses the same state
    gets another plan from scratch than in the middle of a run.
    """
    lengths = jnp.array(SWINGS[: config.guesses])
    early = jnp.arange(config.horizon)[None, :, None] < lengths[:, None, None]
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


# --- Training ------------------------------------------------------------------------------------


def perceive(model: Model, key, progress, runs, config: Config):
    """Loss of the first training."""
    return perception_loss(model.encoder, model.decoder, runs, key, config.image_size), 0.0


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
        state = refined(model.encoder, model.decoder, render(states[:FRAMES], config.image_size))
        plan = mpc.plan(state, mpc.init(state))
        wanted = render(states[FRAMES - 1 + ahead], config.image_size)
        error = jnp.mean((jax.vmap(model.decoder)(plan.states[ahead]) - wanted) ** 2)
        return error, plan.result == dc.RESULTS.successful

    error, good = jax.vmap(one)(states, ahead)
    error = jnp.sum(jnp.where(good, error, 0.0)) / jnp.maximum(jnp.sum(good), 1)
    return error + perceive(model, keys[2], progress, runs, config)[0], 1 - jnp.mean(good)


def predict(model: Model, key, progress, runs, config: Config, unroll: bool):
    """Loss of the auto-encoder, over as many pictures as `follow` compares."""
    count, ahead = (1, config.unrolled) if unroll else (config.unrolled, 1)
    states = windows(runs, key, config.batch * count, ahead)
    return prediction_loss(model.encoder, model.decoder, states, config.image_size), 0.0


def train(what: str, model: Model, loss, steps: int, rate: float, seed: int, wait: int = 0):
    """Adam with a falling rate; a larger one for the physical parameters.

    Where full torque changes sides, plans have steep derivatives: of the gradient with respect to
    the physical parameters only the direction counts, and that of the networks is clipped.

    Args:
        wait: steps before the networks are learned.
        loss: (model, key, share of the steps that are done) -> loss, share of samples left out.

    Returns:
        The model, and of every step loss, share left out, and gravity and mass.
    """
    learn, fixed = eqx.partition(model, eqx.is_array)
    falling = lambda rate, steps: optax.cosine_decay_schedule(rate, steps, alpha=0.02)
    networks = optax.join_schedules(
        [optax.constant_schedule(0.0), falling(rate, steps - wait)], [wait]
    )
    optimiser = optax.partition(
        {
            "networks": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(networks)),
            "physics": optax.chain(
                optax.normalize_by_update_norm(), optax.adam(falling(0.03, steps))
            ),
        },
        Model("networks", "networks", "physics"),
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(learn, state, count):
        key = jax.random.fold_in(jax.random.key(seed), count)
        of = lambda learn: loss(eqx.combine(learn, fixed), key, count / steps)
        (value, left_out), gradient = jax.value_and_grad(of, has_aux=True)(learn)
        update, state = optimiser.update(gradient, state, learn)
        physics = {name: jnp.exp(v) for name, v in learn.logarithms.items()}
        return optax.apply_updates(learn, update), state, (value, left_out, physics)

    learn = jax.tree.map(jnp.array, learn)  # copies, since the step reuses their memory
    state, told = optimiser.init(learn), []
    for count in range(steps):
        learn, state, news = step(learn, state, count)
        told.append(jax.device_get(news))
        if (count + 1) % max(1, steps // 4) == 0:
            say(f"  seed {seed}, {what}: step {count + 1} of {steps}, loss {told[-1][0]:.2g}")
    return eqx.combine(learn, fixed), jax.tree.map(lambda *rows: np.stack(rows), *told)


def run(job: Job) -> dict[str, Any]:
    """One seed: training, and everything that is measured of it."""
    config, size = job.config, job.config.image_size
    keys = jax.random.split(jax.random.key(job.seed))
    logarithms = {name: jnp.log(jnp.asarray(value, float)) for name, value in WRONG.items()}
    model = Model(Encoder(size, keys[0]), Decoder(size, keys[1]), logarithms)
    runs, unseen = expert_runs(config, jax.random.key(1000))

    loss = functools.partial(perceive, runs=runs, config=config)
    first, _ = train("perception", model, loss, config.first_steps, 2e-3, job.seed)
    loss = functools.partial(follow, runs=runs, config=config)
    wait = round(ALONE * config.steps)
    ours, (_, left_out, physics) = train(
        "controller", first, loss, config.steps, 3e-4, job.seed, wait
    )
    autos, auto = {}, first
    for name, (unroll, rate) in AUTO.items():
        loss = functools.partial(predict, runs=runs, config=config, unroll=unroll)
        auto, _ = train(name, auto, loss, config.steps, rate, job.seed)
        autos[name] = auto

    seen = render(unseen[:, :FRAMES], size)
    wanted = render(unseen[:, FRAMES : FRAMES + config.horizon], size)
    found = {
        "controller": foreseen(ours, seen, config),
        "not refined": foreseen(ours, seen, config, refine=False),
        "before": foreseen(first, seen, config),
    }
    for name, auto in autos.items():
        found[name] = continued(auto.encoder, auto.decoder, seen, config.horizon)
    errors = {name: np.mean((found[name] - wanted) ** 2, axis=(2, 3)) for name in found}
    return {
        "errors": {
            name: {"mean": error.mean(axis=0).tolist(), "variance": error.var(axis=0).tolist()}
            for name, error in errors.items()
        },
        "physics": {
            name: curve[:: max(1, config.steps // 100)].tolist() for name, curve in physics.items()
        },
        "left out": float(left_out.mean()),
        "swing": swing_up(ours, config),
        "pictures": pictures_of(ours, unseen, wanted, found, config),
    }


def foreseen(model: Model, pictures, config: Config, refine: bool = True):
    """The `config.horizon` pictures that follow if the controller drives its own model."""
    mpc = learned(config, model)
    starts = estimated(model.encoder, model.decoder, pictures, refine)
    states = drive(mpc, mpc.problem.dynamics, starts, config.horizon)
    return drawn(model.decoder, states[:, 1:])


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
        return estimated(model.encoder, model.decoder, pictures)

    states = drive(learned(config, model), dc.systems.Pendulum(), starts, config.loop, look)
    angles = np.arctan2(states[..., 1], states[..., 0])
    last = slice(-round(1 / DT), None)
    worst = np.abs(angles[:, last]).max(axis=1), np.abs(states[:, last, 2]).max(axis=1)
    return {
        "angles": angles[:, ::2].tolist(),
        "worst angle": worst[0].tolist(),
        "worst speed": worst[1].tolist(),
        "succeeded": int(np.sum((worst[0] < 0.2) & (worst[1] < 0.5))),
    }


def pictures_of(model: Model, unseen, wanted, found, config: Config):
    """A few, for the figure."""
    seen = render(unseen[:8, :FRAMES], config.image_size)
    states = estimated(model.encoder, model.decoder, seen)
    at = slice(0, config.horizon, 5)
    return {
        "observed": packed(seen[:, -1]),
        "reconstructed": packed(drawn(model.decoder, states[:, None])[:, 0]),
        "true": packed(wanted[0, at]),
        **{name: packed(found[name][0, at]) for name in COLOURS},
    }


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


def _row_of_errors(found, what: str, claim: str, metric: str):
    ratios = {
        name: _errors(found, "controller", what) / _errors(found, name, what) for name in AUTO
    }
    worst = np.max([ratio for ratio in ratios.values()], axis=0)
    largest, count = float(worst.max()), worst.size
    said = "; ".join(
        f"against the {name}: median {np.median(ratio):.2g}, largest {ratio.max():.2g}"
        for name, ratio in ratios.items()
    )
    late = max(np.nonzero(worst > 1)[1] + 1, default=0)
    why = (
        f"Ratios over seeds and steps {said}. Above 1 in {np.sum(worst > 1)} of {count}, none "
        f"later than {DT * late:.2f} s ahead."
    )
    return row(claim, metric, None, largest, len(worst), verdict(largest, 1.0), why)


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
            "predicted pictures are closer to the true ones than the auto-encoders' at every step",
            "largest ratio of mean squared errors, of all seeds, steps and both auto-encoders",
        ),
        _row_of_errors(
            found,
            "variance",
            "and their error varies less from start to start",
            "largest ratio of variances of the error, of all seeds, steps and both auto-encoders",
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
    sheet = {name: unpacked(stored) for name, stored in found["pictures"].items()}
    strips(seen, sheet, ["observed", "reconstructed"])
    seen.set_title("observations and reconstructions (Fig. 8)", fontsize=10)
    strips(ahead, sheet, ["true", "controller", *AUTO])
    ahead.set_title("predicted from one observation, every 0.25 s (Fig. 9)", fontsize=10)

    before = "controller, before training through it"
    for name, line in [*((name, "-") for name in COLOURS), ("before", ":")]:
        mean = _errors(found, name, "mean").mean(axis=0)
        spread = np.sqrt(_errors(found, name, "variance").mean(axis=0))
        time = DT * np.arange(1, len(mean) + 1)
        look = {"color": COLOURS.get(name, COLOURS["controller"]), "linestyle": line}
        errors.semilogy(time, mean, label=before if name == "before" else name, **look)
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
