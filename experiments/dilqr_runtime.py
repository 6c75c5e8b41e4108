"""DiLQR, Fig. 2: time of the gradient against unrolled automatic differentiation.

Pendulum without bounds, batches of 32 as in the papers' training. Both ways run the same
iterations of iLQR; "unrolled" is our own `UnrolledAdjoint`, which is as fast as a plain `jax.vjp`
through a hand-written loop (`python -m benchmarks.core`), so the ratio flatters nobody.
"""

import dataclasses
import sys

import equinox as eqx
import jax
import numpy as np

import diffcontrol as dc
from diffcontrol.systems import pendulum

from . import _main, _pictures
from ._rows import Row, verdict
from ._sweep import say
from ._timing import passes, when_cold

# Seconds: horizon 10, iterations -> (unrolled, DiLQR). The other bars have no numbers.
PUBLISHED = {50: (1.41, 0.067), 300: (8.57, 0.067)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    horizons: tuple[int, ...] = (10, 20, 30)
    """Numbers T of controls."""
    iterations: tuple[int, ...] = (50, 100, 200, 300)
    """Of iLQR."""
    batch: int = 32
    """Initial states solved together."""


SIZES = {
    "full": Config(),
    "reduced": Config(horizons=(10, 30), iterations=(50, 300)),
    "quick": Config(horizons=(5,), iterations=(2, 4), batch=4),
}


def measure(config: Config, context: _main.Context):
    x0s = jax.vmap(pendulum.start)(jax.random.split(jax.random.key(0), config.batch))
    found = {}
    for horizon in config.horizons:
        problem = pendulum.problem(horizon)
        problem = eqx.tree_at(lambda p: p.control_bounds, problem, dc.Bounds())
        say(f"horizon {horizon}")
        found[str(horizon)] = passes(problem, x0s, config.iterations)
    return found


def rows(config: Config, found):
    horizon = str(min(config.horizons))
    of_horizon = found[horizon]
    fewest, most = str(min(config.iterations)), str(max(config.iterations))

    def ratio(iterations):
        seconds = of_horizon[iterations]["seconds"]
        return seconds["unrolled backward"] / seconds["fixed point backward"]

    made = []
    for iterations in (fewest, most):
        published = PUBLISHED.get(int(iterations))
        paper = None if published is None else published[0] / published[1]
        times = of_horizon[iterations]["seconds"]
        made.append(
            Row(
                "DiLQR",
                "Fig. 2",
                f"implicit gradient against unrolling, horizon {horizon}, {iterations} iterations",
                "time of the unrolled backward pass over ours",
                paper,
                ratio(iterations),
                1,
                verdict(ratio(iterations), paper or 1.0, lower=False),
                f"Batch {config.batch}: {1e3 * times['unrolled backward']:.1f} ms against "
                f"{1e3 * times['fixed point backward']:.3f} ms."
                f"{when_cold(of_horizon[iterations])}",
            )
        )
    times = [of["seconds"]["fixed point backward"] for of in of_horizon.values()]
    # Of the line through all of them, so that one time alone does not decide.
    counts = np.array(config.iterations, float)
    line = np.polyfit(counts, times, 1)
    slope = abs(np.polyval(line, counts[-1]) / np.polyval(line, counts[0]) - 1.0)
    apart = max(of[str(most)]["apart"] for of in found.values())
    made += [
        Row(
            "DiLQR",
            "Fig. 2",
            f"the backward pass is flat in the iterations, horizon {horizon}",
            f"relative change of its time from {fewest} to {most} iterations, of a line through "
            "all [1]",
            0.0,
            float(slope),
            1,
            "reached" if slope < 0.05 else "explained",
            "Times: " + ", ".join(f"{1e3 * value:.3f} ms" for value in times) + ".",
        ),
        Row(
            "DiLQR",
            "Fig. 2",
            f"both gradients agree where the iterations have converged ({most} iterations)",
            "largest relative difference over the horizons [1]",
            None,
            apart,
            1,
            verdict(apart, 1e-8),
            "In the length of the gradient by all arrays of the problem.",
        ),
    ]
    return made


def draw(found, path):
    figure, axes = _pictures.grid(1, len(found), width=4.2 * len(found), height=4.0, sharey=True)
    for ax, (horizon, of_horizon) in zip(axes[0], found.items(), strict=True):
        counts = [int(count) for count in of_horizon]
        for way, colour in (("fixed point", "exact"), ("unrolled", "unrolled")):
            values = [of["seconds"][f"{way} backward"] for of in of_horizon.values()]
            colour = _pictures.COLOURS[colour]
            ax.plot(counts, values, color=colour, marker="o", label=f"{way}, ours")
        if horizon == "10":
            for at, label in ((1, "fixed point, published"), (0, "unrolled, published")):
                colour = _pictures.COLOURS["exact" if at else "unrolled"]
                values = [times[at] for times in PUBLISHED.values()]
                ax.plot(list(PUBLISHED), values, "x:", color=colour, label=label)
        ax.set_yscale("log")
        ax.set_xlabel("iterations of iLQR [1]")
        ax.set_title(f"horizon {horizon}", fontsize=10)
    axes[0, 0].set_ylabel("backward pass [s]")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("dilqr_runtime", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
