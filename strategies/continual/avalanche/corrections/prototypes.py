"""Avalanche's supervised template, replaying exemplars and predicting with prototypes.

Upstream's NCM, FeCAM, iCaRL and SCR each have a memory and a pass of their own that computes class
means when an experience ends, and its update averages new means with the old ones
(``momentum=0.5``), which belong to features that are gone. Here there is one memory and one pass,
at the end of each turn: all means are computed anew, from the experience's data and memory, at the
features that the turn ends with.
"""

from typing import Any, cast

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.corrections.selection import Selection
from strategies.continual.avalanche.exemplars import multiplicities
from strategies.continual.avalanche.heads import TaskHeads
from strategies.continual.avalanche.networks.prototypes import Prototypes, Statistics
from strategies.continual.avalanche.template import TurnByTurn
from strategies.continual.batches import ReplayBatches
from strategies.continual.reservoir import Reservoir


def prototypes_of(model: nn.Module) -> Prototypes:
    """Return the equipped model, which task heads may wrap."""
    return cast(Prototypes, model.model if isinstance(model, TaskHeads) else model)


class PrototypeTemplate(TurnByTurn, SupervisedTemplate):  # type: ignore[misc]
    """Memory, and prototypes of every class at the end of each turn.

    Attributes:
        selection: Chooses what is remembered; None for no memory.
        exemplars: Names of the samples that are remembered.
        met: (C,) float64, samples of each class that they were chosen from.
    """

    selection: Selection | None = None
    exemplars: Reservoir
    met: Tensor
    _memory: list[Tensor] | None

    def forget(self) -> None:
        """Empty memory."""
        self.exemplars = Reservoir(self.selection.size if self.selection else 0)
        self.met = torch.zeros_like(prototypes_of(self.model).counts)
        self._memory = None

    def memory(self) -> list[Tensor]:
        """Return inputs, labels and task labels of all of memory; nothing where it is empty."""
        if self._memory is None:
            self._memory = self.gathered(self.exemplars.rows) if len(self.exemplars) else []
        return self._memory

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        if self.selection is not None:
            self.exemplars = self.selection(self, self.exemplars)
            labels = self.experience.tensors(self.device)[1]
            self.met = self.met + torch.bincount(labels, minlength=len(self.met))
            self._memory = None

    def end_turn(self) -> None:
        """Refresh the prototypes."""
        model = prototypes_of(self.model)
        with second_pass(model):
            statistics = self.statistics(model)
        model.publish(statistics, len(self.experience.origin))

    def statistics(self, model: Prototypes) -> Statistics:
        """Return the sums over the experience's data and memory, each class once."""
        x, y, _ = self.experience.tensors(self.device)
        if not self.memory():
            return model.measure(x, y, torch.ones_like(y, dtype=torch.float64))
        old_x, old_y, _ = self.memory()
        weights = torch.cat(multiplicities(y, old_y, self.met))
        return model.measure(torch.cat([x, old_x]), torch.cat([y, old_y]), weights)


class ReplayTemplate(PrototypeTemplate):
    """Prototypes, and batches that are each followed by one from memory.

    Attributes:
        memory_batch_size: Samples from memory a step; None for as many as the batch has.
    """

    memory_batch_size: int | None = None

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        if self.memory():
            size = self.memory_batch_size or self.train_mb_size
            self.dataloader = ReplayBatches(self.dataloader, self.draw_from(self.memory(), size))
