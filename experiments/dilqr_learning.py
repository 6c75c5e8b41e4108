"""DiLQR, Fig. 3, 4, 5, 11, 12 and Table 1: what the exact gradient learns.

Learners as in `_imitation.py`, with the papers' constant learning rate and raw parameters, so that
these may become negative: with the exact gradient, and with DiffMPC's, which leaves the curvature
of the dynamics out (Gauss-Newton). Each seed has plans and an order of minibatches of its own.
Beside them the exact gradient with logarithms of the parameters, which cannot become negative.

Model loss is the mean squared difference of the learned parameters to the expert's: of the
dynamics as they are, of the cost q = sigmoid(w) and sqrt(q) p after both are scaled such that q
sums to one, since plans do not depend on the scale of a cost. Non-physical is the share of values
<= 0 among all parameters of the dynamics after all steps of all seeds.
"""

import dataclasses
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
# Table 1: share of non-physical parameters [%], exact and Gauss-Newton.
TABLE_1 = {100: (2.76, 16.85), 50: (7.23, 17.82)}


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
    """What is learned."""


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
    """Test loss, model loss at the last epoch and over the epochs, and what was not physical."""
    told = {"test": result["test"], "left_out": float(np.max(result["curve"]["left_out"]))}
    if trial.mode in ("mpc.dx", "mpc.cost"):
        path = model_path(trial, result["path"])
        wanted = path["wanted"]
        told["model"] = np.mean((path["values"] - wanted) ** 2, axis=1)[::4].tolist()
        told["model_last"] = float(np.mean((path["values"][-1] - wanted) ** 2))
        told["epochs"] = result["curve"]["epoch"][::4]
    if trial.mode == "mpc.dx":
        told["nonphysical"] = result["nonphysical"]
        told["nonphysical_last"] = result["nonphysical_last"]
        told["path"] = path["values"][::8].tolist() if trial.seed == 0 else []
        of = lambda values: identifiable(trial.system, values)
        apart = of(path["values"][-1]) / of(wanted) - 1.0
        told["identifiable"] = float(np.max(np.abs(apart)))
    return told


def model_path(trial: Trial, path) -> dict[str, np.ndarray]:
    """The parameters over the epochs, `(epochs, k)`, and the expert's."""
    if trial.mode == "mpc.dx":
        values = np.asarray(path["dx"], float)
        values = np.exp(values) if trial.logarithmic else values
        return {"values": values, "wanted": true_parameters(trial.system)}
    q = 1.0 / (1.0 + np.exp(-np.asarray(path["w"], float)))
    p = np.sqrt(q) * np.asarray(path["p"], float)
    cost = SYSTEMS[trial.system][0].cost()
    weights = np.asarray(cost.weights)
    goal = np.concatenate([np.asarray(cost.goal), np.zeros(weights.size - cost.goal.size)])
    scaled = lambda q, p: np.concatenate([q, p], axis=-1) / q.sum(axis=-1, keepdims=True)
    return {"values": scaled(q, p), "wanted": scaled(weights, -weights * goal)}


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
        for mode in config.modes:
            figure, published = {"dcost": ("Fig. 4", 32.0), "dx": ("Fig. 5", 41.0)}[mode]
            for count in config.trajectories:
                made.append(_model_row(config, system, arms, mode, figure, count, published))
    for count in config.trajectories:
        made += _table_rows(found, count)
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


def _model_row(config, system, arms, mode, figure, count, published):
    exact, other = (arms[f"{mode}, {arm}, {count}"] for arm in ("exact", "Gauss-Newton"))
    lower = 100.0 * (1.0 - np.array(exact["model_last"]) / np.array(other["model_last"]))
    median = float(np.median(lower))
    means = [interval(arm["model_last"]) for arm in (exact, other)]
    tests = [float(np.median(np.array(arm["test"], float))) for arm in (exact, other)]
    return Row(
        "DiLQR",
        figure,
        f"{mode}: model loss is lower with the exact gradient, {system}, train={count}",
        "median over the seeds, below Gauss-Newton's by [%]",
        published,
        median,
        len(lower),
        verdict(median, published, lower=False, otherwise="explained")
        if median > 0
        else "explained",
        f"Model losses {means[0][0]:.3g} +- {means[0][1]:.2g} (exact) and {means[1][0]:.3g} +- "
        f"{means[1][1]:.2g} at epoch {config.epochs} (95 %); by seed "
        f"{', '.join(f'{value:.0f}' for value in sorted(lower))} %. "
        f"Test imitation losses {tests[0]:.2g} and {tests[1]:.2g}."
        + (
            " Pendulum plans depend on g/l and m l^2 alone, so the loss of (g, m, l) says where on "
            "a curve of equal plans a learner stops."
            if system == "pendulum" and mode == "dx"
            else ""
        ),
    )


def _table_rows(found, count):
    share = lambda system, arm, name: (
        100.0 * float(np.mean(found[system][f"dx, {arm}, {count}"][name]))
    )
    made = []
    for at, arm in enumerate(("exact", "Gauss-Newton")):
        by_system = [share(system, arm, "nonphysical") for system in found]
        last = [share(system, arm, "nonphysical_last") for system in found]
        sizes = [len(NAMES[system]) for system in found]
        ours = float(np.average(by_system, weights=sizes))
        why = (
            "By system: "
            + ", ".join(
                f"{name} {value:.2f} %" for name, value in zip(found, by_system, strict=True)
            )
            + "; of the last values "
            + ", ".join(f"{name} {value:.2f} %" for name, value in zip(found, last, strict=True))
            + "."
        )
        published = TABLE_1.get(count, (None, None))[at]
        if arm == "exact":
            bar = {100: 2.8, 50: 7.3}.get(count, 2.8)
            judged = verdict(max(ours, 1e-9), bar)
        else:
            judged = "explained" if published and ours < 0.5 * published else "reached"
            why += " The released gradient differs from both (double counting), see README.md."
        made.append(
            Row(
                "DiLQR",
                "Table 1",
                f"share of non-physical parameters, {arm} gradient, train={count}",
                "values <= 0 of all parameters, steps and seeds, both systems [%]",
                published,
                ours,
                len(next(iter(found.values()))[f"dx, {arm}, {count}"]["nonphysical"]),
                judged,
                why,
            )
        )
    return made


def draw(found, path):
    figure, axes = _pictures.grid(len(found), 4, width=15.0, height=3.6 * len(found))
    for row, (system, arms) in zip(axes, found.items(), strict=True):
        counts = sorted({int(name.rsplit(", ", 1)[1]) for name in arms})
        for ax, mode in zip(row[:2], ("dcost", "dx"), strict=True):
            if f"{mode}, exact, {counts[-1]}" not in arms:
                continue
            for arm in ("exact", "Gauss-Newton"):
                for count in counts:
                    of = arms[f"{mode}, {arm}, {count}"]
                    curve = np.mean(of["model"], axis=0)
                    style = "-" if count == counts[-1] else "--"
                    colour = _pictures.COLOURS[arm]
                    label = f"{arm}, train={count}"
                    ax.plot(of["epochs"][0], curve, style, color=colour, label=label)
            ax.set_xlabel("epoch [1]")
            ax.set_yscale("log")
            ax.set_ylabel(f"model loss of {mode}, mean [1]")
            ax.set_title(system, fontsize=10)
        wanted = true_parameters(system)
        for arm in ("exact", "Gauss-Newton"):
            of = arms[f"dx, {arm}, {counts[-1]}"]
            values = np.array(of["path"][0])
            at = np.linspace(1, of["epochs"][0][-1], len(values))
            for k, dash in zip(range(values.shape[1]), ("-", "--", "-.", ":"), strict=False):
                label = f"{NAMES[system][k]}, {arm}"
                colour = _pictures.COLOURS[arm]
                row[2].plot(at, values[:, k] / wanted[k], dash, color=colour, label=label)
        row[2].axhline(1.0, color="black", linewidth=0.8)
        row[2].set_xlabel("epoch [1]")
        row[2].set_ylabel("parameter / expert's [1], seed 0")
        row[2].legend(fontsize=6)
        names = [name for name in arms if name.endswith(f", {counts[-1]}")]
        for place, name in enumerate(names):
            losses = np.array(arms[name]["test"], float)
            mode, arm, _ = name.rsplit(", ", 2) if name.count(",") == 2 else (name, "", "")
            row[3].plot([place] * len(losses), losses, "o", color="#0072B2", markersize=4)
        row[3].set_yscale("log")
        row[3].set_xticks(
            range(len(names)), [name.rsplit(", ", 1)[0] for name in names], rotation=60, fontsize=7
        )
        row[3].set_ylabel("test imitation loss [control unit$^2$]")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("dilqr_learning", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
