"""What a planner is."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._control_problem import ControlProblem, StageProblem
from .._tree import select
from .._types import known_to


class PlannerStats(eqx.Module):
    """How planning went. Numbers to read, not to differentiate.

    Attributes:
        iterations: iterations run.
        best_controls: `(T, m)`, the cheapest sample of all, or the answer where that is cheaper.
        best_cost: its cost.
        spread: `(T, m)`, the standard deviation that a further iteration would draw with [unit of
            the control]; half the range of uniform samples; zero without samples.
        left_out: share of the samples, or of the steps of `GradientDescent`, whose cost was not
            finite. Such samples count for nothing.
    """

    iterations: Int[Array, ""]
    best_controls: Float[Array, "T m"]
    best_cost: Float[Array, ""]
    spread: Float[Array, "T m"]
    left_out: Float[Array, ""]


class Start(eqx.Module):
    """Where planning starts.

    Attributes:
        controls: `(T, m)`.
        kept: `(K, T, m)`, samples of an earlier plan that take part again; K is the planner's.
        known: whether `kept` holds any.
    """

    controls: Float[Array, "T m"]
    kept: Float[Array, "K T m"]
    known: Bool[Array, ""]


class Planned(eqx.Module):
    """What a planner found: controls with their derivative, and what to go on from (`Start`)."""

    controls: Float[Array, "T m"]
    kept: Float[Array, "K T m"]
    known: Bool[Array, ""]
    stats: PlannerStats


class AbstractPlanner(eqx.Module):
    """An algorithm that improves controls for a fixed number of iterations."""

    @property
    @abc.abstractmethod
    def draws(self) -> bool:
        """Whether it needs random numbers."""

    @property
    def keep(self) -> int:
        """How many samples a plan hands on to the next."""
        return 0

    @property
    @abc.abstractmethod
    def refuses(self) -> str | None:
        """Why the controls have no derivative; None where they have one."""

    def check(self, problem: ControlProblem) -> None:
        """Raise `ValueError` for a problem that this planner cannot start on, as far as its values
        are known."""

    @abc.abstractmethod
    def sensible(self) -> Bool[Array, ""]:
        """Whether settings that may be known only at run time lie in their range."""

    @abc.abstractmethod
    def plan(
        self, problem: StageProblem, x0: Array, start: Start, key: Array | None, checkpoint: bool
    ) -> Planned:
        """Improve `start.controls`.

        Args:
            problem, x0: what to solve.
            start: within the bounds.
            key: random key, or None where `draws` is False.
            checkpoint: keep only the state between iterations for a backward pass.
        """

    def start(self, problem: StageProblem, controls: Array) -> Start:
        """Start from controls alone."""
        controls = cut_off(problem, controls)
        kept = jnp.broadcast_to(controls, (self.keep, *controls.shape))
        return Start(controls, kept, jnp.asarray(False))


class Best(eqx.Module):
    """The cheapest sample so far."""

    controls: Float[Array, "T m"]
    cost: Float[Array, ""]

    @staticmethod
    def none(controls: Array) -> "Best":
        return Best(controls, jnp.asarray(jnp.inf, controls.dtype))

    def of(self, samples: Array, costs: Array) -> "Best":
        """The cheaper of this and the cheapest of `samples`."""
        samples, costs = jax.lax.stop_gradient((samples, costs))
        first = jnp.argmin(costs)
        return select(costs[first] < self.cost, Best(samples[first], costs[first]), self)


def cut_off(problem: StageProblem, controls: Array) -> Array:
    """Controls within the bounds; one that lies on a bound keeps its whole derivative, as the mean
    of samples there does."""
    controls = jnp.where(controls < problem.lower, problem.lower, controls)
    return jnp.where(controls > problem.upper, problem.upper, controls)


def positive(*settings: Array | None) -> Bool[Array, ""]:
    """Whether those that are given are, wherever that turns out."""
    return jnp.all(jnp.array([jnp.all(values > 0) for values in settings if values is not None]))


def check_positive(name: str, **values: Array | None) -> None:
    """Raise for numbers known not to be positive."""
    for setting, value in values.items():
        if value is not None and known_to(value, lambda numbers: ~(numbers > 0)):
            raise ValueError(f"{name}: `{setting}` must be positive, got {value}.")


def check_numbers(name: str, **values: Array | None) -> None:
    """Raise for what is not one positive number, as far as that is known."""
    for setting, value in values.items():
        if value is not None and value.ndim:
            raise ValueError(
                f"{name}: `{setting}` must be one number, but has shape {value.shape}."
            )
    check_positive(name, **values)


def scan(step, state, inputs, checkpoint: bool):
    """`jax.lax.scan` over iterations."""
    return jax.lax.scan(
        jax.checkpoint(step, prevent_cse=False) if checkpoint else step, state, inputs
    )
