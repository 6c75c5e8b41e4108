"""What a controller is tuned for: closed loops on a plant, and how their gradient comes out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import MPC, ControlProblem
from ..learning import (
    AchievedLoss,
    Attempt,
    GaussianPolicy,
    LikelihoodRatioLoss,
    RecordedPlant,
    Situation,
    TaskLoss,
    TotalCost,
    attempts,
    draw_situations,
    replacing,
    scattered,
    task_loss,
)
from ..learning.loss import AbstractLoss
from ..learning.task_loss import solved
from .episodes import Episodes, run_episodes
from .plants import Plant

# Runs from each start, whose mean is the baseline of the likelihood ratio.
_RUNS_OF_A_START = 4

ControllerOf = Callable[[ControlProblem], MPC]


@dataclasses.dataclass(frozen=True)
class Driven:
    """Closed loops of one controller, N of L steps.

    Attributes:
        states: `(N, L+1, n)`.
        controls: `(N, L, m)`.
        costs: `(N, L)`: of each step.
        totals: `(N,)`: of the whole closed loop, with the last state's cost where there is one.
        unsolved: `(N, L)`: where the solver did not meet its tolerance.
    """

    states: np.ndarray
    controls: np.ndarray
    costs: np.ndarray
    totals: np.ndarray
    unsolved: np.ndarray


@runtime_checkable
class Task(Protocol):
    """What is needed to train, to select and to test.

    Attributes:
        loss, judge: of training and of validation samples.
        training, validation: samples, or functions that collect them; as `train` takes them.
        clips: whether the gradients of single samples may be shortened.
        size: number of training samples.
        whole: whether a step of the optimiser takes all of them, since the next needs new ones.
        time_step: [s], or None where it is not known.
    """

    loss: AbstractLoss
    judge: AbstractLoss
    training: Any
    validation: Any
    clips: bool
    size: int
    whole: bool
    time_step: float | None

    def drive(self, problem: ControlProblem) -> Driven:
        """Closed loops of the controller of `problem` from the starts for testing."""

    def close(self) -> None:
        """Free what the plant holds."""


class DifferentiableTask:
    """On a plant in JAX, with the exact gradient of the closed loop."""

    loss: AbstractLoss
    judge: AbstractLoss
    training: Any
    validation: Any
    clips: bool = True
    whole: bool = False

    def __init__(
        self,
        plant: Callable,
        start: Callable,
        measure: TotalCost,
        controller_of: ControllerOf,
        steps: int,
        numbers: Sequence[int],
        seed: int,
        spread: float = 0.0,
        noise: Sequence[float] = (),
    ):
        """Draw the situations.

        Args:
            plant: `(x, u, t) -> next x`.
            start: random key -> initial state.
            measure: by which closed loops are judged.
            controller_of: the controller of a problem.
            steps: length of a closed loop.
            numbers: of situations for training, validation and testing.
            seed: of their draws.
            spread: of the plant's parameters, see `scattered`.
            noise: standard deviation of the disturbances of each state, or one for all; none is ().
        """

        def draw(key):
            of_start, of_plant, of_noise = jax.random.split(key, 3)
            x0 = jnp.asarray(start(of_start), float)
            shaken = lambda: jnp.asarray(noise) * jax.random.normal(of_noise, (steps, x0.size))
            return Situation(
                x0,
                disturbances=shaken() if noise else None,
                plant=scattered(plant, of_plant, spread) if spread else None,
            )

        keys = jax.random.split(jax.random.key(seed), 3)
        self.training, self.validation, self._test = (
            draw_situations(draw, *pair) for pair in zip(keys, numbers, strict=True)
        )
        self.loss = self._task = TaskLoss(plant, measure, steps, controller_of)
        self.judge = AchievedLoss(self._task)
        self.size = numbers[0]
        self.time_step = getattr(plant, "time_step", None)

    def drive(self, problem: ControlProblem) -> Driven:
        return Driven(*map(np.asarray, _drive(self._task, problem, self._test)))

    def close(self) -> None:
        pass


@eqx.filter_jit
def _drive(loss: TaskLoss, problem: ControlProblem, situations: Situation):
    def one(situation):
        controller = loss.controller_of(problem)
        judged, ran = task_loss(controller, loss.plant, situation, loss.measure, loss.steps)
        _, _, measure = situation.place(controller, loss.plant, loss.measure)
        costs = measure.of_steps(ran.states, ran.controls)
        return ran.states, ran.controls, costs, judged.value, ~solved(ran.memory)

    return jax.vmap(one)(situations)


class RecordedTask:
    """On a plant without derivatives, along what the controller of each epoch does there.

    The gradient is that of `RecordedPlant`, with the derivatives of the model that is learned.
    """

    loss: AbstractLoss
    judge: AbstractLoss
    training: Any
    validation: Any
    clips: bool = True
    whole: bool = True

    def __init__(
        self,
        plant: Plant,
        problem: ControlProblem,
        measure: TotalCost,
        controller_of: ControllerOf,
        steps: int,
        seeds: Sequence[Sequence[int]],
    ):
        """Say where closed loops start.

        Args:
            plant: what is driven.
            problem: the controller's, with any parameters.
            measure: by which closed loops are judged.
            controller_of: the controller of a problem.
            steps: length of a closed loop.
            seeds: of the starts for training, validation and testing.
        """
        self.plant, self.measure, self.steps = plant, measure, steps
        self.controller_of, self.size, self.time_step = (
            controller_of,
            len(seeds[0]),
            plant.time_step,
        )
        self._seeds, self._test = seeds[0], seeds[2]
        n = plant.reset(seeds[0][:1]).shape[1]
        self._like = RecordedPlant(problem.dynamics, jnp.zeros((steps, n)))
        self.loss = TaskLoss(self._like, measure, steps, controller_of)
        self.judge = AchievedLoss(self.loss)
        self.training = lambda model, key: self._recorded(model, seeds[0])
        self.validation = lambda model, key: self._recorded(model, seeds[1])

    def drive(self, problem: ControlProblem) -> Driven:
        return self._driven(self._run(problem, self._test))

    def close(self) -> None:
        self.plant.close()

    def _run(self, problem: ControlProblem, seeds: Sequence[int]) -> Episodes:
        return run_episodes(self.controller_of(problem), self.plant, seeds, self.steps)

    def _driven(self, episodes: Episodes) -> Driven:
        states, controls = jnp.asarray(episodes.states), jnp.asarray(episodes.controls)
        costs = jax.vmap(self.measure.of_steps)(states, controls)
        totals = jax.vmap(self.measure)(states, controls)
        return Driven(
            episodes.states,
            episodes.controls,
            np.asarray(costs),
            np.asarray(totals),
            episodes.unsolved,
        )

    def _recorded(self, problem: ControlProblem, seeds: Sequence[int]) -> Situation:
        episodes = self._run(problem, seeds)
        states = jnp.asarray(episodes.states, float)
        repeated = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(seeds), *leaf.shape)),
            eqx.filter(problem.dynamics, eqx.is_array),
        )
        recorded = replacing(
            self._like,
            lambda plant: (plant.model, plant.following, plant.length),
            (repeated, states[:, 1:], jnp.asarray(episodes.lengths)),
        )
        return Situation(states[:, 0], plant=recorded)


class LikelihoodRatioTask(RecordedTask):
    """On a plant without derivatives, from costs alone: the controller tries noisy controls."""

    clips: bool = False

    def __init__(self, *args: Any, sigma: float, control_size: int, **named: Any):
        """As a `RecordedTask`; `sigma` is the standard deviation of the noise of the controls."""
        super().__init__(*args, **named)
        self._sigma, self.size = sigma, self.size * _RUNS_OF_A_START
        head = jnp.full(control_size, jnp.log(sigma))
        self.loss = LikelihoodRatioLoss(
            lambda problem: GaussianPolicy(self.controller_of(problem), head)
        )
        self.training = self._tried

    def _tried(self, problem: ControlProblem, key) -> Attempt:
        seeds = [seed for seed in self._seeds for _ in range(_RUNS_OF_A_START)]
        size = (self.steps, len(seeds), problem.control_size)
        noise = self._sigma * np.asarray(jax.random.normal(key, size))
        shaken = _Shaken(self.plant, noise)
        episodes = run_episodes(self.controller_of(problem), shaken, seeds, self.steps)
        controls = episodes.controls + noise.swapaxes(0, 1)
        driven = self._driven(dataclasses.replace(episodes, controls=controls))
        # What follows the end of a run is charged like the rest, but no control brought it about.
        costs = driven.costs.copy()
        costs[:, -1] += driven.totals - costs.sum(axis=1)
        of_starts = lambda rows: jnp.asarray(rows).reshape(-1, _RUNS_OF_A_START, *rows.shape[1:])
        groups = jax.vmap(attempts)(*map(of_starts, (driven.states, controls, costs)))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), groups)


class _Shaken:
    """A plant whose controls are disturbed by given noise, `(L, N, m)`."""

    def __init__(self, plant: Plant, noise: np.ndarray):
        self.name, self.time_step = plant.name, plant.time_step
        self.most_steps, self.lacks = plant.most_steps, plant.lacks
        self._plant, self._noise = plant, noise
        self.reset, self.close = plant.reset, plant.close
        self._time = 0

    def step(self, controls):
        noise, self._time = self._noise[self._time], self._time + 1
        return self._plant.step(controls + noise)
