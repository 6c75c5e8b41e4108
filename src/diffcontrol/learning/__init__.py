"""Learning dynamics, costs and policies from demonstrations.

Demonstrations become `Window`s, a loss judges a model on one window, `parametrise` says which
arrays of the model are learned and in which coordinates, and `train` does the rest. Without an
expert the task itself is the loss: `TaskLoss` judges closed loops from one `Situation` each.
"""

from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import save_checkpoint as save_checkpoint
from .demonstrations import Demonstrations as Demonstrations
from .gaussian_policy import GaussianPolicy as GaussianPolicy
from .gradients import SampleGradients as SampleGradients
from .gradients import mean_of_usable as mean_of_usable
from .gradients import sample_gradients as sample_gradients
from .imitation import ImitationLoss as ImitationLoss
from .likelihood_ratio import Attempt as Attempt
from .likelihood_ratio import LikelihoodRatioLoss as LikelihoodRatioLoss
from .likelihood_ratio import attempts as attempts
from .loss import AbstractLoss as AbstractLoss
from .loss import Evaluation as Evaluation
from .loss import Judged as Judged
from .loss import evaluate as evaluate
from .lstm import LSTMPolicy as LSTMPolicy
from .lstm import SequenceLoss as SequenceLoss
from .parametrisation import Parametrisation as Parametrisation
from .parametrisation import parametrise as parametrise
from .prediction import PredictionLoss as PredictionLoss
from .recorded_plant import RecordedPlant as RecordedPlant
from .situation import Situation as Situation
from .situation import draw_situations as draw_situations
from .situation import replacing as replacing
from .situation import scattered as scattered
from .system_identification import SystemIdentificationLoss as SystemIdentificationLoss
from .task_loss import AchievedLoss as AchievedLoss
from .task_loss import TaskLoss as TaskLoss
from .task_loss import TotalCost as TotalCost
from .task_loss import task_loss as task_loss
from .train import Progress as Progress
from .train import Trained as Trained
from .train import train as train
from .weighted_sum import WeightedSum as WeightedSum
from .windows import Window as Window
from .windows import windows as windows
