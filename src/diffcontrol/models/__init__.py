"""Models with unknown parts: networks and matrices to be learned, as dynamics and as costs.

Everything here is an `eqx.Module` whose arrays are parameters; the solver takes second derivatives
of it, so activations are smooth by default.
"""

from .latent_controls import ControlDecoder as ControlDecoder
from .latent_controls import LatentProblem as LatentProblem
from .neural_cost import NeuralStageCost as NeuralStageCost
from .neural_cost import NeuralTerminalCost as NeuralTerminalCost
from .neural_dynamics import NeuralDynamics as NeuralDynamics
from .normalisation import Normalisation as Normalisation
from .quadratic_cost import ConvexStageCost as ConvexStageCost
from .quadratic_cost import ConvexTerminalCost as ConvexTerminalCost
from .residual_dynamics import ResidualDynamics as ResidualDynamics
