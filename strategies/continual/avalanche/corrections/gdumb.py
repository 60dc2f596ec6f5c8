"""GDumb, corrected."""

import torch
from torch import Tensor

from strategies.continual.avalanche.template import TensorTemplate
from strategies.continual.reservoir import Reservoir, keys_of, labels_of


class GDumb(TensorTemplate):
    """Greedy sampler and dumb learner: it trains on nothing but memory.

    What Avalanche's ``GDumbPlugin`` does, and what is done here:

    - It puts the experience into memory as the experience begins, and replaces
      ``strategy.adapted_dataset``. Here memory is of past experiences, and what the epochs read is
      the memory that the end of the experience will leave: the same samples, in every turn.
    - It puts the initial model back for each experience. Here a turn starts, as every turn does,
      at the received global weights.
    - Its memory gives each class a fixed share, and leaves empty what a class cannot fill. Here the
      other classes use it, as they do in the paper's greedy sampler.

    Attributes:
        memory_size: Samples kept, shared equally by the classes.
        memory: Samples of past experiences.
    """

    memory_size: int
    memory: Reservoir

    def forget(self) -> None:
        """Empty memory."""
        self.memory = Reservoir(self.memory_size)

    def epoch_tensors(self) -> list[Tensor]:
        """Return all of memory."""
        return self.gathered(self._with_present().rows)

    def _after_training_iteration(self, **kwargs: object) -> None:
        self.drew(len(self.mbatch[1]))
        super()._after_training_iteration(**kwargs)

    def _after_training_exp(self, **kwargs: object) -> None:
        super()._after_training_exp(**kwargs)
        self.memory = self._with_present()

    def _with_present(self) -> Reservoir:
        """Return memory once it has taken in the present experience."""
        rows, keys = keys_of(self.experience.origin, self._seed)
        memory = Reservoir(self.memory_size, self.memory.rows, self.memory.keys)
        labels = labels_of(self.stream, torch.cat([memory.rows, rows]))
        memory.offer_balanced(rows, keys, labels)
        return memory
