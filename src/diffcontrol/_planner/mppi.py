r"""Model predictive path integral control.

A plan is the mean of its noisy neighbours, weighted by how cheap they are:

    X_i     = clip(mean + spread * noise_i, lower, upper)        i = 1 ... samples
    w       = softmax(-cost of X_i / temperature), costs normalised over the samples
    mean    = sum w_i X_i

In each iteration the spread is multiplied by `shrink`, as the plan gets better. Weights are smooth,
so the plan has a derivative by everything: path-integral networks.

Source: Williams et al., Information-theoretic model predictive control (2018); Okada, Rigazio and
Aoshima, Path integral networks (2017).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._plan_cost import plan_costs
from .._types import as_floats, check_counts
from .base import AbstractPlanner, Best, Planned, PlannerStats, check_numbers, positive, scan
from .sampling import (
    as_optional,
    check_colour,
    check_spread,
    draw,
    first_spread,
    normalised,
    sensible_spread,
    weighted,
    within,
)


class MPPI(AbstractPlanner):
    """Path-integral control: a softmax over sampled control sequences.

    `solution.controls` is the last mean, with derivatives with respect to the problem, the initial
    state, the guess, `spread` and `temperature`; `solution.stats.best_controls` the cheapest
    sample.

    Args:
        samples: per iteration.
        iterations: how many.
        temperature: of the weights, in deviations of the cost [1] (without `normalise` in units of
            the cost); positive.
        spread: standard deviation of the first samples [unit of the control]: a scalar, `(m,)` or
            `(T, m)`; None is half the range of the bounds, which must be finite then.
        shrink: factor on the spread from iteration to iteration [1]; 1 keeps it.
        normalise: divide costs by their deviation over the samples, so that their unit does not
            matter.
        colour: exponent of the noise in time: 0 is white, 1 pink, 2 a random walk.

    Raises:
        ValueError, TypeError: for counts below one or not whole, or a temperature or factor
            that is not positive; when solved, for a `spread` that is negative or has another shape,
            and without one for bounds that are not finite.
    """

    samples: int = 200
    iterations: int = 30
    temperature: Array = eqx.field(
        default=0.1, converter=lambda value: as_floats("temperature", value)
    )
    spread: Array | None = eqx.field(default=None, converter=as_optional("spread"))
    shrink: Array = eqx.field(default=0.85, converter=lambda value: as_floats("shrink", value))
    normalise: bool = True
    colour: float = 0.0

    draws = True
    refuses = None

    def __check_init__(self):
        check_counts("MPPI", samples=self.samples, iterations=self.iterations)
        check_numbers("MPPI", temperature=self.temperature, shrink=self.shrink)
        check_colour("MPPI", self.colour)

    def check(self, problem):
        check_spread("MPPI", self.spread, problem.control_bounds)

    def sensible(self):
        return positive(self.temperature, self.shrink) & sensible_spread(self.spread)

    def plan(self, problem, x0, start, key, checkpoint):
        def iterate(state: _State, key):
            X = draw(key, state.mean, state.spread, self.samples, self.colour, problem)
            costs = plan_costs(problem, x0, X, state.mean)
            good = jnp.isfinite(costs)
            scores = -(normalised(costs) if self.normalise else costs)
            scores = jnp.where(good, scores, 0.0) / self.temperature.astype(costs.dtype)
            # Without one that is finite a softmax over none would be NaN.
            w = jnp.where(good, jax.nn.softmax(scores, where=good | ~jnp.any(good)), 0.0)
            mean = within(problem, weighted(w, X, state.mean))
            spread = state.spread * self.shrink.astype(costs.dtype)
            return _State(mean, spread, state.best.of(X, costs)), jnp.sum(~good)

        spread = first_spread("MPPI", self.spread, problem)
        state = _State(start.controls, spread, Best.none(start.controls))
        keys = jax.random.split(key, self.iterations)
        state, bad = scan(iterate, state, keys, checkpoint)
        stats = PlannerStats(
            iterations=jnp.asarray(self.iterations, jnp.int32),
            best_controls=state.best.controls,
            best_cost=state.best.cost,
            spread=state.spread,
            left_out=jnp.mean(bad / self.samples, dtype=x0.dtype),
        )
        return Planned(state.mean, start.kept, start.known, stats)


class _State(eqx.Module):
    mean: Float[Array, "T m"]
    spread: Float[Array, "T m"]
    best: Best
