"""Learning dynamics, costs and policies from demonstrations.

Demonstrations become `Window`s, a loss judges a model on one window, `parametrise` says which
arrays of the model are learned and in which coordinates, and `train` does the rest.
"""

from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .demonstrations import Demonstrations as Demonstrations
from .gradients import SampleGradients as SampleGradients
from .gradients import mean_of_usable as mean_of_usable
from .gradients import sample_gradients as sample_gradients
from .imitation import ImitationLoss as ImitationLoss
from .loss import AbstractLoss as AbstractLoss
from .loss import Evaluation as Evaluation
from .loss import Judged as Judged
from .loss import evaluate as evaluate
from .lstm import LSTMPolicy as LSTMPolicy
from .lstm import SequenceLoss as SequenceLoss
from .parametrisation import Parametrisation as Parametrisation
from .parametrisation import parametrise as parametrise
from .system_identification import SystemIdentificationLoss as SystemIdentificationLoss
from .train import Progress as Progress
from .train import Trained as Trained
from .train import train as train
from .windows import Window as Window
from .windows import windows as windows
