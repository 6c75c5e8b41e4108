"""What a solve can end in, in words."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool


class RESULTS(eqx.Enumeration):
    """Outcomes of a solve. The value of each is the sentence that the user is shown.

    `solution.result == RESULTS.successful` asks for one; of a batch, under `jax.vmap`.
    """

    successful = "Solved to the tolerance."
    fixed_iterations = (
        "The iterations that were asked for were run; nothing was promised about where they lead. "
        "A solver's `solution.stats.stationarity` says how far they came, a planner's "
        "`solution.stats.best_cost` what they found."
    )
    not_converged = (
        "The solver stopped before its tolerance was met. Allow more iterations, start from a "
        "better guess, scale the cost, or smooth kinks in dynamics and cost; "
        "`solution.stats.stationarity` says how far it came."
    )
    precision_limit = (
        "The cost can no longer resolve progress at this floating-point precision while the "
        "stationarity is still above the tolerance. Use float64 (jax_enable_x64), scale the "
        "cost, or loosen the tolerance."
    )
    indefinite = (
        "The point is stationary but the curvature along some free direction is not positive: it "
        "is a saddle, a maximum, or one of many minima. Start from another guess; for a "
        "linear-quadratic problem, make the cost strictly convex in the controls."
    )
    non_finite = (
        "The cost, the dynamics or their derivatives are NaN or infinite along the initial "
        "trajectory, along every sample of a planner or along its answer. Start from a guess whose "
        "roll-out is finite, with samples (`spread`, bounds) not too far from it, and "
        "`GradientDescent` with a smaller `step_size`; `stats.best_controls` is the best that was "
        "finite, if any was."
    )
    invalid_input = (
        "The problem holds NaN, or a lower bound lies above its upper bound, so it has no "
        "solution; or a setting of the planner (temperature, spread, step size) lies outside its "
        "range."
    )


def choose(predicate: Bool[Array, ""], if_true: Any, if_false: Any) -> Any:
    """`if_true` where `predicate` holds, else `if_false`; both are entries of `RESULTS`."""
    return RESULTS.where(predicate, if_true, if_false)


def as_array(result: Any) -> Any:
    """An entry of `RESULTS` in the form in which loops carry and `choose` returns one."""
    return jax.tree.map(jnp.asarray, result)


def succeeded(result: Any) -> Bool[Array, "..."]:
    """Whether a result is what was asked for: an optimum, or so many iterations."""
    return (result == RESULTS.successful) | (result == RESULTS.fixed_iterations)


def sentence(result: Any) -> str:
    """The sentence of a result whose value is known."""
    return RESULTS[result]  # type: ignore[misc]
