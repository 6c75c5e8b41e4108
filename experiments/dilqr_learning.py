"""DiLQR, Fig. 3, 4, 5, 11, 12 and Table 1: what the exact gradient learns.

Learners as in `_imitation.py`, with the papers' constant learning rate and raw parameters, so that
these may become negative: with the exact gradient, and with DiffMPC's, which leaves the curvature
of the dynamics out (Gauss-Newton). Each seed has plans and an order of minibatches of its own.
Beside them the exact gradient with logarithms of the parameters, which cannot become negative.

Model loss is the mean squared difference of the learned parameters to the expert's: of the
dynamics as they are, of the cost q = sigmoid(w) and sqrt(q) p after both are scaled such that q
sums to one, since plans do not depend on the scale of a cost. But plans cannot tell all parameters
apart, and what they do not show no gradient can learn. So there is a second loss, of what they
show:

    pendulum     g / l and m l^2, relative
    cartpole     all four parameters, relative
    cost         q_cos - q_sin (since cos^2 + sin^2 = 1 their sum is a constant), the other q, and
                 sqrt(q) p, scaled to length one

With a constant learning rate RMSprop ends about as far from the optimum whatever its gradient, and
the loss at the last epoch is chance. So that loss is averaged over the epochs, which says how fast
a learner comes down.
Non-physical is the share of values <= 0 among all parameters of the dynamics after all steps of all
seeds.
"""

import dataclasses
import functools
import sys

import numpy as np

from . import _main, _pictures
from ._imitation import SYSTEMS, Trial, identifiable, train, true_parameters, work
from ._rows import Row, interval, verdict
from ._sweep import sweep

NAMES = {
    "pendulum": ("g [m/s$^2$]", "m [kg]", "l [m]"),
    "cartpole": ("g [m/s$^2$]", "m cart [kg]", "m pole [kg]", "half l [m]"),
}
ARMS = ("exact", "Gauss-Newton")
TABLE_1 = {100: 2.76, 50: 7.23}  # share of non-physical parameters with the exact gradient [%]


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the released code's, which has one seed."""

    seeds: int = 8
    """Repetitions."""
    epochs: int = 1000
    """Passes over the trajectories."""
    network_epochs: int = 1000
    """The same for the network of Fig. 3."""
    network_seeds: int = 2
    """Repetitions of the network."""
    trajectories: tuple[int, ...] = (50, 100)
    """How many plans are learned from."""
    systems: tuple[str, ...] = ("pendulum", "cartpole")
    """What is controlled."""
    modes: tuple[str, ...] = ("dx", "dcost")
    """What is learned; dx always."""

    def __post_init__(self):
        if any(count > 100 for count in self.trajectories):
            raise ValueError("--trajectories is at most 100.")
        if "dx" not in self.modes:
            raise ValueError("--modes needs dx, of which most rows are.")


SIZES = {
    "full": Config(),
    "reduced": Config(seeds=4, epochs=400, network_epochs=200, network_seeds=1),
    "quick": Config(
        seeds=1,
        epochs=2,
        network_epochs=1,
        network_seeds=1,
        trajectories=(50,),
        systems=("pendulum",),
        modes=("dx",),
    ),
}


def jobs(config: Config) -> dict[str, Trial]:
    """Name -> trial; the name says the arm."""
    found = {}
    for system in config.systems:
        for seed in range(config.seeds):
            base = Trial(system, "mpc.dx", 0, seed, config.epochs, data_seed=seed, constant=True)
            for count in config.trajectories:
                of = lambda **changes: dataclasses.replace(base, train=count, **changes)
                for name in config.modes:
                    mode = {"dx": "mpc.dx", "dcost": "mpc.cost"}[name]
                    found[f"{system}/{name}/exact/{count}/{seed}"] = of(mode=mode)
                    found[f"{system}/{name}/Gauss-Newton/{count}/{seed}"] = of(
                        mode=mode, gauss_newton=True
                    )
            most = max(config.trajectories)
            of = lambda **changes: dataclasses.replace(base, train=most, **changes)
            found[f"{system}/dx/exact, logarithms/{most}/{seed}"] = of(logarithmic=True)
            found[f"{system}/sysid/-/{most}/{seed}"] = of(mode="sysid")
            if seed < config.network_seeds:
                found[f"{system}/nn/-/{most}/{seed}"] = of(mode="nn", epochs=config.network_epochs)
    return found


def measure(config: Config, context: _main.Context):
    asked = jobs(config)
    files = {name.replace("/", "-").replace(", ", "-"): trial for name, trial in asked.items()}
    results = sweep(
        train, files, context.folder, workers=context.workers, ray=context.ray, work=work
    )
    found: dict = {}
    for name, file in zip(asked, files, strict=True):
        if file not in results:
            continue
        system, mode, arm, count, _ = name.split("/")
        kept = summary(asked[name], results[file])
        at = found.setdefault(system, {}).setdefault(f"{mode}, {arm}, {count}", {})
        for measure_, value in kept.items():
            at.setdefault(measure_, []).append(value)
    return found


def summary(trial: Trial, result) -> dict:
    """Test loss, both model losses over the epochs, and what was not physical."""
    told = {"test": result["test"], "left_out": float(np.max(result["curve"]["left_out"]))}
    if trial.mode in ("mpc.dx", "mpc.cost"):
        raw, shown = model_losses(trial, result["path"])
        told |= {"model": raw[::4].tolist(), "shown": shown[::4].tolist()}
        told |= {"model_last": float(raw[-1]), "shown_mean": float(shown.mean())}
        epochs, below = np.array(result["curve"]["epoch"]), shown < 1e-3
        told["arrives"] = int(epochs[np.argmax(below)]) if below.any() else None
        told["epochs"] = result["curve"]["epoch"][::4]
    if trial.mode == "mpc.dx":
        told["nonphysical"] = result["nonphysical"]
        told["nonphysical_last"] = result["nonphysical_last"]
        values = _parameters(trial, result["path"])
        told["path"] = values[::8].tolist() if trial.seed == 0 else []
        apart = _shown(trial, values[-1]) / _shown(trial, true_parameters(trial.system)) - 1.0
        told["identifiable"] = float(np.max(np.abs(apart)))
    return told


def _parameters(trial: Trial, path) -> np.ndarray:
    values = np.asarray(path["dx"], float)
    return np.exp(values) if trial.logarithmic else values


def _shown(trial: Trial, parameters) -> np.ndarray:
    of = functools.partial(identifiable, trial.system)
    return np.apply_along_axis(of, -1, parameters)


def model_losses(trial: Trial, path) -> tuple[np.ndarray, np.ndarray]:
    """Over the epochs: of the parameters as they are, and of what plans show of them."""
    if trial.mode == "mpc.dx":
        values, wanted = _parameters(trial, path), true_parameters(trial.system)
        relative = _shown(trial, values) / _shown(trial, wanted) - 1.0
        return np.mean((values - wanted) ** 2, axis=1), np.mean(relative**2, axis=1)
    q = 1.0 / (1.0 + np.exp(-np.asarray(path["w"], float)))
    p = np.sqrt(q) * np.asarray(path["p"], float)
    cost = SYSTEMS[trial.system][0].cost()
    weights = np.asarray(cost.weights)
    goal = np.concatenate([np.asarray(cost.goal), np.zeros(weights.size - cost.goal.size)])
    wanted_p = -np.sqrt(weights) * goal
    scaled = lambda q, p: np.concatenate([q, p], axis=-1) / q.sum(axis=-1, keepdims=True)
    cos = {"pendulum": 0, "cartpole": 2}[trial.system]

    def shown(q, p):
        apart = q[..., cos : cos + 1] - q[..., cos + 1 : cos + 2]
        others = np.delete(q, [cos, cos + 1], axis=-1)
        parts = np.concatenate([apart, others, p], axis=-1)
        return parts / np.linalg.norm(parts, axis=-1, keepdims=True)

    return (
        np.mean((scaled(q, p) - scaled(weights, wanted_p)) ** 2, axis=1),
        np.mean((shown(q, p) - shown(weights, wanted_p)) ** 2, axis=1),
    )


# --- What is reported ----------------------------------------------------------------------------


def rows(config: Config, found):
    made = []
    most = max(config.trajectories)
    for system, arms in found.items():
        exact, network = arms[f"dx, exact, {most}"], arms[f"nn, -, {most}"]
        gain = float(np.median(network["test"]) / np.median(np.array(exact["test"], float)))
        losses = ", ".join(
            f"{name} {np.median(np.array(arm['test'], float)):.2g}" for name, arm in arms.items()
        )
        made.append(
            Row(
                "DiLQR",
                "Fig. 3",
                f"learned dynamics imitate better than a network, {system}, train={most}",
                "median test imitation loss, nn over mpc.dx",
                1e6,
                gain,
                len(exact["test"]),
                verdict(gain, 1e5, lower=False, clearly=10.0),
                f"Medians: {losses}. Constant learning rate, {config.epochs} epochs.",
            )
        )
        # Fig. 4 and 5 of the paper: the cost (which does not say from how many plans), and the
        # dynamics from the fewer plans.
        if "dcost" in config.modes:
            made += _model_rows(config, system, arms, "dcost", "Fig. 4", most, 32.0)
        if "dx" in config.modes:
            fewest = min(config.trajectories)
            made += _model_rows(config, system, arms, "dx", "Fig. 5", fewest, 41.0)
    for count in config.trajectories:
        made.append(_table_row(found, count))
    for system, arms in found.items():
        exact, other = (arms[f"dx, {arm}, {most}"] for arm in ("exact", "Gauss-Newton"))
        apart = [float(np.median(arm["identifiable"])) for arm in (exact, other)]
        made.append(
            Row(
                "DiLQR",
                "Fig. 12",
                f"each identifiable parameter of the dynamics converges, {system}, train={most}",
                "median over the seeds of the largest relative error at the last epoch [1]",
                None,
                apart[0],
                len(exact["identifiable"]),
                verdict(apart[0], 0.05),
                f"With the Gauss-Newton gradient {apart[1]:.2g}. A constant learning rate of 0.01 "
                "keeps RMSprop that far away.",
            )
        )
    return made


def _model_rows(config, system, arms, mode, figure, count, published):
    """As the paper measures, and of what plans show."""
    pair = [arms[f"{mode}, {arm}, {count}"] for arm in ARMS]
    tests = [float(np.median(np.array(arm["test"], float))) for arm in pair]
    never = config.epochs
    arrives = [np.median([never if at is None else at for at in arm["arrives"]]) for arm in pair]
    raw = "loss of the parameters at the last epoch"
    shown = "loss of what plans show of the parameters, mean over the epochs"
    names = {"model_last": raw, "shown_mean": shown}
    if (mode, system) == ("dx", "cartpole"):  # plans show all of its parameters
        del names["model_last"]
    made = []
    for name, what in names.items():
        exact, other = (np.array(arm[name]) for arm in pair)
        lower = 100.0 * (1.0 - exact / other)
        median = float(np.median(lower))
        means = [interval(values) for values in (exact, other)]
        why = (
            f"Losses {means[0][0]:.3g} +- {means[0][1]:.2g} (exact) and {means[1][0]:.3g} +- "
            f"{means[1][1]:.2g}, {config.epochs} epochs (95 %); by seed "
            f"{', '.join(f'{value:.0f}' for value in sorted(lower))} %. "
        )
        if name == "model_last":
            why += _WHY_RAW[mode]
        else:
            why += (
                f"Below 1e-3 after {arrives[0]:.0f} and {arrives[1]:.0f} epochs (median; "
                f"{never} is never). Test imitation losses {tests[0]:.2g} and {tests[1]:.2g}."
            )
        made.append(
            Row(
                "DiLQR",
                figure,
                f"{mode}: model loss is lower with the exact gradient, {system}, train={count}",
                f"{what}: median over the seeds, below Gauss-Newton's by [%]",
                published,
                median,
                len(lower),
                verdict(max(median, 1e-9), published, lower=False, otherwise="explained"),
                why,
            )
        )
    return made


_WHY_RAW = {
    "dcost": "The sum of the weights of cos and sin is a constant in the cost, and drifts.",
    "dx": "Plans depend on g/l and m l^2 alone, so this loss of (g, m, l) says where on a curve of "
    "equal plans a learner stops.",
}


def _table_row(found, count):
    share = lambda system, arm, name: (
        100.0 * float(np.mean(found[system][f"dx, {arm}, {count}"][name]))
    )
    sizes = [len(NAMES[system]) for system in found]
    all_of = lambda arm, name: float(
        np.average([share(system, arm, name) for system in found], weights=sizes)
    )
    listed = lambda arm: ", ".join(
        f"{system} {share(system, arm, 'nonphysical'):.2f} %" for system in found
    )
    last = {arm: all_of(arm, "nonphysical_last") for arm in ARMS}
    bar, newton = {100: (2.8, 16.85), 50: (7.3, 17.82)}.get(count, (2.8, None))
    ours = all_of("exact", "nonphysical")
    return Row(
        "DiLQR",
        "Table 1",
        f"share of non-physical parameters with the exact gradient, train={count}",
        "values <= 0 of all parameters, steps and seeds, both systems [%]",
        TABLE_1.get(count),
        ours,
        len(next(iter(found.values()))[f"dx, exact, {count}"]["nonphysical"]),
        verdict(max(ours, 1e-9), bar),
        f"By system: {listed('exact')}; of the last values {last['exact']:.2f} %. Gauss-Newton "
        f"{all_of('Gauss-Newton', 'nonphysical'):.2f} % ({listed('Gauss-Newton')}; last values "
        f"{last['Gauss-Newton']:.2f} %), published {newton}: the released gradient differs "
        "from both (double counting), see README.md.",
    )


def draw(found, path):
    """For each system: losses of the parameters above, of what plans show of them below."""
    figure, axes = _pictures.grid(2 * len(found), 3, width=13.0, height=6.4 * len(found))
    for at, (system, arms) in enumerate(found.items()):
        rows = axes[2 * at : 2 * at + 2]
        counts = sorted({int(name.rsplit(", ", 1)[1]) for name in arms})
        for row, loss in zip(rows, ("model", "shown"), strict=True):
            for ax, mode in zip(row, ("dcost", "dx"), strict=False):
                if f"{mode}, exact, {counts[-1]}" in arms:
                    _draw_losses(ax, arms, mode, loss, counts)
                    ax.set_title(system, fontsize=10)
        _draw_parameters(rows[0, 2], system, arms, counts[-1])
        _draw_tests(rows[1, 2], arms, counts[-1])
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    _pictures.save(figure, path)


def _draw_losses(ax, arms, mode, loss, counts):
    for arm in ARMS:
        for count in counts:
            of = arms[f"{mode}, {arm}, {count}"]
            curve = np.exp(np.mean(np.log(of[loss]), axis=0))
            style, colour = "-" if count == counts[-1] else "--", _pictures.COLOURS[arm]
            ax.plot(of["epochs"][0], curve, style, color=colour, label=f"{arm}, train={count}")
    what = {"model": "the parameters", "shown": "what plans show"}[loss]
    ax.set_xlabel("epoch [1]")
    ax.set_yscale("log")
    ax.set_ylabel(f"{mode}: loss of {what},\ngeometric mean [1]")


def _draw_parameters(ax, system, arms, count):
    wanted = true_parameters(system)
    for arm in ARMS:
        of = arms[f"dx, {arm}, {count}"]
        values = np.array(of["path"][0])
        at = np.linspace(1, of["epochs"][0][-1], len(values))
        for k, dash in zip(range(values.shape[1]), ("-", "--", "-.", ":"), strict=False):
            label, colour = f"{NAMES[system][k]}, {arm}", _pictures.COLOURS[arm]
            ax.plot(at, values[:, k] / wanted[k], dash, color=colour, label=label)
    ax.axhline(1.0, color="black", linewidth=0.8)
    ax.set_xlabel("epoch [1]")
    ax.set_ylabel("parameter / expert's [1], seed 0")
    ax.legend(fontsize=6)


def _draw_tests(ax, arms, count):
    names = [name for name in arms if name.endswith(f", {count}")]
    for place, name in enumerate(names):
        losses = np.array(arms[name]["test"], float)
        ax.plot([place] * len(losses), losses, "o", color="#0072B2", markersize=4)
    ax.set_yscale("log")
    said = [name.rsplit(", ", 1)[0].removesuffix(", -") for name in names]
    ax.set_xticks(range(len(names)), said, rotation=40, fontsize=7, ha="right")
    ax.set_ylabel("test imitation loss [control unit$^2$]")


EXPERIMENT = _main.Experiment("dilqr_learning", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
