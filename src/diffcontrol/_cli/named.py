"""Systems by name, and the user's own by `module:attribute`.

The command line is the one place where strings stand for objects, so the table is here.
"""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import ControlProblem, systems
from .errors import UserError


@dataclasses.dataclass(frozen=True)
class System:
    """What the command line knows of a system of `diffcontrol.systems`.

    Attributes:
        name: on the command line.
        dynamics: the class of its dynamics; takes the parameters as keywords.
        module: holds its `cost()`, `bounds()`, `start(key)` and `problem(...)`.
        parameters: unit of each parameter of the dynamics.
        states, controls: name and unit of each, for axes.
        combinations: what its optimal controls depend on, where that is less than all the
            parameters: a name, and how to compute it from the parameters.
        planning: how its expert plans; what `controller.py` reads, without cost and bounds.
        draw: fills axes with a state and a control, for animations, or None.
    """

    name: str
    dynamics: Callable[..., Any]
    module: Any
    parameters: Mapping[str, str]
    states: tuple[tuple[str, str], ...]
    controls: tuple[tuple[str, str], ...]
    combinations: Mapping[str, Callable[[Mapping[str, float]], float]]
    planning: Mapping[str, Any]
    draw: Callable[..., None] | None = None

    @property
    def time_step(self) -> float:
        """[s]."""
        return self.dynamics().time_step

    @property
    def controller(self) -> dict[str, Any]:
        """What the description of its expert says, with the cost and the bounds of the module."""
        cost, bounds = self.module.cost(), self.module.bounds()
        size = len(self.controls)
        return {
            **self.planning,
            "stage_weights": cost.weights.tolist(),
            "goal": cost.goal.tolist(),
            "lower": np.broadcast_to(bounds.lower, size).tolist(),
            "upper": np.broadcast_to(bounds.upper, size).tolist(),
        }

    def with_parameters(self, parameters: Mapping[str, float]) -> Any:
        """Its dynamics with these parameters, the usual ones where none is given.

        Raises:
            UserError: for a parameter that it does not have.
        """
        for name in parameters:
            if name not in self.parameters:
                raise UserError(
                    f"The system `{self.name}` has no parameter `{name}`; choose from "
                    f"{', '.join(self.parameters)}."
                )
        return self.dynamics(**parameters)


# What it takes to swing up from each of the seeds 0 to 19 of Gymnasium's Pendulum-v1. A horizon
# that sees the top from the bottom: with 30 stages 3 of the 20 starts are left hanging, because
# that costs less than a swing that does not arrive, with 40 none, and no terminal cost is needed.
# And two further guesses at every step, full torque to one side for six stages and to the other
# from there on: plans have several minima (left or right, one swing or two), and from the last plan
# alone the mean return is -168 instead of -135.
_PENDULUM_EXPERT = {
    "horizon": 40,
    "starts": [[-2.0, 2.0, 6], [2.0, -2.0, 6]],
    "tolerance": None,
    "max_iterations": 30,
}

_CARTPOLE_EXPERT = {
    "horizon": 40,
    "starts": [[0.0, 0.0, 0]],
    "tolerance": None,
    "max_iterations": 100,
}

_DOUBLE_INTEGRATOR_EXPERT = {
    "horizon": 20,
    "starts": [],
    "tolerance": None,
    "max_iterations": 100,
}

SYSTEMS = {
    system.name: system
    for system in (
        System(
            name="pendulum",
            dynamics=systems.Pendulum,
            module=systems.pendulum,
            parameters={"gravity": "m/s^2", "mass": "kg", "length": "m"},
            states=(("cos(angle)", "1"), ("sin(angle)", "1"), ("angular speed", "rad/s")),
            controls=(("torque", "N m"),),
            combinations={
                "gravity / length [1/s^2]": lambda p: p["gravity"] / p["length"],
                "mass length^2 [kg m^2]": lambda p: p["mass"] * p["length"] ** 2,
            },
            planning=_PENDULUM_EXPERT,
            draw=systems.drawing.draw_pendulum,
        ),
        System(
            name="cartpole",
            dynamics=systems.Cartpole,
            module=systems.cartpole,
            parameters={
                "gravity": "m/s^2",
                "cart_mass": "kg",
                "pole_mass": "kg",
                "half_length": "m",
            },
            states=(
                ("position", "m"),
                ("speed", "m/s"),
                ("cos(angle)", "1"),
                ("sin(angle)", "1"),
                ("angular speed", "rad/s"),
            ),
            controls=(("force", "N"),),
            combinations={},
            planning=_CARTPOLE_EXPERT,
            draw=systems.drawing.draw_cartpole,
        ),
        System(
            name="complex_pendulum",
            dynamics=systems.ComplexPendulum,
            module=systems.complex_pendulum,
            parameters={
                "gravity": "m/s^2",
                "mass": "kg",
                "length": "m",
                "damping": "1/s^2",
                "wind": "rad",
            },
            states=(("cos(angle)", "1"), ("sin(angle)", "1"), ("angular speed", "rad/s")),
            controls=(("torque", "N m"),),
            combinations={},
            planning=_PENDULUM_EXPERT,
            draw=systems.drawing.draw_pendulum,
        ),
        System(
            name="double_integrator",
            dynamics=systems.DoubleIntegrator,
            module=systems.double_integrator,
            parameters={"mass": "kg"},
            states=(("position", "m"), ("speed", "m/s")),
            controls=(("force", "N"),),
            combinations={},
            planning=_DOUBLE_INTEGRATOR_EXPERT,
        ),
    )
}


def system_named(name: str) -> System:
    """The system of that name.

    Raises:
        UserError: for an unknown name, with the names there are.
    """
    if name not in SYSTEMS:
        raise UserError(
            f"There is no system `{name}`; choose one of {', '.join(SYSTEMS)}, or give your own "
            "as module:attribute."
        )
    return SYSTEMS[name]


Axes = tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]


def axes_of(system: System | None, states: int, controls: int) -> Axes:
    """Name and unit of each state, and of each control; numbers for systems that are not ours."""
    if system is not None:
        return system.states, system.controls
    numbered = lambda what, count: [(f"{what} {i}", "1") for i in range(count)]
    return numbered("state", states), numbered("control", controls)


def load_attribute(text: str) -> Any:
    """The object that `module:attribute` names; modules in the current folder are found too.

    Raises:
        UserError: if the text has another form, or there is no such module or attribute.
    """
    module_name, colon, path = text.partition(":")
    if not (module_name and colon and path):
        raise UserError(f"`{text}` is not of the form module:attribute, such as my_file:problem.")
    if module_name.endswith(".py"):
        raise UserError(f"`{text}` names a file; leave out .py: {module_name[:-3]}:{path}.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        value = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name is None or not module_name.startswith(problem.name):
            raise UserError(
                f"The module `{module_name}` needs `{problem.name}`, which is not installed; "
                "install it."
            ) from problem
        raise UserError(
            f"There is no module `{module_name}`; run from the folder that holds it, or install it."
        ) from problem
    except Exception as problem:
        raise UserError(
            f"The module `{module_name}` cannot be imported ({type(problem).__name__}: {problem})."
        ) from problem
    for name in path.split("."):
        if not hasattr(value, name):
            raise UserError(f"The module `{module_name}` has no attribute `{path}`.")
        value = getattr(value, name)
    return value


def load_dynamics(text: str) -> Callable:
    """The callable `(x, u, t) -> next x` that `module:attribute` names, or an instance of a class.

    Raises:
        UserError: if it is something else.
    """
    value = load_attribute(text)
    if isinstance(value, type):
        value = value()
    if not callable(value):
        raise UserError(
            f"`{text}` is a {type(value).__name__}; name a callable (x, u, t) -> next x, or a class"
            " of one."
        )
    return value


def load_problem(text: str) -> ControlProblem:
    """The `ControlProblem` that `module:attribute` names, or that a function of that name returns.

    Raises:
        UserError: if it is something else.
    """
    value = load_attribute(text)
    if callable(value) and not isinstance(value, ControlProblem):
        try:
            value = value()
        except TypeError as problem:
            raise UserError(
                f"`{text}` cannot be called without arguments ({problem}); name a ControlProblem "
                "or a function that takes nothing and returns one."
            ) from problem
    if not isinstance(value, ControlProblem):
        raise UserError(
            f"`{text}` is a {type(value).__name__}; name a ControlProblem, or a function that "
            "takes nothing and returns one."
        )
    return value
