r"""DCEM, half cheetah: planning in a latent space, in a learned model of a simulated animal.

The paper's code for cheetah and walker was not released, and they are seen as pixels there. In
their place stands Gymnasium's HalfCheetah-v5: 17 numbers, six torques in [-1, 1] each 0.05 s, and
as the reward of a step its mean forward speed [m/s] less 0.1 |u|^2. The claim is the same: planning
in a learned latent space with 100 samples earns nearly what planning in the controls does with
1000.

The model is a network, `dc.NeuralDynamics`, whose state has the distance too, so that the reward of
a plan is exactly that of the task: distance gained over 0.05 s, less the effort. After a few
episodes of random controls each round drives the simulator twice, with plans of full-space CEM and
with latent ones (some noise added), then trains the model on all steps seen, and the decoder by the
cost of what DCEM finds on that model from the states of the later half. So the data are of both,
and at the end all planners are judged with the same model, from starts that it has not seen.

Two things were needed, and found on other seeds. Latent plans must be driven while the decoder
learns: one that is trained on a model of other planners' data finds where that model is wrong, and
earned less than nothing with plans that promised as much as those of 1000 samples. And of each plan
three controls are applied, by all planners. Where it is one, as in the paper, latent plans may
promise again and again what is to come later, which never happens, and which no data refute. The
row that makes a plan each step shows this.

Full-space CEM with 100 samples says whether it is the subspace that saves samples, an untrained
decoder whether it is training. Full-space plans are made anew, as the paper's, or from the last
plan shifted, which is better; also with pink noise, and at each step. What is not judged here: on a
model of its own data alone full-space CEM may earn more.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffcontrol as dc
from diffcontrol.learning import CheckpointError, load_checkpoint, save_checkpoint

from . import _main, _pictures
from ._half_cheetah import CONTROL, STATE, TIME_STEP, check_installed, drive
from ._precision import single
from ._rows import Row, verdict
from ._sweep import say, sweep

PUBLISHED = 652.0 / 700.0  # cheetah.run, latent DCEM over full CEM
MODEL_RATE, DECODER_RATE, DECODER_BATCH = 1e-3, 5e-4, 2
NOISE = 0.1  # of the controls that collect data
LATE = 10  # rounds
JUDGED = 16  # states from which plans are compared on the model
PLANNERS = {
    "full 1000": "#0072B2",
    "full 100": "#56B4E9",
    "latent 100": "#D55E00",
    "untrained latent 100": "#999999",
    "full 1000, shifted": "#009E73",
    "full 100, shifted": "#CC79A7",
    "full 100, shifted, pink": "#000000",
    "full 100, shifted, each step": "#F0E442",
    "latent 100, each step": "#E69F00",
}
TIMED = ("full 1000", "full 100", "latent 100")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings."""

    seeds: int = 3
    """Repetitions of everything: data, model, decoder."""
    rounds: int = 50
    """Of two episodes each, and training."""
    random_episodes: int = 10
    """Before the first round."""
    steps: int = 250
    """Of an episode, 0.05 s each."""
    episodes: int = 5
    """That judge each planner."""
    horizon: int = 12
    """Of plans [steps]; the paper's."""
    followed: int = 3
    """Controls of a plan that are applied before the next plan, by all planners."""
    latent: int = 8
    """Numbers that the decoder takes."""
    width: int = 128
    """Of the model's two hidden layers."""
    model_steps: int = 500
    """Of training the model in a round; ten times as many before the first."""
    decoder_steps: int = 20
    """Of training the decoder in a round."""


SIZES = {
    "full": Config(),
    "reduced": Config(seeds=2, rounds=15, episodes=3),
    "quick": Config(1, 1, 1, 6, 1, 3, 3, 2, 16, 5, 1),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One repetition."""

    seed: int
    config: Config


# --- Planning ------------------------------------------------------------------------------------


# By name, since what is compiled for one problem serves another only if their costs are the same.
def effort(x, u, t):
    return 0.1 * jnp.sum(u**2)


def less_distance(x):
    return -x[0] / TIME_STEP


def reward_problem(model, horizon: int) -> dc.ControlProblem:
    """From distance zero."""
    problem = dc.ControlProblem(
        dynamics=model,
        stage_cost=effort,
        terminal_cost=less_distance,
        horizon=horizon,
        control_size=CONTROL,
        control_bounds=dc.Bounds(-1.0, 1.0),
    )
    return single(problem)


def planner(samples: int, **settings) -> dc.CEM:
    return single(dc.CEM(samples, samples // 10, iterations=10, **settings))


def in_latent(decoder, problem: dc.ControlProblem, size: int) -> dc.LatentProblem:
    return single(dc.LatentProblem(problem, decoder, size))


def found_in_latent(decoder, problem, x0, key) -> dc.Solution:
    latent = in_latent(decoder, problem, decoder.weights[0].shape[1])
    return dc.solve(latent, x0, planner(100, temperature=1.0), key=key, throw=False)


@eqx.filter_jit
def plan(problem, method, x, guess, key, t):
    """Controls `(T, m)`: of a planner, or of DCEM in the latent of a decoder."""
    key = jax.random.fold_in(key, t)
    if isinstance(method, dc.ControlDecoder):
        best = found_in_latent(method, problem, x, key).controls[0]
        return in_latent(method, problem, best.shape[0]).decode(best)
    return dc.solve(problem, x, method, guess=guess, key=key, throw=False).controls


def policy(problem: dc.ControlProblem, method, key, followed: int = 1, shifted: bool = False):
    """(state, step) -> control. Each plan is followed for some steps. The next is made anew, or
    from the last moved on."""
    controls = None

    def act(x, t):
        nonlocal controls
        if t % followed == 0:
            guess = np.zeros((problem.horizon, CONTROL), np.float32)
            if shifted and controls is not None:
                guess[: problem.horizon - followed] = controls[followed:]
            controls = np.asarray(plan(problem, method, x, jnp.asarray(guess), key, jnp.asarray(t)))
        return controls[t % followed]

    return act


# --- Learning ------------------------------------------------------------------------------------


class Learned(eqx.Module):
    """What learning goes on from; `before`, `controls` and `after` are steps, `count` of them
    known, with the distance counted from the first state of each."""

    model: dc.NeuralDynamics
    model_optimiser: optax.OptState
    decoder: dc.ControlDecoder
    decoder_optimiser: optax.OptState
    before: jax.Array
    controls: jax.Array
    after: jax.Array
    count: jax.Array


TRAIN_MODEL = optax.chain(optax.clip_by_global_norm(10.0), optax.scale_by_adam())
TRAIN_DECODER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(DECODER_RATE))


def at_first(job: Job) -> Learned:
    config = job.config
    of_model, of_decoder = jax.random.split(jax.random.key(job.seed))
    model = dc.NeuralDynamics(
        STATE, CONTROL, unseen=(0,), width=config.width, activation=jax.nn.silu, key=of_model
    )
    decoder = untrained(job, of_decoder)
    room = (config.random_episodes + 2 * config.rounds) * config.steps
    zeros = lambda size: jnp.zeros((room, size), jnp.float32)
    model = single(model)
    return Learned(
        model,
        TRAIN_MODEL.init(eqx.filter(model.network, eqx.is_array)),
        decoder,
        TRAIN_DECODER.init(eqx.filter(decoder, eqx.is_array)),
        zeros(STATE),
        zeros(CONTROL),
        zeros(STATE),
        jnp.array(0),
    )


def untrained(job: Job, key) -> dc.ControlDecoder:
    return single(dc.ControlDecoder(job.config.latent, job.config.horizon, CONTROL, key=key))


def with_episode(learned: Learned, states: np.ndarray, controls: np.ndarray) -> Learned:
    first = states[:-1] * (np.arange(STATE) == 0)
    at = slice(int(learned.count), int(learned.count) + len(controls))
    new = (states[:-1] - first, controls, states[1:] - first)
    old = (learned.before, learned.controls, learned.after)
    put = [rows.at[at].set(given.astype(np.float32)) for rows, given in zip(old, new, strict=True)]
    return eqx.tree_at(
        lambda l: (l.before, l.controls, l.after, l.count), learned, (*put, jnp.array(at.stop))
    )


def with_normalisation(learned: Learned) -> Learned:
    known = slice(0, int(learned.count))
    states = jnp.stack([learned.before[known], learned.after[known]], axis=1)
    model = single(learned.model.fitted_to(states, learned.controls[known, None]))
    return eqx.tree_at(lambda l: l.model, learned, model)


@eqx.filter_jit
def train_model(learned: Learned, rates, key) -> tuple[Learned, jax.Array]:
    """One step a rate; the error is that of the change over a step, normalised."""

    def loss(network, i):
        model = eqx.tree_at(lambda m: m.network, learned.model, network)
        said = jax.vmap(model.change)(learned.before[i], learned.controls[i])
        error = (said - (learned.after[i] - learned.before[i])) / model.changes.scale
        return jnp.mean(error**2)

    arrays, rest = eqx.partition(learned.model.network, eqx.is_array)

    def step(carry, given):
        arrays, optimiser = carry
        rate, key = given
        i = jax.random.randint(key, (256,), 0, learned.count)
        value, gradient = jax.value_and_grad(lambda a: loss(eqx.combine(a, rest), i))(arrays)
        direction, optimiser = TRAIN_MODEL.update(gradient, optimiser)
        arrays = jax.tree.map(lambda a, d: a - rate * d, arrays, direction)
        return (arrays, optimiser), value

    start = (arrays, learned.model_optimiser)
    keys = jax.random.split(key, len(rates))
    (arrays, optimiser), values = jax.lax.scan(step, start, (rates, keys))
    network = eqx.combine(arrays, rest)
    learned = eqx.tree_at(
        lambda l: (l.model.network, l.model_optimiser), learned, (network, optimiser)
    )
    return learned, jnp.mean(values[-100:])


@eqx.filter_jit
def decoder_step(decoder, optimiser, problem, before, count, key):
    """Of training; called one by one, since in a compiled loop each takes more than twice as long.
    States are of the later half of the data: what a controller sees, not a random one."""
    of_states, of_plans = jax.random.split(key)
    i = jax.random.randint(of_states, (DECODER_BATCH,), count // 2, count)
    keys = jax.random.split(of_plans, DECODER_BATCH)

    @eqx.filter_grad
    def gradient(decoder):
        cost = lambda x0, key: found_in_latent(decoder, problem, x0, key).cost
        return jnp.mean(jax.vmap(cost)(before[i], keys))

    direction, optimiser = TRAIN_DECODER.update(gradient(decoder), optimiser)
    return eqx.apply_updates(decoder, direction), optimiser


def train_decoder(learned: Learned, horizon: int, steps: int, key) -> Learned:
    problem = reward_problem(learned.model, horizon)
    decoder, optimiser = learned.decoder, learned.decoder_optimiser
    for step_key in jax.random.split(key, steps):
        decoder, optimiser = decoder_step(
            decoder, optimiser, problem, learned.before, learned.count, step_key
        )
    return eqx.tree_at(lambda l: (l.decoder, l.decoder_optimiser), learned, (decoder, optimiser))


@eqx.filter_jit
def _promised(problem, method, x0s, key) -> jax.Array:
    def one(given):
        x0, key = given
        if isinstance(method, dc.ControlDecoder):
            return -found_in_latent(method, problem, x0, key).cost
        return -dc.solve(problem, x0, method, key=key, throw=False).cost

    return jnp.mean(jax.lax.map(one, (x0s, jax.random.split(key, len(x0s)))))


def promises(learned: Learned, horizon: int, key) -> dict[str, float]:
    """Mean return of plans on the model, from states of the later half of the data."""
    problem, count = reward_problem(learned.model, horizon), int(learned.count)
    x0s = learned.before[np.linspace(count // 2, count - 1, JUDGED).astype(int)]
    methods = {"latent": learned.decoder, "full 100": planner(100), "full 1000": planner(1000)}
    return {name: float(_promised(problem, of, x0s, key)) for name, of in methods.items()}


def after_random_episodes(learned: Learned, config: Config, seed: int, key) -> Learned:
    """With data of random controls, and a model of them."""
    for episode in range(config.random_episodes):
        generator = np.random.default_rng([seed, episode])
        randomly = lambda x, t, draw=generator.uniform: draw(-1.0, 1.0, CONTROL)
        states, controls, _ = drive(randomly, config.steps, seed + 10 + episode)
        learned = with_episode(learned, states, controls)
    rates = jnp.full(10 * config.model_steps, MODEL_RATE, jnp.float32)
    return train_model(with_normalisation(learned), rates, key)[0]


def learn(job: Job, scratch: Path) -> tuple[Learned, list[dict]]:
    """Data, model and decoder, going on from the last checkpoint."""
    config, path = job.config, scratch / "learned"
    scratch.mkdir(parents=True, exist_ok=True)
    learned, curves, facts = at_first(job), [], dataclasses.asdict(job)
    try:
        found, told = load_checkpoint(path, learned)
        if told["job"] == facts:
            learned, curves = found, told["curves"]
    except (CheckpointError, FileNotFoundError):
        pass
    base = jax.random.key(1000 + job.seed)
    for number in range(len(curves), config.rounds + 1):
        keys = jax.random.split(jax.random.fold_in(base, number), 5)
        seed = 1_000_000 * (job.seed + 1) + 1000 * number
        last = number == config.rounds
        curve = {}
        if number == 0:
            learned = after_random_episodes(learned, config, seed, keys[4])
        if not last:
            problem = reward_problem(learned.model, config.horizon)
            for place, (name, method) in enumerate(
                {"full": planner(100), "latent": learned.decoder}.items()
            ):
                act = policy(problem, method, keys[place], config.followed, shifted=True)
                states, controls, curve[name] = drive(act, config.steps, seed + place, NOISE)
                learned = with_episode(learned, states, controls)
        if number & (number + 1) == 0 or last:  # 0, 1, 3, 7, ...
            learned = with_normalisation(learned)
        rates = jnp.linspace(MODEL_RATE, 0.0, config.model_steps, dtype=jnp.float32)
        learned, loss = train_model(learned, rates, keys[2])
        learned = train_decoder(learned, config.horizon, config.decoder_steps, keys[3])
        curve["loss"] = float(loss)
        if number % 5 == 0 or last:
            curve["promised"] = promises(learned, config.horizon, keys[4])
        curves.append(curve)
        if number % 5 == 0 or last:
            save_checkpoint(path, learned, {"job": facts, "curves": curves})
            shown = ", ".join(f"{name} {value:.1f}" for name, value in curve["promised"].items())
            real = "" if last else f"returns {curve['full']:.0f}, latent {curve['latent']:.0f}; "
            say(f"  seed {job.seed}, round {number}: {real}promised {shown}; loss {loss:.3f}")
    return learned, curves


def judge(problem, method, job: Job, followed: int, shifted: bool) -> list[float]:
    """Returns in the simulator."""
    returns = []
    for episode in range(job.config.episodes):
        act = policy(problem, method, jax.random.key(10_000 + episode), followed, shifted)
        start = 500_000_000 + 1000 * job.seed + episode
        returns.append(drive(act, job.config.steps, start)[2])
    return returns


def plan_time(problem, method) -> float:
    """The least of 20 plans [ms], since a machine is also busy with other things."""
    x, guess = jnp.zeros(STATE, jnp.float32), jnp.zeros((problem.horizon, CONTROL), jnp.float32)
    times = []
    for t in range(21):  # the first may compile
        begin = time.perf_counter()
        plan(problem, method, x, guess, jax.random.key(0), jnp.asarray(t)).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def run(job: Job, scratch: Path) -> dict:
    """Learn, then judge each planner; what was judged before is not judged again."""
    learned, curves = learn(job, scratch)
    problem, followed = reward_problem(learned.model, job.config.horizon), job.config.followed
    random = untrained(job, jax.random.key(77 + job.seed))
    full, few = planner(1000), planner(100)
    methods = {  # how many controls of a plan are applied, and whether it starts from the last
        "full 1000": (full, followed, False),
        "full 100": (few, followed, False),
        "latent 100": (learned.decoder, followed, False),
        "untrained latent 100": (random, followed, False),
        "full 1000, shifted": (full, followed, True),
        "full 100, shifted": (few, followed, True),
        "full 100, shifted, pink": (planner(100, colour=1.0), followed, True),
        "full 100, shifted, each step": (few, 1, True),
        "latent 100, each step": (learned.decoder, 1, False),
    }
    path, facts = scratch / "judged.json", json.loads(json.dumps(dataclasses.asdict(job)))
    stored = json.loads(path.read_text()) if path.exists() else {}
    judged = stored["judged"] if stored.get("job") == facts else {}
    for name, (method, followed, shifted) in methods.items():
        if name not in judged:
            judged[name] = judge(problem, method, job, followed, shifted)
            path.write_text(json.dumps({"job": facts, "judged": judged}))
            say(f"  seed {job.seed}, {name}: median return {np.median(judged[name]):.0f}")
    milliseconds = {name: plan_time(problem, methods[name][0]) for name in TIMED}
    return {"judged": judged, "milliseconds": milliseconds, "curves": curves}


# --- What is reported ----------------------------------------------------------------------------


def measure(config: Config, context: _main.Context):
    check_installed()
    one = dataclasses.replace(config, seeds=1)  # so that more seeds can be added later
    # Settings were found on smaller numbers.
    jobs = {f"seed-{seed}": Job(seed, one) for seed in range(10, 10 + config.seeds)}
    results = sweep(
        run, jobs, context.folder, workers=context.workers, ray=context.ray, scratch=True
    )
    return {"seeds": [results[name] for name in jobs if name in results]}


def _medians(found, name: str) -> np.ndarray:
    """By seed."""
    return np.array([np.median(of["judged"][name]) for of in found["seeds"]])


def rows(config: Config, found):
    medians = {name: _medians(found, name) for name in PLANNERS}
    listed = lambda name: f"{name} {', '.join(f'{value:.0f}' for value in medians[name])}"
    milliseconds = {
        name: np.mean([of["milliseconds"][name] for of in found["seeds"]]) for name in TIMED
    }

    def row(claim, metric, published, ours, judged, why):
        metric, seeds = f"HalfCheetah: {metric}", len(found["seeds"])
        return Row("DCEM", "cheetah", claim, metric, published, ours, seeds, judged, why)

    def compared(claim, over, under, bar, published=None, why=""):
        """Of the means over the seeds of the median returns; none where nothing was earned."""
        if medians[under].mean() <= 0:
            return []
        ratio = float(medians[over].mean() / medians[under].mean())
        judged = verdict(ratio, bar, lower=False, clearly=1.1)
        metric = f"return of {over!r} over that of {under!r} [1]"
        told = f"Medians of {config.episodes} returns, by seed: {listed(over)}; {listed(under)}."
        return [row(claim, metric, published, ratio, judged, f"{told} {why}".strip())]

    full = [name for name in PLANNERS if name.startswith("full")]
    best = max(full, key=lambda name: medians[name].mean())
    latent = "latent 100"
    kept = medians["full 100"].mean() / medians["full 1000"].mean()
    saved = milliseconds["full 1000"] / milliseconds[latent]
    return [
        *compared(
            "a learned latent space with 100 samples earns nearly what the controls do with 1000",
            latent,
            "full 1000",
            PUBLISHED,
            PUBLISHED,
        ),
        *compared(
            "and what the best full-space CEM does, of those that were run",
            latent,
            best,
            PUBLISHED,
            why=f"All: {'; '.join(map(listed, full))}.",
        ),
        *compared(
            "it is the subspace, not that 100 samples are enough",
            latent,
            "full 100",
            1.05,
            why=f"Over the controls, 100 samples earn {kept:.2f} of what 1000 do.",
        ),
        *of_late(found, row),
        *compared("it is the training of the decoder", latent, "untrained latent 100", 1.05),
        *compared(
            "latent plans can be made anew at each step, as the paper's are",
            "latent 100, each step",
            latent,
            PUBLISHED,
            why=f"Trained and driven with {config.followed} controls a plan; where one is applied, "
            "what the rest of a plan promises is hardly put to the test.",
        ),
        row(
            "ten times fewer samples",
            "time of a plan, full-space CEM with 1000 samples over latent with 100 [1]",
            10.0,
            saved,
            verdict(saved, 10.0, lower=False, clearly=1.2, otherwise="explained"),
            "The samples are ten times fewer; the decoder and the soft choice cost time of their "
            f"own: {milliseconds['full 1000']:.1f} and {milliseconds[latent]:.1f} ms, full-space "
            f"CEM with 100 samples {milliseconds['full 100']:.1f} ms.",
        ),
    ]


def of_late(found, row) -> list[Row]:
    """The same over the last rounds, since each has a model and a decoder of its own."""
    late = {
        name: np.array(
            [
                np.mean([curve[name] for curve in of["curves"] if name in curve][-LATE:])
                for of in found["seeds"]
            ]
        )
        for name in ("latent", "full")
    }
    if late["full"].mean() <= 0:
        return []
    ratio = float(late["latent"].mean() / late["full"].mean())
    told = {name: ", ".join(f"{value:.0f}" for value in of) for name, of in late.items()}
    return [
        row(
            "nor is it one lucky decoder",
            f"mean return of the last {LATE} rounds, latent over 'full 100, shifted' [1]",
            None,
            ratio,
            verdict(ratio, 1.05, lower=False, clearly=1.1),
            f"With noise added to the controls, by seed: latent {told['latent']}; full "
            f"{told['full']}. Latent returns vary much from round to round; see the figure.",
        )
    ]


def draw(found, path):
    figure, axes = _pictures.grid(1, 3, width=17.0, height=5.2, width_ratios=(1.7, 1.0, 1.0))
    _draw_returns(axes[0, 0], found)
    returned = {"full": ("full 100, shifted", "#CC79A7"), "latent": ("latent 100", "#D55E00")}
    promised = {"full 1000": "#0072B2", "full 100": "#56B4E9", "latent": "#D55E00"}
    styles = ("-", "--", ":", "-.")
    for seed, of in enumerate(found["seeds"]):
        style = styles[seed % len(styles)]
        for name, (label, colour) in returned.items():
            values = [curve[name] for curve in of["curves"] if name in curve]
            label = f"{label}, seed {seed}"
            axes[0, 1].plot(values, style, color=colour, label=label)
        for name, colour in promised.items():
            rounds = [at for at, curve in enumerate(of["curves"]) if "promised" in curve]
            values = [of["curves"][at]["promised"][name] for at in rounds]
            label = f"{name}{' 100' * (name == 'latent')}, seed {seed}"
            axes[0, 2].plot(rounds, values, style, color=colour, marker=".", label=label)
    axes[0, 1].set_ylabel("return of the episodes that are learned from [m/s]")
    axes[0, 2].set_ylabel("return of a plan, as the model has it [m/s]")
    axes[0, 1].set_title("in the simulator, with noise added", fontsize=10)
    axes[0, 2].set_title("promised by the model of that round", fontsize=10)
    for ax in axes[0, 1:]:
        ax.set_xlabel("round of data and training [1]")
        ax.legend(fontsize=7)
    _pictures.save(figure, path)


def _draw_returns(ax, found):
    """A dot an episode, a bar a median."""
    for place, (name, colour) in enumerate(PLANNERS.items()):
        for seed, of in enumerate(found["seeds"]):
            returns = of["judged"][name]
            x = place + 0.22 * (seed - 0.5 * (len(found["seeds"]) - 1))
            mark = "os^v"[seed % 4]
            label = f"seed {seed}" if place == 0 else None
            ax.plot([x] * len(returns), returns, mark, color=colour, markersize=4, label=label)
            ax.plot([x - 0.09, x + 0.09], [np.median(returns)] * 2, color="black", linewidth=1.5)
    ax.set_xticks(range(len(PLANNERS)), [name.replace(" ", "\n") for name in PLANNERS], fontsize=8)
    ax.set_ylabel("return of an episode: sum of speed less effort [m/s]")
    ax.set_title("in the simulator; bars are medians", fontsize=10)
    ax.legend(fontsize=7)


EXPERIMENT = _main.Experiment("dcem_mujoco", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
