"""One controller from one description: what `record` writes down, `fit` and `evaluate` rebuild.

The description of a file of demonstrations is JSON. Its entry "controller" says everything about
the expert but its dynamics:

    horizon           number T of controls of a plan
    stage_weights     (n+m,) weights of the `GoalCost` of every stage [cost / unit^2]
    goal              (n,) goal state
    terminal_weights  (n,) weights of the same distance at the last state, or null for no cost there
    lower, upper      (m,) bounds of the controls, or null where unbounded
    starts            further guesses that each step tries: rows [first, second, switch], which
                      stand for the controls `first` before stage `switch` and `second` from there
    tolerance         of the solver, on the relative stationarity; null is the solver's own
    max_iterations    of the solver

The terminal weights are given numbers. They do not depend on the parameters of the dynamics, so
that a learner with wrong parameters still minimises the very cost that the expert minimised.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import DDP, MPC, Bounds, ControlProblem, GoalCost
from .errors import UserError


class TerminalGoal(eqx.Module):
    """`1/2 sum_i w_i (x_i - goal_i)^2`: weighted distance of the last state to a goal.

    Attributes:
        weights: `(n,)` [cost / unit^2].
        goal: `(n,)`.
    """

    weights: Float[Array, " n"]
    goal: Float[Array, " n"]

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, ""]:
        return 0.5 * self.weights @ (x - self.goal) ** 2


def build_problem(description: Mapping[str, Any], dynamics: Callable) -> ControlProblem:
    """The control problem that a description states, with these dynamics.

    Args:
        description: of a file of demonstrations; its entry "controller" is read.
        dynamics: `(x, u, t) -> next x`.

    Raises:
        UserError: if the description holds no controller, or one that lacks an entry.
    """
    with _described():
        said = description["controller"]
        goal, terminal = _floats(said["goal"]), said["terminal_weights"]
        weights = _floats(said["stage_weights"])
        lower, upper = said["lower"], said["upper"]
        return ControlProblem(
            dynamics=dynamics,
            stage_cost=GoalCost(weights, goal),
            terminal_cost=None if terminal is None else TerminalGoal(_floats(terminal), goal),
            horizon=said["horizon"],
            control_size=weights.shape[0] - goal.shape[0],
            control_bounds=Bounds(
                -jnp.inf if lower is None else _floats(lower),
                jnp.inf if upper is None else _floats(upper),
            ),
        )


def build_controller(problem: ControlProblem, description: Mapping[str, Any]) -> MPC:
    """The receding-horizon controller that a description states, for this problem.

    Args:
        problem: from `build_problem`, with any parameters.
        description: of a file of demonstrations; its entry "controller" is read.

    Raises:
        UserError: if the description holds no controller, or one that lacks an entry.
    """
    with _described():
        said = description["controller"]
        solver = DDP(tolerance=said["tolerance"], max_iterations=said["max_iterations"])
        rows = [_start(problem, *row) for row in said["starts"]]
        return MPC(problem, solver, jnp.stack(rows) if rows else None)


def _start(problem: ControlProblem, first: float, second: float, switch: int) -> Array:
    """Controls `(T, m)`, all of them `first` until stage `switch` and `second` from there on."""
    early = jnp.arange(problem.horizon)[:, None] < switch
    return jnp.where(early, _floats(first), _floats(second)) * jnp.ones(problem.control_size)


class _described:
    """Turns what is wrong with a description into one sentence."""

    def __enter__(self):
        return self

    def __exit__(self, kind, problem, _):
        if kind is KeyError:
            raise UserError(
                f"The description of the controller lacks the entry {problem}; use a file written "
                "by `diffcontrol record`."
            ) from problem
        if kind in (TypeError, ValueError):
            raise UserError(
                f"The description of the controller cannot be used ({problem}); use a file "
                "written by `diffcontrol record`."
            ) from problem


def _floats(value: Any) -> Array:
    return jnp.asarray(value, dtype=jnp.result_type(float))
