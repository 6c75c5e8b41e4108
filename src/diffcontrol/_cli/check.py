"""`diffcontrol check`: the gradient doctor, on a problem of ours or of the user."""

import dataclasses
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from ..testing import check_gradients
from .destination import check_destination
from .errors import UserError
from .named import load_problem, system_named


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the gradient of a problem's solution with converged central differences.

    Says for each initial state whether the solution can be trusted and which derivatives differ.
    The exit code is 1 if a check fails.
    """

    problem: Annotated[str, tyro.conf.Positional]
    """pendulum, complex_pendulum, cartpole, double_integrator, or module:attribute of your own
    ControlProblem (or of a function that takes nothing and returns one)."""
    x0: tuple[float, ...] | None = None
    """Initial state, as numbers with spaces between them. Your own problem needs it; systems of
    ours start at random."""
    samples: int = 3
    """Number of random starts, where no --x0 is given."""
    seed: int = 0
    """Of the starts, and of the loss whose gradient is compared."""
    entries_per_leaf: int = 6
    """Of larger arrays only so many entries, drawn at random, are perturbed."""
    plot: Path | None = None
    """A picture (.png) of the differences against their step. Nothing is overwritten."""


def run(options: Options) -> int:
    """Check, print the report and draw it if wanted.

    Returns:
        0 if everything agrees, else 1.

    Raises:
        UserError: for whatever the user can put right.
    """
    for flag, value in (
        ("--samples", options.samples),
        ("--entries-per-leaf", options.entries_per_leaf),
    ):
        if value < 1:
            raise UserError(f"{flag} must be at least 1, got {value}.")
    if options.plot is not None:
        check_destination(options.plot, "--plot", ".png")
    if ":" in options.problem:
        problem = load_problem(options.problem)
        if options.x0 is None:
            raise UserError("Your own problem needs an initial state; give it with --x0.")
    else:
        module = system_named(options.problem).module
        problem = module.problem()
    if options.x0 is None:
        keys = jax.random.split(jax.random.PRNGKey(options.seed), options.samples)
        starts = jnp.stack([module.start(key) for key in keys])
    else:
        starts = jnp.asarray([options.x0], dtype=float)
    try:
        report = check_gradients(
            problem, starts, entries_per_leaf=options.entries_per_leaf, seed=options.seed
        )
    except (TypeError, ValueError) as wrong:
        raise UserError(f"`{options.problem}` cannot be solved: {wrong}") from wrong
    print(report)
    if options.plot is not None:
        report.plot(options.plot)
        print(f"picture: {options.plot}")
    return 0 if report.passed else 1
