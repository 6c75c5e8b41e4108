"""Cross-entropy method and path integrals in closed loop: the cartpole swings up.

The papers' cartpole (0.05 s a step, |u| <= 100 N, cost of `diffcontrol.systems.cartpole`) from 100
starts: cart within 0.5 m, pole within 0.5 rad of hanging, speeds within 0.5 m/s and 1 rad/s.
Each step plans 25 stages ahead with few iterations, from the last plan shifted by a step. Upright
means that the angle stays within 0.2 rad of it for the last two of six seconds.
"""

import dataclasses
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import diffcontrol as dc
from diffcontrol.systems import cartpole

from . import _main, _pictures
from ._rows import Row, verdict
from ._sweep import say

PLANNERS = {
    "CEM": dc.CEM(samples=100, elites=10, iterations=6, keep=5, spread=10.0),
    "DCEM": dc.CEM(samples=100, elites=10, iterations=6, keep=5, spread=10.0, temperature=0.1),
    "MPPI": dc.MPPI(samples=100, iterations=8, spread=10.0, shrink=0.75),
}
COLOURS = {"CEM": "#E69F00", "DCEM": "#0072B2", "MPPI": "#009E73"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes."""

    starts: int = 100
    """Closed loops."""
    steps: int = 120
    """Of 0.05 s."""
    horizon: int = 25
    """Stages planned ahead."""


SIZES = {
    "full": Config(),
    "reduced": Config(),
    "quick": Config(starts=2, steps=41, horizon=5),
}


def starts(count: int) -> jax.Array:
    limits = jnp.array([0.5, 0.5, 0.5, 1.0])
    drawn = jax.random.uniform(jax.random.key(0), (count, 4), minval=-limits, maxval=limits)
    position, speed, angle, turn = drawn.T
    return jnp.stack([position, speed, jnp.cos(jnp.pi + angle), jnp.sin(jnp.pi + angle), turn], 1)


def measure(config: Config, context: _main.Context):
    problem, x0s = cartpole.problem(config.horizon), starts(config.starts)
    keys = jax.random.split(jax.random.key(1), config.starts)
    found = {}
    for name, planner in PLANNERS.items():
        say(name)

        @jax.jit
        def loop(x0, key, planner=planner):
            policy = dc.MPC(problem, planner, key=key)
            run = dc.simulate(policy, problem.dynamics, x0, config.steps)
            return run.states, run.controls

        states, controls = jax.block_until_ready(jax.vmap(loop)(x0s, keys))
        begin = time.perf_counter()
        jax.block_until_ready(jax.vmap(loop)(x0s, keys))
        seconds = time.perf_counter() - begin
        angles = np.abs(np.arctan2(states[..., 3], states[..., 2]))
        found[name] = {
            "upright": np.all(angles[:, -40:] < 0.2, axis=1).tolist(),
            "angles": angles[: min(30, config.starts), ::2].tolist(),
            "positions": float(np.max(np.abs(states[..., 0]))),
            "milliseconds": 1e3 * seconds / (config.starts * config.steps),
        }
    return found


def rows(config: Config, found):
    made = []
    for name, of in found.items():
        share = float(np.mean(of["upright"]))
        made.append(
            Row(
                "DCEM",
                "closed loop",
                f"{name} swings the cartpole up in closed loop, of {config.starts} starts",
                "share of starts that end upright [1]",
                None,
                share,
                config.starts,
                verdict(share, 0.95, lower=False, clearly=1.05),
                f"100 samples, {PLANNERS[name].iterations} iterations a step, first spread 10 N; "
                f"{of['milliseconds']:.2f} ms a control in a batch; the cart stays within "
                f"{of['positions']:.1f} m.",
            )
        )
    return made


def draw(found, path):
    figure, axes = _pictures.grid(1, len(found), width=4.2 * len(found), height=3.8, sharey=True)
    for ax, (name, of) in zip(axes[0], found.items(), strict=True):
        for angles in of["angles"]:
            ax.plot(0.1 * np.arange(len(angles)), angles, color=COLOURS[name], linewidth=0.6)
        ax.axhline(0.2, color="black", linewidth=0.8, linestyle=":")
        ax.set_xlabel("time [s]")
        ax.set_title(f"{name}: {100 * np.mean(of['upright']):.0f} % upright", fontsize=10)
    axes[0, 0].set_ylabel("angle from upright [rad], a line a start")
    _pictures.save(figure, path)


EXPERIMENT = _main.Experiment("planners_swing_up", SIZES, measure, rows, draw)

if __name__ == "__main__":
    sys.exit(_main.main(EXPERIMENT))
