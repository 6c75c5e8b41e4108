"""DiffMPC, Fig. 4 and 6: imitation learning on pendulum and cartpole.

Five learners that know more or less (see `_imitation.py`, where the protocol stands) imitate an
expert's plans from 10, 50 and 100 trajectories. Reported are medians over the seeds of the test
imitation loss at the epoch of the lowest validation loss, and how many trials of mpc.dx recover the
expert's parameters: for the pendulum g/l and m l^2, which are all that its plans depend on.

Ten trajectories are one minibatch, so seeds that only shuffle would repeat the same training: there
each seed has plans of its own. How well ten plans determine a cost depends on which they are.

The learning rate falls along a cosine, where the papers' is constant. `constant_too` runs mpc.dx
with a constant one beside it.
"""

import dataclasses
import sys

import numpy as np

from . import _main, _pictures
from ._imitation import BATCH, MODES, Trial, identifiable, train, true_parameters, work
from ._rows import Row, verdict
from ._sweep import sweep

# Read off the poster (two to three digits): test imitation loss at 10, 50 and 100 trajectories.
PUBLISHED = {
    "pendulum": {
        "nn": (3.88e-1, 7.80e-2, 2.69e-2),
        "sysid": (1.47e-4, 2.12e-5, 2.39e-6),
        "mpc.dx": (5.15, 4.62e-7, 3.42e-8),
        "mpc.cost": (4.29e-3, 1.24e-5, 2.78e-5),
        "mpc.cost.dx": (6.26e-2, 2.13e-4, 1.79e-4),
    },
    "cartpole": {
        "nn": (45.8, 21.5, 9.70),
        "sysid": (1.62e-2, 3.22e-3, 8.02e-4),
        "mpc.dx": (2.23e-2, 8.86e-2, 1.58e-4),
        "mpc.cost": (19.9, 0.322, 9.53e-4),
        "mpc.cost.dx": (21.7, 1.80, 4.34e-3),
    },
}
SIZES_OF_DATA = (10, 50, 100)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings; the defaults are the released code's."""

    seeds: int = 4
    """Trials of each learner."""
    few_seeds: int = 4
    """Trials where all trajectories fit into one minibatch."""
    epochs: int = 10_000
    """Passes over the trajectories."""
    few_epochs: int = 10_000
    """The same where they fit into one minibatch."""
    network_epochs: int = 10_000
    """The same for the network."""
    patience: int = dataclasses.field(default=1000, metadata={"least": 0})
    """It stops after so many epochs without a better validation loss; 0 never."""
    constant_too: bool = True
    """Run mpc.dx with the papers' constant learning rate, too."""
    trajectories: tuple[int, ...] = SIZES_OF_DATA
    """How many of the 100 are learned from."""
    systems: tuple[str, ...] = ("pendulum", "cartpole")
    """What is controlled."""
    modes: tuple[str, ...] = MODES
    """Which learners."""

    def __post_init__(self):
        if not set(self.trajectories) <= set(SIZES_OF_DATA):
            raise ValueError(f"--trajectories has only {', '.join(map(str, SIZES_OF_DATA))}.")


SIZES = {
    "full": Config(),
    "reduced": Config(seeds=2, epochs=2000, network_epochs=500, constant_too=False),
    "quick": Config(
        seeds=1,
        few_seeds=1,
        epochs=4,
        few_epochs=4,
        network_epochs=2,
        constant_too=False,
        trajectories=(10,),
        systems=("pendulum",),
        modes=("nn", "sysid", "mpc.dx"),
    ),
}


def jobs(config: Config) -> dict[str, Trial]:
    """Name -> trial."""
    found = {}
    for system in config.systems:
        # The network takes longest, so it comes last.
        for mode in sorted(config.modes, key=lambda mode: mode == "nn"):
            for count in config.trajectories:
                few = count <= BATCH
                for seed in range(config.few_seeds if few else config.seeds):
                    epochs = config.few_epochs if few else config.epochs
                    trial = Trial(system, mode, count, seed, epochs, data_seed=seed if few else 0)
                    if mode == "nn":
                        trial = dataclasses.replace(
                            trial, epochs=config.network_epochs, patience=config.patience
                        )
                    found[f"{system}-{mode}-{count}-{seed}"] = trial
                    if mode == "mpc.dx" and config.constant_too:
                        trial = dataclasses.replace(trial, constant=True)
                        found[f"{system}-{mode}-constant-{count}-{seed}"] = trial
    return found


def measure(config: Config, context: _main.Context):
    asked = jobs(config)
    results = sweep(
        train, asked, context.folder, workers=context.workers, ray=context.ray, work=work
    )
    found = {}
    for name, result in results.items():
        trial = asked[name]
        label = "mpc.dx, constant rate" if trial.constant else trial.mode
        arm = (
            found.setdefault(trial.system, {})
            .setdefault(label, {})
            .setdefault(str(trial.train), {"test": [], "left_out": [], "recovered": []})
        )
        arm["epochs"] = trial.epochs
        arm["test"].append(result["test"])
        arm["left_out"].append(result["left_out"])
        if "parameters" in result:
            arm["recovered"].append(recovered(trial.system, result["parameters"]))
        if trial.seed == 0 and trial.train == max(config.trajectories):
            arm["curve"] = result["curve"]
    return {"losses": found}


def recovered(system: str, parameters) -> bool:
    """Whether all identifiable parameters are within 1 % of the expert's."""
    found = identifiable(system, parameters)
    wanted = identifiable(system, true_parameters(system))
    return bool(np.all(np.abs(found - wanted) <= 0.01 * np.abs(wanted)))


_OWN = ", each with its own plans"
_RATE = {"nn": "constant learning rate"}
_FALLING = "learning rate falling along a cosine"


def _median(arm) -> float:
    return float(np.median([np.inf if value is None else value for value in arm["test"]]))


def rows(config: Config, found):
    made = []
    for system, published in PUBLISHED.items():
        for mode in MODES:
            of_mode = found["losses"].get(system, {}).get(mode, {})
            for at, count in enumerate(SIZES_OF_DATA):
                if str(count) not in of_mode:
                    continue
                arm, paper = of_mode[str(count)], published[mode][at]
                ours, factor = _median(arm), 3.0 if mode in ("nn", "sysid") else 1.0
                bar = 0.1 * paper if (mode, count) == ("mpc.dx", 10) else factor * paper
                losses = ", ".join("none" if v is None else f"{v:.2g}" for v in arm["test"])
                made.append(
                    Row(
                        "DiffMPC",
                        "Fig. 4",
                        f"{mode} on {system} from {count} trajectories",
                        "median test imitation loss [control unit^2]",
                        paper,
                        ours,
                        len(arm["test"]),
                        verdict(ours, bar, clearly=1.5 * factor),
                        f"Test losses of the seeds{_OWN * (count <= BATCH)}: {losses}; "
                        f"{arm['epochs']} epochs, {_RATE.get(mode, _FALLING)}.",
                    )
                )
        arm = found["losses"].get(system, {}).get("mpc.dx", {}).get("100")
        if arm is not None:
            share = float(np.mean(arm["recovered"]))
            what = "g/l and m l^2" if system == "pendulum" else "all four parameters"
            made.append(
                Row(
                    "DiffMPC",
                    "Fig. 4",
                    f"mpc.dx from 100 trajectories recovers {what} of the expert within 1 %",
                    "share of the trials [1]",
                    None,
                    share,
                    len(arm["recovered"]),
                    verdict(share, 0.75, lower=False, clearly=4 / 3),
                    f"{sum(arm['recovered'])} of {len(arm['recovered'])} trials.",
                )
            )
            # Fig. 6 adds the training losses to Fig. 4; its numbers are not known.
            lowest = min(value for value in arm["curve"]["train"] if value is not None)
            made.append(
                Row(
                    "DiffMPC",
                    "Fig. 6",
                    f"mpc.dx fits the 100 plans it learns from, {system}",
                    "lowest training loss of seed 0, below the published test loss "
                    "[control unit^2]",
                    None,
                    lowest,
                    1,
                    verdict(lowest, published["mpc.dx"][2]),
                    f"Published test loss {published['mpc.dx'][2]:.3g}, ours {_median(arm):.2g}.",
                )
            )
    return made


def draw(found, path):
    figure, axes = _pictures.grid(1, 2, width=11.0, height=4.6)
    for ax, (system, of_system) in zip(axes[0], found["losses"].items(), strict=False):
        for place, mode in enumerate(MODES):
            of_mode = of_system.get(mode, {})
            colour = _pictures.COLOURS[mode]
            for at, count in enumerate(SIZES_OF_DATA):
                if str(count) not in of_mode:
                    continue
                losses = [v for v in of_mode[str(count)]["test"] if v is not None]
                x = at + 0.16 * (place - 2)
                ax.plot([x] * len(losses), losses, "o", color=colour, markersize=4, alpha=0.7)
                ax.plot(x, np.median(losses), "_", color=colour, markersize=13, markeredgewidth=3)
                ax.plot(x, PUBLISHED[system][mode][at], "x", color="black", markersize=6)
        ax.set_yscale("log")
        ax.set_xticks(range(len(SIZES_OF_DATA)), [str(count) for count in SIZES_OF_DATA])
        ax.set_xlabel("trajectories to learn from [1]")
        ax.set_ylabel("test imitation loss [control unit$^2$]")
        ax.set_title(system, fontsize=11)
    handles = [
        axes[0, 0].plot([], [], "o", color=_pictures.COLOURS[mode], label=mode)[0] for mode in MODES
    ]
    handles.append(axes[0, 0].plot([], [], "x", color="black", label="published")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=6)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("diffmpc_imitation", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
