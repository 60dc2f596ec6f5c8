"""Cumulative training, corrected."""

import torch
from torch import Tensor

from strategies.continual.avalanche.dataset import pairs_of
from strategies.continual.avalanche.template import TensorTemplate


class Cumulative(TensorTemplate):
    """Plain training on all of the client's experiences up to the present one.

    Avalanche's ``Cumulative`` concatenates the data sets of the experiences that it was trained on,
    and so keeps them all. Here the client's stream is read again.
    """

    def epoch_tensors(self) -> list[Tensor]:
        """Return the samples of all experiences so far, each in its own domain."""
        indices = range(self.experience.current_experience + 1)
        return self.gathered(torch.cat([pairs_of(self.stream(index)) for index in indices]))
