"""Joint training, corrected."""

import torch
from torch import Tensor

from strategies.continual.avalanche.dataset import pairs_of
from strategies.continual.avalanche.template import TensorTemplate


class Joint(TensorTemplate):
    """Plain training on all of the client's experiences at once.

    Avalanche's ``JointTraining`` must be given the whole stream in one call of ``train()``, and
    refuses a second one. Here every turn reads the stream.

    Attributes:
        num_experiences: T, the length of the stream.
    """

    num_experiences: int

    def epoch_tensors(self) -> list[Tensor]:
        """Return the samples of all experiences, each in its own domain."""
        indices = range(self.num_experiences)
        return self.gathered(torch.cat([pairs_of(self.stream(index)) for index in indices]))
