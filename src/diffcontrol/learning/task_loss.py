"""The task itself as a loss: what a controller achieves in closed loop."""

from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._cost import cost_at_stage
from .._mpc import MPC
from .._result import RESULTS, succeeded
from .._simulate import Policy, simulate
from .._trajectory import Trajectory, stages
from .._tree import all_finite
from .loss import AbstractLoss, Judged
from .situation import Situation

# (states (L+1, n), controls (L, m)) of a closed loop -> what it cost, a differentiable scalar. It
# is no part of what is learned: a controller that could learn the cost by which it is judged would
# learn to call everything free.
Measure: TypeAlias = Callable[[Array, Array], Array]


class TotalCost(eqx.Module):
    r"""The measure `sum_{t<L} l(x_t, u_t, t) + l_L(x_L)`.

    Attributes:
        stage_cost: `(x, u, t) -> scalar`. Arrays of our own costs with a leading time axis have
            one row for each step of the closed loop.
        terminal_cost: `(x) -> scalar` of the last state, or None.
    """

    stage_cost: Callable
    terminal_cost: Callable | None = None

    def __call__(self, states: Float[Array, "L1 n"], controls: Float[Array, "L m"]) -> Array:
        total = jnp.sum(self.of_steps(states, controls))
        return total if self.terminal_cost is None else total + self.terminal_cost(states[-1])

    def of_steps(
        self, states: Float[Array, "L1 n"], controls: Float[Array, "L m"]
    ) -> Float[Array, " L"]:
        """The cost of each step, without the terminal cost."""
        cost = lambda x, u, t: jnp.asarray(cost_at_stage(self.stage_cost, t)(x, u, t))
        return jax.vmap(cost)(states[:-1], controls, stages(controls.shape[0]))


def task_loss(
    policy: Policy | Callable,
    plant: Callable,
    situation: Situation,
    measure: Measure,
    steps: int,
    *,
    keep_every: int | None = None,
) -> tuple[Judged, Trajectory]:
    """What a policy achieves on a plant in one situation, differentiably end to end.

    Args:
        policy: as for `simulate`, such as an `MPC`.
        plant: `(x, u, t) -> next x`, in JAX. It need not be the model.
        situation: the start, and what else differs from one closed loop to the next.
        measure: what the closed loop is worth; the less the better.
        steps: number L of controls applied.
        keep_every: bounds the memory of the backward pass, see `simulate`.

    Returns:
        The value of the measure, usable if every solve along the closed loop succeeded and all
        numbers are finite; and the closed loop. Batch with `jax.vmap`.

    Raises:
        ValueError, TypeError: for arguments that do not fit together, as from `simulate`; and for
            a measure that is not a scalar.
    """
    policy, plant, measure = situation.place(policy, plant, measure)
    ran = simulate(
        policy,
        plant,
        situation.x0,
        steps,
        disturbances=situation.disturbances,
        keep_every=keep_every,
    )
    value = jnp.asarray(measure(ran.states, ran.controls))
    if value.shape != ():
        raise ValueError(
            f"task_loss: `measure` must return a scalar, but returns shape {value.shape}."
        )
    finite = jnp.isfinite(value) & all_finite((ran.states, ran.controls))
    return Judged(value, jnp.all(solved(ran.memory)) & finite, None), ran


def solved(memory: PyTree) -> Bool[Array, "..."]:
    """Whether the solves that a memory tells of succeeded, each; True where it tells of none."""
    is_result = lambda leaf: isinstance(leaf, RESULTS)
    outcome = jnp.asarray(True)
    for leaf in jax.tree.leaves(memory, is_leaf=is_result):
        if is_result(leaf):
            outcome = outcome & succeeded(leaf)
    return outcome


class TaskLoss(AbstractLoss):
    r"""The measure of a closed loop of the learned controller; a sample is a `Situation`.

    The gradient is that of the closed loop, exact where every solve is: through the plant, the
    controls, and the states that earlier controls led to.

    Attributes:
        plant: `(x, u, t) -> next x`, in JAX; what the controller drives.
        measure: what the closed loop is worth, such as a `TotalCost`.
        steps: number of controls of a closed loop.
        controller_of: turns the model into the policy; by default the model is a `ControlProblem`
            and an `MPC` with the default solver controls.
        keep_every: bounds the memory of the backward pass, see `simulate`.

    Source: end-to-end learning of a controller by its performance, as in Amos et al. 2018
        (DiffMPC), section 1; Gros and Zanon 2020, "Data-driven economic NMPC using reinforcement
        learning", for a model that need not predict well to control well.
    """

    plant: Callable
    measure: Measure
    steps: int = eqx.field(static=True)
    controller_of: Callable[[Any], Policy | Callable] = eqx.field(static=True, default=MPC)
    keep_every: int | None = eqx.field(static=True, default=None)

    def start(self, sample: Situation) -> None:
        return None

    def __call__(self, model: Any, sample: Situation, memory: None) -> Judged:
        judged, _ = task_loss(
            self.controller_of(model),
            self.plant,
            sample,
            self.measure,
            self.steps,
            keep_every=self.keep_every,
        )
        return judged


class AchievedLoss(AbstractLoss):
    """The value of a `TaskLoss`, usable wherever it is finite; to judge by, not to learn from.

    A solve that did not converge gave a control all the same, and what the closed loop cost is
    known; only its gradient is not. Leaving such situations out, mostly the hard ones, would make
    a controller look better the more of its solves fail.

    Attributes:
        task: the loss that is learned from.
    """

    task: TaskLoss

    def start(self, sample: Situation) -> None:
        return None

    def __call__(self, model: Any, sample: Situation, memory: None) -> Judged:
        value = self.task(model, sample, memory).value
        return Judged(value, jnp.isfinite(value), None)
