r"""The likelihood-ratio policy gradient: from costs alone, through no derivative of the plant.

Let J be the expected cost of a closed loop of a `GaussianPolicy` with density `pi`. Then

    dJ/dtheta = E sum_t d log pi(u_t | x_t)/dtheta (G_t - b_t),     G_t = sum_{s >= t} c_s

for any baseline `b_t` that does not depend on `u_t`. Of the closed loop only states, controls and
costs are needed. Here the baseline of a run is the mean of `G_t` over the *other* runs from the
same start, which does not depend on it.

Source: Williams 1992, "Simple statistical gradient-following algorithms for connectionist
reinforcement learning"; the baseline of other runs is that of Kool, van Hoof and Welling 2019,
"Buy 4 REINFORCE samples, get a baseline for free!".
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._simulate import simulate
from .gaussian_policy import GaussianPolicy
from .loss import AbstractLoss, Judged
from .task_loss import solved


class Attempt(eqx.Module):
    """One run of a stochastic policy, and how much better or worse than others it went.

    Attributes:
        states: `(L+1, n)`.
        controls: `(L, m)`, with their noise.
        advantages: `(L,)`: `G_t - b_t`, what the run still cost from step t on beyond the baseline.
        cost: of the whole run.
    """

    states: Float[Array, "*N L1 n"]
    controls: Float[Array, "*N L m"]
    advantages: Float[Array, "*N L"]
    cost: Float[Array, "*N"]


def attempts(
    states: Float[Array, "N L1 n"], controls: Float[Array, "N L m"], costs: Float[Array, "N L"]
) -> Attempt:
    """Runs from one start, each with the others for its baseline, stacked along axis 0.

    Args:
        states, controls: of N runs of L steps.
        costs: `(N, L)`: of each step, that of the last state in the last; zero after a run's end.

    Raises:
        ValueError: for fewer than two runs.
    """
    number = costs.shape[0]
    if number < 2:
        raise ValueError(
            f"attempts: a baseline needs at least 2 runs from the same start, got {number}."
        )
    to_go = jnp.cumsum(costs[:, ::-1], axis=1)[:, ::-1]
    others = (jnp.sum(to_go, axis=0) - to_go) / (number - 1)
    return Attempt(states, controls, to_go - others, to_go[:, 0])


def _itself(model: Any) -> GaussianPolicy:
    return model


class LikelihoodRatioLoss(AbstractLoss):
    r"""The cost of a recorded run, with the gradient `sum_t d log pi(u_t | x_t) (G_t - b_t)`.

    A sample is an `Attempt`. The mean policy is run again along the recorded states; how it got
    there has no derivative.

    Bias: none for the policy that was recorded and the cost *with* its noise, if every sample is
    used; left-out samples and clipped gradients bias it. The variance grows with the number of
    steps and of controls and as sigma falls. For a policy that has moved on since, it is that of
    another policy: record anew after each step of the optimiser; `train` does so if its
    `training` is a function. No state or control but those of the recording is visited.

    Attributes:
        policy_of: turns the model into the policy; by default the model is that `GaussianPolicy`.
        keep_every: bounds the memory of the backward pass, see `simulate`.
    """

    policy_of: Callable[[Any], GaussianPolicy] = eqx.field(static=True, default=_itself)
    keep_every: int | None = eqx.field(static=True, default=None)

    def start(self, sample: Attempt) -> None:
        return None

    def __call__(self, model: Any, sample: Attempt, memory: None) -> Judged:
        policy, steps = self.policy_of(model), sample.controls.shape[0]
        recorded = lambda x, u, t: sample.states[t + 1]
        ran = simulate(policy.mean, recorded, sample.states[0], steps, keep_every=self.keep_every)
        log_probability = policy.log_probability(sample.controls, ran.controls)
        surrogate = jnp.sum(log_probability * sample.advantages)
        # The value is the cost and the gradient that of the surrogate.
        value = sample.cost + surrogate - jax.lax.stop_gradient(surrogate)
        usable = jnp.all(solved(ran.memory)) & jnp.isfinite(surrogate)
        return Judged(value, usable, None)
