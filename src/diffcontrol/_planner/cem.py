r"""The cross-entropy method, and made differentiable.

A Gaussian over control sequences is fitted to the best of its samples, again and again:

    X_i     = clip(mean + spread * noise_i, lower, upper)        i = 1 ... samples
    z_i     = cost of X_i, normalised over the samples
    w       = the `elites` cheapest: 1 and 0, or limited_multi_label(-z, elites, temperature)
    mean    = sum w_i X_i / elites
    spread  = sqrt(sum w_i (X_i - mean)^2 / elites)

With hard choices the mean does not move with the costs until another sample enters the elites, so
its derivative by the problem is zero almost everywhere. The soft choice has one.

Source: Rubinstein and Kroese, The Cross-Entropy Method (2004); Amos and Yarats, The differentiable
cross-entropy method (2020), algorithm 1. Temperature is the paper's: towards 0 the choice is hard.
The released code's `temp` is its inverse.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._control_problem import StageProblem
from .._kernel.soft_top_k import limited_multi_label
from .._plan_cost import plan_costs
from .._types import check_counts
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

_REFUSES = (
    "The controls of a `CEM` without a temperature have no derivative by the problem but zero, "
    "since its elites change in jumps. Give CEM(temperature=1.0), or take what you need of the "
    "controls through jax.lax.stop_gradient. (`states` and `cost` do have a derivative, with the "
    "controls held.)"
)


class CEM(AbstractPlanner):
    """Cross-entropy method over control sequences; with a temperature it is differentiable (DCEM).

    `solution.controls` is the last mean; `solution.stats.best_controls` the cheapest sample. With
    a temperature the controls have derivatives with respect to the problem, the initial state, the
    guess, `spread` and `temperature`, in both modes, through the iterations. Without one they have
    none (a cotangent is refused, a tangent is zero), and `states` and `cost` are differentiated
    with the controls held. Second derivatives come by forward over reverse mode, `jax.hessian`.

    Args:
        samples: per iteration.
        elites: of them the Gaussian is fitted to.
        iterations: how many.
        temperature: of the choice of elites, in deviations of the cost [1] (without `normalise` in
            units of the cost); a positive number, which has a derivative. None chooses hard.
        spread: standard deviation of the first samples [unit of the control]: a scalar, `(m,)` or
            `(T, m)`; None is half the range of the bounds, which must be finite then.
        normalise: divide costs by their deviation over the samples, so that their unit does not
            matter.
        keep: so many of the cheapest samples take part in the next iteration, and in the next plan
            of an `MPC`.
        colour: exponent of the noise in time: 0 is white, 1 pink, 2 a random walk.

    Raises:
        ValueError, TypeError: for counts below one or not whole, more elites than samples, or a
            temperature that is not positive; when solved, for a `spread` that is negative or has
            another shape, and without one for bounds that are not finite.
    """

    samples: int = 200
    elites: int = 20
    iterations: int = 20
    temperature: Array | None = eqx.field(default=None, converter=as_optional("temperature"))
    spread: Array | None = eqx.field(default=None, converter=as_optional("spread"))
    normalise: bool = True
    keep: int = 0
    colour: float = 0.0

    draws = True

    def __check_init__(self):
        check_counts("CEM", samples=self.samples, elites=self.elites, iterations=self.iterations)
        if self.elites > self.samples:
            raise ValueError(
                f"CEM: {self.elites} `elites` cannot be chosen from {self.samples} `samples`."
            )
        check_counts("CEM", least=0, keep=self.keep)
        if self.keep > self.samples:
            raise ValueError(f"CEM: `keep` must be at most `samples`, got {self.keep}.")
        check_numbers("CEM", temperature=self.temperature)
        check_colour("CEM", self.colour)

    @property
    def refuses(self):
        return _REFUSES if self.temperature is None else None

    def check(self, problem):
        check_spread("CEM", self.spread, problem.control_bounds)

    def sensible(self):
        return positive(self.temperature) & sensible_spread(self.spread)

    def plan(self, problem, x0, start, key, checkpoint):
        def iterate(state: _State, key):
            X = draw(key, state.mean, state.spread, self.samples, self.colour, problem)
            X = jnp.concatenate([X, state.kept])
            costs = plan_costs(problem, x0, X, state.mean)
            costs = jnp.where(state.known | (jnp.arange(len(X)) < self.samples), costs, jnp.inf)
            bad = jnp.sum(~jnp.isfinite(costs[: self.samples]))
            return self._fit(problem, state, X, costs), bad

        spread = first_spread("CEM", self.spread, problem)
        best = Best.none(start.controls)
        state = _State(start.controls, spread, start.kept, start.known, best)
        keys = jax.random.split(key, self.iterations)
        state, bad = scan(iterate, state, keys, checkpoint)
        stats = PlannerStats(
            iterations=jnp.asarray(self.iterations, jnp.int32),
            best_controls=state.best.controls,
            best_cost=state.best.cost,
            spread=state.spread,
            left_out=jnp.mean(bad / self.samples, dtype=x0.dtype),
        )
        return Planned(state.mean, state.kept, state.known, stats)

    def _fit(self, problem: StageProblem, state: "_State", X: Array, costs: Array) -> "_State":
        w = self._choice(costs)
        mean = within(problem, weighted(w, X, state.mean))
        variance = weighted(w, (X - mean) ** 2, jnp.zeros_like(mean))
        moves = variance > 0  # the root has no derivative at zero
        spread = jnp.where(moves, jnp.sqrt(jnp.where(moves, variance, 1.0)), 0.0)
        best = state.best.of(X, costs)
        some = jnp.any(jnp.isfinite(costs))
        spread = jnp.where(some, spread, state.spread)
        kept = X[jax.lax.top_k(-jax.lax.stop_gradient(costs), self.keep)[1]]
        kept = jnp.where(some, kept, state.kept)
        return _State(mean, spread, kept, state.known | some, best)

    def _choice(self, costs: Array) -> Float[Array, " N"]:
        """Weights of the samples; zero where the cost is not finite."""
        good = jnp.isfinite(costs)
        if self.temperature is None:
            _, chosen = jax.lax.top_k(-jax.lax.stop_gradient(costs), self.elites)
            return jnp.zeros_like(costs).at[chosen].set(1.0) * good
        scores = -(normalised(costs) if self.normalise else costs)
        k = jnp.minimum(self.elites, jnp.sum(good)).astype(costs.dtype)
        temperature = self.temperature.astype(costs.dtype)
        return jnp.where(good, limited_multi_label(scores, k, temperature), 0.0)


class _State(eqx.Module):
    """The Gaussian, the samples that take part again, and the best so far."""

    mean: Float[Array, "T m"]
    spread: Float[Array, "T m"]
    kept: Float[Array, "K T m"]
    known: Bool[Array, ""]
    best: Best
