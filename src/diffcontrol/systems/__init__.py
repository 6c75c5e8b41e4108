"""Systems to try things on, with the settings of the papers.

One module a system, all of the same shape: a class of dynamics, and the functions `cost()`,
`bounds()`, `start(key)` and `problem(horizon, dynamics)`. `diffcontrol.systems.drawing` draws
them.
"""

from . import cartpole as cartpole
from . import complex_pendulum as complex_pendulum
from . import double_integrator as double_integrator
from . import drawing as drawing
from . import pendulum as pendulum
from .cartpole import Cartpole as Cartpole
from .cartpole import CartpoleWithFriction as CartpoleWithFriction
from .double_integrator import DoubleIntegrator as DoubleIntegrator
from .pendulum import ComplexPendulum as ComplexPendulum
from .pendulum import Pendulum as Pendulum
from .plant import Clamped as Clamped
