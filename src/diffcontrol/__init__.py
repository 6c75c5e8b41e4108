"""diffcontrol: optimal control problems, solved and differentiated exactly."""

import importlib

from . import learning as learning
from . import models as models
from . import systems as systems
from . import testing as testing
from ._adjoint.implicit import GaussNewtonAdjoint as GaussNewtonAdjoint
from ._adjoint.implicit import ImplicitAdjoint as ImplicitAdjoint
from ._adjoint.unrolled import UnrolledAdjoint as UnrolledAdjoint
from ._certificate import Certificate as Certificate
from ._certificate import certify as certify
from ._control_problem import Bounds as Bounds
from ._control_problem import ControlProblem as ControlProblem
from ._cost import GoalCost as GoalCost
from ._cost import QuadraticCost as QuadraticCost
from ._cost import log_barrier as log_barrier
from ._cost import penalty as penalty
from ._discretise import Discretised as Discretised
from ._discretise import discretise as discretise
from ._discretise import euler as euler
from ._discretise import rk4 as rk4
from ._discretise import semi_implicit as semi_implicit
from ._kernel.native import set_threads as set_threads
from ._kernel.soft_top_k import constrained_softmax as constrained_softmax
from ._kernel.soft_top_k import constrained_sparsemax as constrained_sparsemax
from ._kernel.soft_top_k import limited_multi_label as limited_multi_label
from ._linear_quadratic import Diagonal as Diagonal
from ._linear_quadratic import LinearQuadraticProblem as LinearQuadraticProblem
from ._linear_quadratic import TimeInvariant as TimeInvariant
from ._lqr import lqr as lqr
from ._mpc import MPC as MPC
from ._mpc import MPCMemory as MPCMemory
from ._planner.base import PlannerStats as PlannerStats
from ._planner.cem import CEM as CEM
from ._planner.gradient_descent import GradientDescent as GradientDescent
from ._planner.mppi import MPPI as MPPI
from ._planner.random_shooting import RandomShooting as RandomShooting
from ._result import RESULTS as RESULTS
from ._simulate import Episode as Episode
from ._simulate import rollout_in as rollout_in
from ._simulate import simulate as simulate
from ._solution import Solution as Solution
from ._solution import Stats as Stats
from ._solve import solve as solve
from ._solver.ddp import DDP as DDP
from ._solver.ilqr import ILQR as ILQR
from ._terminal_value import TerminalValue as TerminalValue
from ._terminal_value import terminal_value as terminal_value
from ._trajectory import Trajectory as Trajectory
from ._value import q_value as q_value
from ._value import value as value
from .models import ControlDecoder as ControlDecoder
from .models import LatentProblem as LatentProblem
from .models import NeuralDynamics as NeuralDynamics
from .models import NeuralStageCost as NeuralStageCost
from .models import NeuralTerminalCost as NeuralTerminalCost
from .models import ResidualDynamics as ResidualDynamics

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "torch":  # on demand, since importing PyTorch takes seconds
        return importlib.import_module(".torch", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
