"""DiffMPC, Fig. 2: the fixed point against unrolling, 1 to 128 iterations; time and memory.

The paper does not state its problem. Here: the pendulum and the cartpole of its other experiments,
T = 20 controls without bounds, a batch of 128. Both ways run the same iterations of iLQR.
"""

import dataclasses
import sys

import equinox as eqx
import jax

import diffcontrol as dc
from diffcontrol.systems import cartpole, pendulum

from . import _main, _pictures
from ._rows import Row, verdict
from ._sweep import say
from ._timing import passes, when_cold

SYSTEMS = {"pendulum": pendulum, "cartpole": cartpole}
# Seconds of the author's raw data, means of 9 trials: forward and backward pass.
PUBLISHED = {
    "fixed point": {
        1: (0.0184, 0.0248),
        2: (0.0509, 0.0247),
        4: (0.111, 0.0171),
        8: (0.2076, 0.0156),
        16: (0.402, 0.0154),
        32: (0.703, 0.0153),
        64: (1.339, 0.0153),
        128: (2.867, 0.0154),
    },
    "unrolled": {
        1: (0.0293, 0.0533),
        2: (0.0833, 0.0858),
        4: (0.1885, 0.1538),
        8: (0.3329, 0.3088),
        16: (0.666, 0.651),
        32: (1.334, 1.329),
        64: (2.473, 2.832),
        128: (5.426, 5.934),
    },
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    horizon: int = 20
    """Number T of controls."""
    batch: int = 128
    """Initial states solved together."""
    iterations: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Of iLQR."""
    systems: tuple[str, ...] = ("pendulum", "cartpole")
    """Which are timed."""


SIZES = {
    "full": Config(),
    "reduced": Config(iterations=(1, 8, 32, 128)),
    "quick": Config(horizon=5, batch=4, iterations=(1, 4), systems=("pendulum",)),
}


def measure(config: Config, context: _main.Context):
    found = {}
    for name in config.systems:
        module = SYSTEMS[name]
        problem = module.problem(config.horizon)
        problem = eqx.tree_at(lambda p: p.control_bounds, problem, dc.Bounds())
        x0s = jax.vmap(module.start)(jax.random.split(jax.random.key(0), config.batch))
        say(name)
        found[name] = passes(problem, x0s, config.iterations)
    return found


def rows(config: Config, found):
    made, most = [], max(config.iterations)
    for system, of_system in found.items():
        last = of_system[str(most)]
        seconds, held = last["seconds"], last["bytes"]
        row = lambda claim, metric, published, ours, bar, why="": Row(
            "DiffMPC",
            "Fig. 2",
            f"{claim}, {system}",
            f"{metric}, at {most} iterations",
            published,
            ours,
            1,
            verdict(ours, bar, lower=False),
            why,
        )
        times = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in seconds.items())
        made += [
            row(
                "the backward pass of the fixed point does not depend on the iterations",
                "time of the unrolled backward pass over the fixed point's",
                385,
                seconds["unrolled backward"] / seconds["fixed point backward"],
                385 * most / 128,
                f"T = {config.horizon}, batch {config.batch}: {times}; gradients differ by "
                f"{last['apart']:.1g}.{when_cold(last)}",
            ),
            row(
                "the forward pass is faster, since nothing is kept",
                "time of the unrolled forward pass over the fixed point's",
                5.426 / 2.867,
                seconds["unrolled forward"] / seconds["fixed point forward"],
                1.0,
                times,
            ),
            row(
                "memory does not depend on the iterations",
                "bytes kept for the backward pass, unrolled over fixed point",
                None,
                held["unrolled"] / held["fixed point"],
                most,
                f"{held['unrolled'] / 1e6:.1f} MB against {held['fixed point'] / 1e6:.2f} MB.",
            ),
        ]
    return made


def draw(found, path):
    figure, axes = _pictures.grid(1, 3, width=13.0, height=4.2)
    styles = {"pendulum": "-", "cartpole": "--"}
    colours = {"fixed point": _pictures.COLOURS["exact"], "unrolled": _pictures.COLOURS["unrolled"]}
    for ax, which in zip(axes[0], ("forward", "backward", "bytes"), strict=True):
        for way, colour in colours.items():
            for system, of_system in found.items():
                counts = [int(count) for count in of_system]
                if which == "bytes":
                    values = [each["bytes"][way] / 1e6 for each in of_system.values()]
                else:
                    values = [each["seconds"][f"{way} {which}"] for each in of_system.values()]
                label = f"{way}, {system}"
                ax.plot(counts, values, styles[system], color=colour, marker="o", label=label)
            if which != "bytes":
                paper = [times[which == "backward"] for times in PUBLISHED[way].values()]
                ax.plot(
                    list(PUBLISHED[way]),
                    paper,
                    ":",
                    color=colour,
                    marker="x",
                    label=f"{way}, published (own problem and machine)",
                )
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xlabel("iterations of iLQR [1]")
        ax.set_ylabel(
            f"{which} pass [s]" if which != "bytes" else "kept for the backward pass [MB]"
        )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("diffmpc_runtime", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
