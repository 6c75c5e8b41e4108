"""What a solve returns."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Int

from ._result import RESULTS


class Stats(eqx.Module):
    """How a solve went. Numbers to read, not to differentiate.

    Attributes:
        iterations: iterations run.
        stationarity: the relative stationarity that the tolerance bounds, at the returned point.
        stationarity_raw: the same before division by its scale.
        step_size: the last accepted line-search step.
        regularisation: the last regularisation.
    """

    iterations: Int[Array, ""]
    stationarity: Float[Array, ""]
    stationarity_raw: Float[Array, ""]
    step_size: Float[Array, ""]
    regularisation: Float[Array, ""]


class Solution(eqx.Module):
    """The optimal trajectory and what is known about it. Every leaf is an array.

    Attributes:
        states: `(T+1, n)`.
        controls: `(T, m)`.
        costates: `(T+1, n)`; `costates[t]` is the derivative of the optimal cost with respect to
            `x_t` [cost / unit of x].
        multipliers: `(T, m)` of the control bounds [cost / unit of u]: positive where an upper
            bound holds the control, negative where a lower one does, zero elsewhere. Minus the
            multiplier is the derivative of the optimal cost with respect to that bound.
        cost: the optimal cost.
        gains: `(T, m, n)`: derivative of `u_t` with respect to `x_t` along the optimal policy;
            rows of clamped controls are zero.
        result: one of `RESULTS`.
        stats: how the solve went: `Stats`, or of a planner `PlannerStats`.

    The first six have derivatives. `result` and `stats` have zero tangents in forward mode and
    refuse a cotangent in reverse mode. Planners such as `CEM` look for no multiplier: of theirs
    `costates`, `multipliers` and `gains` are None, and `stats` says other things (`PlannerStats`).
    """

    states: Float[Array, "T1 n"]
    controls: Float[Array, "T m"]
    costates: Float[Array, "T1 n"] | None
    multipliers: Float[Array, "T m"] | None
    cost: Float[Array, ""]
    gains: Float[Array, "T m n"] | None
    result: RESULTS
    stats: Any
