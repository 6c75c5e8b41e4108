"""One controller from one description: what `record` writes down, `fit` and `evaluate` rebuild.

The description of a file of demonstrations is JSON. Its entry "controller" says everything about
the expert but its dynamics:

    horizon           number T of controls of a plan
    stage_weights     (n+m,) weights of the `GoalCost` of every stage [cost / unit^2]
    goal              (n,) goal state
    lower, upper      (m,) bounds of the controls, or null where unbounded
    starts            further guesses that each step tries: rows [first, second, switch], which
                      stand for the controls `first` before stage `switch` and `second` from there
    tolerance         of the solver, on the relative stationarity; null is the solver's own
    max_iterations    of the solver
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .. import DDP, MPC, Bounds, ControlProblem, GoalCost
from .errors import UserError
from .named import system_named


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
        weights, goal = _floats(said["stage_weights"]), _floats(said["goal"])
        lower, upper = said["lower"], said["upper"]
        return ControlProblem(
            dynamics=dynamics,
            stage_cost=GoalCost(weights, goal),
            horizon=said["horizon"],
            control_size=weights.shape[0] - goal.shape[0],
            control_bounds=Bounds(
                -jnp.inf if lower is None else _floats(lower),
                jnp.inf if upper is None else _floats(upper),
            ),
        )


def true_problem(description: Mapping[str, Any]) -> ControlProblem:
    """The control problem of the expert that a description states, with its true parameters.

    Args:
        description: with the entries "system", "parameters" and "controller".

    Raises:
        UserError: if they cannot be used.
    """
    with _described():
        dynamics = system_named(description["system"]).with_parameters(description["parameters"])
    return build_problem(description, dynamics)


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
    return jnp.asarray(value, dtype=float)
