"""Random shooting: the best of many guesses."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._plan_cost import plan_costs
from .._types import check_counts
from .base import AbstractPlanner, Best, Planned, PlannerStats
from .sampling import (
    as_optional,
    check_colour,
    check_spread,
    draw,
    first_spread,
    sensible_spread,
)

_REFUSES = (
    "The controls of `RandomShooting` are one of its samples and do not move with the problem, so "
    "they have no derivative. Use CEM(temperature=1.0) or MPPI(), or take what you need of the "
    "controls through jax.lax.stop_gradient. (`states` and `cost` do have a derivative, with the "
    "controls held.)"
)


class RandomShooting(AbstractPlanner):
    """The cheapest of so many random control sequences; the baseline of every planner.

    Args:
        samples: how many.
        spread: standard deviation of Gaussian samples around the guess [unit of the control]: a
            scalar, `(m,)` or `(T, m)`. None is uniform between the bounds, which must be finite
            then.
        colour: exponent of Gaussian noise in time: 0 is white, 1 pink, 2 a random walk.

    Raises:
        ValueError, TypeError: for samples below one or not whole; when solved, for a
            `spread` that is negative or has another shape, and without one for bounds that are not
            finite.
    """

    samples: int = 1000
    spread: Array | None = eqx.field(default=None, converter=as_optional("spread"))
    colour: float = 0.0

    draws = True
    refuses = _REFUSES

    def __check_init__(self):
        check_counts("RandomShooting", samples=self.samples)
        check_colour("RandomShooting", self.colour)

    def check(self, problem):
        check_spread("RandomShooting", self.spread, problem.control_bounds)

    def sensible(self):
        return sensible_spread(self.spread)

    def plan(self, problem, x0, start, key, checkpoint):
        spread = first_spread("RandomShooting", self.spread, problem)
        if self.spread is None:
            share = jax.random.uniform(key, (self.samples, *spread.shape), spread.dtype)
            X = problem.lower + 2.0 * spread * share
        else:
            X = draw(key, start.controls, spread, self.samples, self.colour, problem)
        costs = plan_costs(problem, x0, X, start.controls)
        best = Best.none(start.controls).of(X, costs)
        stats = PlannerStats(
            iterations=jnp.asarray(1, jnp.int32),
            best_controls=best.controls,
            best_cost=best.cost,
            spread=spread,
            left_out=jnp.mean(~jnp.isfinite(costs), dtype=x0.dtype),
        )
        return Planned(best.controls, start.kept, start.known, stats)
