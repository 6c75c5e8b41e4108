"""Samples cut from demonstrations: one for every recorded step."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .demonstrations import Demonstrations


class Window(eqx.Module):
    """What a loss sees of one recorded step; several are stacked along a leading axis.

    Attributes:
        time: the step k of the run at which the window starts.
        controls: `(steps, m)`: the expert's controls from k on, to be met.
        states: `(steps+1, n)`: the recorded states from k on.
        guess: `(T, m)`: the recorded controls `k ... k+T-1`, the last one repeated where the run
            ends. Where several plans are locally optimal, a solver that starts there mostly finds
            the one that the expert followed.
    """

    time: Int[Array, "*N"]
    controls: Float[Array, "*N steps m"]
    states: Float[Array, "*N steps+1 n"]
    guess: Float[Array, "*N T m"]


def windows(
    demonstrations: Demonstrations,
    horizon: int,
    *,
    steps: int = 1,
    most: int | None = None,
    seed: int = 0,
) -> Window:
    """Cut every recorded step that has `steps` controls after it into a window.

    Args:
        demonstrations: N runs of L steps.
        horizon: the number T of controls of the guess.
        steps: how many stages of a plan are compared: 1 for closed-loop recordings, where only
            the first control of each plan was applied; T for recorded plans with L = T.
        most: keep at most so many windows, drawn evenly at random.
        seed: of that draw.

    Returns:
        Windows stacked along axis 0, in the order of the recording, `N (L - steps + 1)` of them
        or `most`.

    Raises:
        ValueError: if `steps` exceeds the horizon or the length of the runs.
    """
    if not 1 <= steps <= min(horizon, demonstrations.steps):
        raise ValueError(
            f"`steps` must lie between 1 and {min(horizon, demonstrations.steps)}, the smaller of "
            f"the horizon {horizon} and the length {demonstrations.steps} of the runs, "
            f"got {steps}."
        )
    starts = demonstrations.steps - steps + 1
    run, k = (grid.ravel() for grid in np.mgrid[: demonstrations.runs, :starts])
    if most is not None and most < run.size:
        chosen = np.sort(np.random.default_rng(seed).choice(run.size, most, replace=False))
        run, k = run[chosen], k[chosen]

    row, at = run[:, None], k[:, None]
    ahead = np.minimum(at + np.arange(horizon), demonstrations.steps - 1)
    in_precision = lambda array: jnp.asarray(array, dtype=float)  # as wide as JAX is set to
    return Window(
        time=jnp.asarray(k),
        controls=in_precision(demonstrations.controls[row, at + np.arange(steps)]),
        states=in_precision(demonstrations.states[row, at + np.arange(steps + 1)]),
        guess=in_precision(demonstrations.controls[row, ahead]),
    )
