"""The papers' "pendulum-complex": a pendulum with a spring-like "damping" and wind.

The plant that the simple `Pendulum` cannot represent (DiffMPC, section 5.4 and Fig. 5). Its
dynamics `ComplexPendulum`, cost, limits and starts stand with those of the simple one in
`pendulum`. With wind, upright is no longer a rest: it takes a torque of -m g l sin(wind) / 2,
about -0.5 N m.
"""

from collections.abc import Callable

from .._control_problem import ControlProblem
from . import pendulum
from .pendulum import ComplexPendulum as ComplexPendulum
from .pendulum import bounds as bounds
from .pendulum import cost as cost
from .pendulum import start as start


def problem(horizon: int = 20, dynamics: Callable | None = None) -> ControlProblem:
    """The papers' pendulum problem with the complex pendulum as its model.

    Args:
        horizon: number of controls.
        dynamics: `(x, u, t) -> next x`; by default `ComplexPendulum()`.
    """
    return pendulum.problem(horizon, ComplexPendulum() if dynamics is None else dynamics)
