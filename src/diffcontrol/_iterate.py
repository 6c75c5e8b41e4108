"""What a solver is, and the two ways to run one: fast, or so that the run can be differentiated.

A solver knows how to start, how to take one step and how to read the answer off its state. It
holds no derivative: adjoints differentiate the optimality conditions, or the second of the runs.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._adjoint.base import Solved, solved_at
from ._control_problem import StageProblem
from ._optimality import Point
from ._result import RESULTS
from ._solution import Stats
from ._tree import select


class Outcome(eqx.Module):
    """How a run ended: one of `RESULTS`, and the numbers behind it."""

    result: RESULTS
    stats: Stats


class AbstractSolver(eqx.Module):
    """An algorithm that looks for an optimal trajectory from a guess of the controls."""

    max_iterations: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def promises_stationarity(self) -> bool:
        """Whether a successful run satisfies the optimality conditions, so that an implicit adjoint
        may differentiate them. A class that always does says so by a plain attribute."""

    @abc.abstractmethod
    def init(self, problem: StageProblem, x0: Array, controls: Float[Array, "T m"]) -> Any:
        """The state before the first step. Every state has a boolean field `running`."""

    @abc.abstractmethod
    def step(self, problem: StageProblem, x0: Array, state: Any) -> Any:
        """One step, as fast as possible. Need not be differentiable."""

    @abc.abstractmethod
    def differentiable_step(self, problem: StageProblem, x0: Array, state: Any) -> Any:
        """The same step with what it chose by search held constant under differentiation."""

    @abc.abstractmethod
    def finish(self, problem: StageProblem, x0: Array, state: Any) -> tuple[Point, Outcome]:
        """The answer."""


def run_until_done(
    solver: AbstractSolver, problem: StageProblem, x0: Array, controls: Array
) -> Solved:
    """Step until the state says stop. Cannot be differentiated in reverse mode, by design.

    Under `jax.vmap` the samples do not wait for each other, see `_run_batch`.
    """
    arrays, static = eqx.partition((problem, x0, controls), eqx.is_array)

    @jax.custom_batching.custom_vmap
    def run(arrays):
        problem, x0, controls = eqx.combine(arrays, static)
        state = jax.lax.while_loop(
            lambda state: state.running,
            lambda state: solver.step(problem, x0, state),
            solver.init(problem, x0, controls),
        )
        return solver.finish(problem, x0, state)

    @run.def_vmap
    def run_batched(size, batched, arrays):
        (batched,) = batched
        out = _run_batch(solver, static, batched, size, arrays)
        return out, jax.tree.map(lambda _: True, out)

    return solved_at(problem, *run(arrays))


# So many samples step together on a CPU, where a step takes time in proportion. Other devices want
# the whole batch at once.
_SLOTS = 16
# Finished slots are refilled when so many are free, since refilling copies.
_REFILL = 2


class _Slots(eqx.Module):
    """A batch at work: the next sample in the queue, who is in each slot, how far they are, and
    what those that left have found. An occupant beyond the last sample is nobody."""

    queue: Array
    occupant: Array
    state: Any
    out: Any


def _run_batch(solver: AbstractSolver, static, batched, size: int, arrays):
    """A batch that does not wait for its slowest member.

    The samples are worked off through a fixed number of slots: whoever is done leaves its slot to
    the next one in the queue. `batched` says which leaves of `arrays` have a leading axis; a batch
    of batches is flattened.
    """

    def over_samples(function):
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, batched)
        return lambda arrays, *states: jax.vmap(
            lambda arrays, *states: function(*eqx.combine(arrays, static), *states),
            in_axes=(axes, *(0 for _ in states)),
        )(arrays, *states)

    def samples(arrays, index):
        take = lambda is_batched, leaf: leaf[index] if is_batched else leaf
        return jax.tree.map(take, batched, arrays)

    init = over_samples(solver.init)
    finish = over_samples(lambda problem, x0, _, state: solver.finish(problem, x0, state))
    step = over_samples(
        lambda problem, x0, _, state: select(state.running, solver.step(problem, x0, state), state)
    )

    def run_together(arrays):
        state = jax.lax.while_loop(
            lambda state: jnp.any(state.running), lambda state: step(arrays, state), init(arrays)
        )
        return finish(arrays, state)

    def run_through_slots(arrays):
        def proceed(slots):
            occupant = slots.occupant
            inputs = samples(arrays, occupant)

            def busy(state):
                free = jnp.sum(~state.running & (occupant < size))
                return jnp.any(state.running) & ((free < _REFILL) | (slots.queue >= size))

            state = jax.lax.while_loop(busy, lambda state: step(inputs, state), slots.state)
            # What is written beyond the end is dropped.
            done = ~state.running
            place = jnp.where(done, occupant, size)
            out = jax.tree.map(
                lambda leaf, new: leaf.at[place].set(new, mode="drop"),
                slots.out,
                finish(inputs, state),
            )
            following = jnp.minimum(slots.queue + jnp.cumsum(done) - 1, size)
            occupant = jnp.where(done, following, occupant)
            fresh = init(samples(arrays, occupant))
            fresh = eqx.tree_at(
                lambda state: state.running, fresh, fresh.running & (occupant < size)
            )
            state = jax.vmap(select)(done, fresh, state)
            queue = jnp.minimum(slots.queue + jnp.sum(done), size)
            return _Slots(queue, occupant, state, out)

        occupant = jnp.arange(_SLOTS)
        state = init(samples(arrays, occupant))
        ends = jax.eval_shape(finish, samples(arrays, occupant), state)
        out = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape[1:]), leaf.dtype), ends)
        slots = _Slots(jnp.asarray(_SLOTS), occupant, state, out)
        return jax.lax.while_loop(lambda slots: jnp.any(slots.occupant < size), proceed, slots).out

    @jax.custom_batching.custom_vmap
    def run(arrays):
        if size <= _SLOTS or jax.default_backend() != "cpu":
            return run_together(arrays)
        return run_through_slots(arrays)

    @run.def_vmap
    def run_nested(outer, outer_batched, arrays):
        (outer_batched,) = outer_batched

        def flat(inner, new, leaf):
            if not (inner or new):
                return leaf
            rest = leaf.shape[new + inner :]
            leaf = leaf if new else leaf[None]
            leaf = leaf if inner else jnp.expand_dims(leaf, 1)
            return jnp.broadcast_to(leaf, (outer, size, *rest)).reshape(outer * size, *rest)

        either = jax.tree.map(lambda a, b: a or b, batched, outer_batched)
        arrays = jax.tree.map(flat, batched, outer_batched, arrays)
        out = _run_batch(solver, static, either, outer * size, arrays)
        out = jax.tree.map(lambda leaf: leaf.reshape(outer, size, *leaf.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return run(arrays)


def run_fixed(
    solver: AbstractSolver,
    problem: StageProblem,
    x0: Array,
    controls: Array,
    checkpoint: bool = False,
) -> Solved:
    """The same run as a scan of a fixed number of steps, the state frozen once it says stop.

    One step more than iterations, since the first may be spent on the guess.
    """

    def step(state, _):
        return select(state.running, solver.differentiable_step(problem, x0, state), state), None

    start = solver.init(problem, x0, controls)
    if checkpoint:
        step = jax.checkpoint(step, prevent_cse=False)
    state, _ = jax.lax.scan(step, start, length=solver.max_iterations + 1)
    return solved_at(problem, *solver.finish(problem, x0, state))
