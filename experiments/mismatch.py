r"""Who controls better with a model that cannot be right? `make demo-mismatch`.

Two plants do what the learned model lacks: the papers' complex pendulum (DiffMPC, Fig. 5) and a
cartpole in MuJoCo whose joints have friction. From the same demonstrations of an expert that knows
its plant, the parameters of the simple model are chosen in three ways:

    system identification   the next state is to be predicted
    imitation               the first control of the plan is to be the expert's
    task tuning             the closed loop on the plant is to be cheap

Each starts where the one before it makes sense to start: system identification from the papers'
wrong parameters, the other two from what it found. Nothing but the parameters of the dynamics is
learned, the same ones by all three; horizon, cost and bounds are the expert's. Task tuning drives
the plant in training, which the others do not: its data are further closed loops, from starts that
are neither those of the demonstrations nor those held out. Through the pendulum its gradient is
exact; MuJoCo has none, so there it is that of `RecordedPlant`, with the model's derivatives.

For each of 8 seeds (of the start, the division of the demonstrations, the training starts), on runs
and starts held out: the closed-loop cost on the true plant, the imitation loss and the prediction
error. Every result is a file; a command that is interrupted and run again does what is missing.
"""

import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffcontrol as dc
from diffcontrol import systems
from diffcontrol._cli.learner import choose_parameters, values, with_starts
from diffcontrol._cli.plants import plant_named
from diffcontrol._cli.run_folder import write_json
from diffcontrol._cli.task import DifferentiableTask, RecordedTask, Task
from diffcontrol.learning import (
    Demonstrations,
    ImitationLoss,
    SystemIdentificationLoss,
    TotalCost,
    evaluate,
    train,
    windows,
)

from . import _main
from ._rows import Row, interval, verdict
from ._sweep import say

ARMS = ("system identification", "imitation", "task tuning")
SOLVER = dc.DDP(max_iterations=50)
CLIP = 1.0


@dataclasses.dataclass(frozen=True)
class Amount:
    """How much is done.

    Attributes:
        seeds: repetitions.
        runs: demonstrations used, of those there are.
        windows: imitation windows for training, and at most as many for validation and test.
        epochs: passes over them.
        starts: of the closed loops for task tuning, and half as many for validation.
        task_steps: steps of its optimiser.
        held_out: closed loops by which controllers are compared.
        cases: how many of the two plants.
    """

    seeds: int = 8
    runs: int = 50
    windows: int = 1024
    epochs: int = 6
    starts: int = 32
    task_steps: int = 40
    held_out: int = 64
    cases: int = 2

    def __post_init__(self):
        if self.cases > 2:
            raise ValueError("--cases is at most 2.")


SIZES = {
    "full": Amount(),
    "reduced": Amount(seeds=3, cases=1),
    "quick": Amount(
        seeds=2, runs=10, windows=64, epochs=1, starts=4, task_steps=2, held_out=4, cases=1
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One plant, and the model that cannot represent it.

    Attributes:
        name: of its folder.
        title: in the picture.
        steps: length of a closed loop.
        time_step: [s].
        demonstrations: number of runs -> recorded runs.
        first_model: random generator -> the problem before anything is learned.
        task: (problem, starts for training, for validation, for testing, seed) -> what task tuning
            needs and closed loops from the starts for testing.
        batch_size: closed loops a step of task tuning.
    """

    name: str
    title: str
    steps: int
    time_step: float
    demonstrations: Callable[[int], Demonstrations]
    first_model: Callable[[np.random.Generator], dc.ControlProblem]
    task: Callable[..., Task]
    batch_size: int


# --- The complex pendulum ------------------------------------------------------------------------


def swing_start(key):
    """The lower half, within pi/2 of hanging, angular speed within 1 rad/s: a swing-up.

    The papers start in the upper half. From there every model with g / l between 7 and 12 [1/s^2]
    and 1 / (m l^2) between 0.5 and 1.2 [1/(kg m^2)] costs the same within 1 %: what decides is the
    little torque, not the model.
    """
    limits = jnp.array([jnp.pi / 2, 1.0])
    angle, speed = jax.random.uniform(key, (2,), minval=-limits, maxval=limits)
    return jnp.stack([-jnp.cos(angle), -jnp.sin(angle), speed])


def pendulum_controller(problem: dc.ControlProblem) -> dc.MPC:
    """The expert's controller for any model."""
    return dc.MPC(problem, SOLVER)


def pendulum_demonstrations(runs: int) -> Demonstrations:
    """The expert knows damping and wind."""
    plant = systems.ComplexPendulum()
    expert = pendulum_controller(systems.pendulum.problem(dynamics=plant))
    starts = jax.vmap(swing_start)(jax.random.split(jax.random.key(0), runs))
    ran = jax.jit(jax.vmap(lambda x0: dc.simulate(expert, plant, x0, 100)))(starts)
    return Demonstrations(np.asarray(ran.states), np.asarray(ran.controls), 0.05)


def pendulum_first(random: np.random.Generator) -> dc.ControlProblem:
    """DiffMPC, Fig. 5, published code."""
    g, m, l = np.array([5.0, 1.0, 1.0]) + np.array([3.0, 1.0, 1.0]) * (random.random(3) - 0.5)
    return systems.pendulum.problem(dynamics=systems.Pendulum(g, m, l))


def pendulum_task(problem, numbers: Sequence[int], seed: int) -> Task:
    """Closed loops on the true pendulum, differentiated exactly."""
    return DifferentiableTask(
        systems.ComplexPendulum(),
        swing_start,
        TotalCost(systems.pendulum.cost()),
        pendulum_controller,
        100,
        numbers,
        seed,
    )


# --- The cartpole in MuJoCo ----------------------------------------------------------------------

CARTPOLE = "gymnasium:diffcontrol.environments:MuJoCoCartpole-v0"


def cartpole_controller(problem: dc.ControlProblem) -> dc.MPC:
    """The expert's controller for any model; the first plan starts as the expert's does."""
    push = jnp.where(jnp.arange(problem.horizon)[:, None] < 8, -15.0, 15.0)
    return dc.MPC(problem, SOLVER, guess=push)


def cartpole_demonstrations(runs: int) -> Demonstrations:
    """The file that comes with the package."""
    path = Path(dc.__file__).parent / "data" / "cartpole_mujoco.npz"
    recorded = Demonstrations.load(path)
    return recorded.take(np.arange(min(runs, recorded.runs)))


def cartpole_first(random: np.random.Generator) -> dc.ControlProblem:
    """The papers' learner (9.8, 3, 0.1, 1), each parameter within 15 % of it."""
    parameters = np.array([9.8, 3.0, 0.1, 1.0]) * (1.0 + 0.3 * (random.random(4) - 0.5))
    return systems.cartpole.problem(dynamics=systems.Cartpole(*parameters))


def cartpole_task(problem, numbers: Sequence[int], seed: int) -> Task:
    """Closed loops in MuJoCo, with the model's derivatives along what it did."""
    firsts = 10_000 * (seed + 1) + np.array([0, 1000, 2000])
    seeds = [range(a, a + number) for a, number in zip(firsts.tolist(), numbers, strict=True)]
    measure = TotalCost(systems.cartpole.cost())
    return RecordedTask(
        plant_named(CARTPOLE), problem, measure, cartpole_controller, 80, [*map(list, seeds)]
    )


CASES = (
    Case(
        "pendulum",
        "complex pendulum",
        100,
        0.05,
        pendulum_demonstrations,
        pendulum_first,
        pendulum_task,
        batch_size=8,
    ),
    Case(
        "cartpole",
        "MuJoCo cartpole with friction",
        80,
        0.05,
        cartpole_demonstrations,
        cartpole_first,
        cartpole_task,
        batch_size=32,
    ),
)


# --- Learning and judging ------------------------------------------------------------------------


def learn(
    arm: str, case: Case, model: dc.ControlProblem, runs: Demonstrations, seed: int, amount: Amount
) -> dc.ControlProblem:
    """The model that an arm chooses, starting from `model`."""
    training, validation, _ = runs.split(seed=seed)
    cut = lambda part, most: windows(part, model.horizon, most=most, seed=seed)
    fit = lambda loss, samples, judged, epochs, rate, size, number: _train(
        loss, model, samples, judged, epochs, rate, size, number, seed
    )
    if arm == "system identification":
        # All recorded steps: cheap, and nothing better can be said of this arm.
        samples, judged = cut(training, None), cut(validation, None)
        loss = SystemIdentificationLoss()
        return fit(loss, samples, judged, 60, 0.05, 64, samples.time.size)
    if arm == "imitation":
        samples, judged = cut(training, amount.windows), cut(validation, amount.windows)
        loss = ImitationLoss(SOLVER)
        return fit(loss, samples, judged, amount.epochs, 0.03, 64, samples.time.size)
    numbers = (amount.starts, amount.starts // 2, 1)
    with contextlib.closing(case.task(model, numbers, seed)) as task:
        size = min(case.batch_size, task.size)
        epochs = max(1, amount.task_steps * size // task.size)
        return fit(task.loss, task.training, task.validation, epochs, 0.1, size, task.size)


@functools.cache  # a step is compiled once for one optimiser
def _optimiser(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(rate, steps), b2=0.95)


def _train(loss, model, samples, judged, epochs, rate, batch_size, number, seed):
    coordinates, parametrisation, _ = choose_parameters(model, "dynamics", raw=False)
    optimiser = _optimiser(rate, epochs * -(-number // batch_size))
    return train(
        loss,
        parametrisation,
        coordinates,
        samples,
        judged,
        optimiser=optimiser,
        epochs=epochs,
        batch_size=batch_size,
        key=jax.random.key(seed),
        # Of closed loops near a change of mind (left or right, now or later) gradients explode.
        clip=CLIP,
        restart_every=1,
    ).model


def judge(
    case: Case, model: dc.ControlProblem, runs: Demonstrations, seed: int, amount: Amount
) -> dict[str, Any]:
    """What a model does on runs and starts that are held out."""
    _, _, test = runs.split(seed=seed)
    cut = lambda most: windows(test, model.horizon, most=most, seed=seed)
    imitation = evaluate(ImitationLoss(SOLVER), model, cut(amount.windows))
    prediction = evaluate(SystemIdentificationLoss(), model, cut(None))
    # The same starts for every seed and arm.
    with contextlib.closing(case.task(model, (1, 1, amount.held_out), 99)) as task:
        driven = task.drive(model)
    return {
        "parameters": values(model, "dynamics"),
        "closed_loop_cost": float(driven.totals.mean()),
        "closed_loop_costs": driven.totals.tolist(),
        "cost_of_step": driven.costs.mean(axis=0).tolist(),
        "unsolved": float(driven.unsolved.mean()),
        "imitation_loss": imitation.loss,
        "imitation_left_out": imitation.left_out,
        "prediction_error": prediction.loss,
    }


# --- All of it, resumable ------------------------------------------------------------------------


def experiment(out: Path, amount: Amount, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Do what is missing in the folder `out`, and summarise what is there: the results of each
    plant and arm, one a seed.

    Raises:
        ValueError: if the folder holds an experiment of another amount.
    """
    _claim(out, amount)
    shares = dict(zip(ARMS, (1.0, 4.0, 8.0), strict=True))  # of the time, about
    cases = CASES[: amount.cases]
    units = [(case, seed, arm) for case in cases for seed in range(amount.seeds) for arm in ARMS]
    missing = [unit for unit in units if not _file(out, *unit).exists()]
    total, done, started = sum(shares[arm] for *_, arm in missing), 0.0, time.monotonic()
    demonstrations = {case.name: case.demonstrations(amount.runs) for case, *_ in missing}
    for case, seed, arm in missing:
        runs = demonstrations[case.name]
        if arm == ARMS[0]:
            model = case.first_model(np.random.default_rng(seed))
        else:
            found = _read(_file(out, case, seed, ARMS[0]))["parameters"]
            model = with_starts(case.first_model(np.random.default_rng(seed)), "dynamics", found)
        learned = learn(arm, case, model, runs, seed, amount)
        result = judge(case, learned, runs, seed, amount)
        _file(out, case, seed, arm).parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(out, case, seed, arm), result)
        done += shares[arm]
        left = (time.monotonic() - started) * (total - done) / done
        say(
            f"{case.title}, seed {seed}, {arm}: closed-loop cost {result['closed_loop_cost']:.1f}, "
            f"imitation {result['imitation_loss']:.3g}, prediction "
            f"{result['prediction_error']:.3g}; {left / 60:.1f} min left"
        )
    results = {
        case.name: {
            arm: [_read(_file(out, case, seed, arm)) for seed in range(amount.seeds)]
            for arm in ARMS
        }
        for case in cases
    }
    summary = {name: summarise(of) for name, of in results.items()}
    write_json(out / "mismatch.json", summary)
    print(table(summary))
    return results


def _claim(out: Path, amount: Amount) -> None:
    """Make the folder, or see that it belongs to the same experiment."""
    asked, path = dataclasses.asdict(amount), out / "amount.json"
    if path.exists():
        if (before := _read(path)) != asked:
            raise ValueError(
                f"{out} holds an experiment with {before}; give another --out, or remove it."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)


def _file(out: Path, case: Case, seed: int, arm: str) -> Path:
    return out / case.name / f"seed-{seed}-{arm.replace(' ', '-')}.json"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


# --- What comes out ------------------------------------------------------------------------------

MEASURES = ("closed_loop_cost", "imitation_loss", "prediction_error")


def summarise(of: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means and intervals of one plant, and the comparisons, seed by seed."""
    get = lambda arm, measure: np.array([result[measure] for result in of[arm]], dtype=float)
    identified, imitated, tuned = ARMS
    ratio = lambda a, b, measure: get(a, measure) / get(b, measure)
    compared = {
        "task tuning lowers the closed-loop cost by [%]": 100.0
        * (1.0 - ratio(tuned, identified, "closed_loop_cost")),
        "imitation imitates better by a factor": ratio(identified, imitated, "imitation_loss"),
        "imitation predicts worse by a factor": ratio(imitated, identified, "prediction_error"),
    }
    return {
        "means": {
            arm: {measure: interval(get(arm, measure)) for measure in (*MEASURES, "unsolved")}
            for arm in ARMS
        },
        "comparisons": {name: interval(each) for name, each in compared.items()},
    }


def table(summary: dict[str, Any]) -> str:
    """The summary in words and numbers."""
    titles = {case.name: case.title for case in CASES}
    lines = []
    for name, of in summary.items():
        lines += [f"{titles[name]} (mean and 95 % interval over the seeds)"]
        lines += [
            f"  {'':<22}{'closed-loop cost':>20}{'imitation loss':>22}{'prediction error':>24}"
        ]
        for arm, means in of["means"].items():
            cells = [f"{mean:.4g} +- {half:.2g}" for mean, half in (means[m] for m in MEASURES)]
            lines += [f"  {arm:<22}{cells[0]:>20}{cells[1]:>22}{cells[2]:>24}"]
        for what, (mean, half) in of["comparisons"].items():
            lines += [f"  {what}: {mean:.3g} +- {half:.2g}"]
    return "\n".join(lines)


# Okabe and Ito; each arm keeps its colour.
_COLOURS = dict(zip(ARMS, ("#7F7F7F", "#0072B2", "#D55E00"), strict=True))


def draw(results: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """Who controls better, and when; who imitates better; who predicts better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 3.4 * len(results) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    cases = [case for case in CASES if case.name in results]
    grid = figure.subplots(len(cases), 4, squeeze=False, width_ratios=(1, 1.5, 1, 1))
    labels = {
        "closed_loop_cost": "closed-loop cost [1]",
        "imitation_loss": "imitation loss [control unit$^2$]",
        "prediction_error": "prediction error [state unit$^2$]",
    }
    for row, case in zip(grid, cases, strict=True):
        of = results[case.name]
        for axes, measure in zip((row[0], row[2], row[3]), MEASURES, strict=True):
            for at, arm in enumerate(ARMS):
                each = [result[measure] for result in of[arm]]
                mean, half = interval(each)
                axes.bar(at, mean, 0.7, color=_COLOURS[arm], alpha=0.55)
                if np.isfinite(half):
                    axes.errorbar(at, mean, half, color="black", capsize=4, linewidth=1.2)
                spread = at + np.linspace(-0.22, 0.22, len(each))
                axes.plot(spread, each, "o", color=_COLOURS[arm], markersize=4)
            axes.set_ylabel(labels[measure])
            axes.set_xticks(range(len(ARMS)), [arm.replace(" ", "\n") for arm in ARMS], fontsize=8)
            axes.set_ylim(bottom=0.0)
        for arm in ARMS:
            costs = np.mean([result["cost_of_step"] for result in of[arm]], axis=0)
            times = case.time_step * np.arange(len(costs))
            row[1].plot(times, costs, color=_COLOURS[arm], linewidth=1.8, label=arm)
        row[1].set_xlabel("time [s]")
        row[1].set_ylabel("mean cost of a step [1]")
        row[1].set_ylim(bottom=0.0)
        row[0].set_title(case.title, loc="left", fontsize=11)
    handles, names = grid[0, 1].get_legend_handles_labels()
    title = "Bars: means over the seeds (dots) with 95 % intervals; held-out starts and runs"
    figure.legend(handles, names, loc="outside upper center", ncols=3, title=title)
    figure.savefig(path, dpi=110)


def measure(amount: Amount, context: _main.Context) -> dict[str, Any]:
    """What a full run commits: no parameters and single closed loops."""
    results = experiment(context.folder, amount, say)
    dropped = ("parameters", "closed_loop_costs")
    keep = lambda result: {k: v for k, v in result.items() if k not in dropped}
    return {
        name: {arm: [keep(result) for result in each] for arm, each in of.items()}
        for name, of in results.items()
    }


def rows(amount: Amount, found: dict[str, Any]) -> list[Row]:
    """Imitation against system identification; task tuning, which the papers do not have."""
    made = []
    for name, of in found.items():
        compared = summarise(of)["comparisons"]
        lowered, better, worse = compared.values()
        row = lambda figure, claim, metric, published, value, bar, of=of: Row(
            "DiffMPC",
            figure,
            f"{claim}, {name} in closed loop",
            metric,
            published,
            value[0],
            amount.seeds,
            verdict(value[0], bar, lower=False),
            f"95 % interval {value[0]:.3g} +- {value[1]:.2g}.",
        )
        made += [
            row(
                "Fig. 5",
                "imitation imitates better than system identification",
                "mean ratio of imitation losses, sysid over imitation",
                0.18 / 0.13,
                better,
                1.4,
            ),
            row(
                "Fig. 5",
                "and predicts worse",
                "mean ratio of prediction errors, imitation over sysid",
                0.0027 / 0.0019,
                worse,
                1.0,
            ),
            row(
                "Fig. 5",
                "tuning for the task controls better than system identification",
                "mean reduction of the closed-loop cost [%]",
                None,
                lowered,
                20.0,
            ),
        ]
    return made


EXPERIMENT = _main.Experiment("mismatch", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
