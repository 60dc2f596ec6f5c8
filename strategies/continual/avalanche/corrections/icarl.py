"""iCaRL, corrected."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlearn.heads import HIDDEN
from strategies.continual.avalanche.corrections.prototypes import PrototypeTemplate, prototypes_of
from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.networks.prototypes import BATCH


class ICaRL(PrototypeTemplate):
    """Incremental classifier and representation learning, turn by turn.

    Upstream reads classes from ``nc_benchmark``'s own tables, builds exemplar sets of
    ``ceil(memory / classes)`` samples each, which together exceed memory, averages each class mean
    with that of mirrored exemplars, and hands the teacher's outputs to the loss through an
    attribute that the loss resets. Its targets of a class that comes back are the teacher's, so
    that nothing is learnt of it.

    Attributes:
        teacher: The user's model as it was when the experience before ended, tensors by name; empty
            in the first experience.
        old_classes: Classes of the experiences that are over, ascending.
    """

    teacher: dict[str, Tensor]
    old_classes: list[int]

    def forget(self) -> None:
        """Empty memory, without a teacher."""
        super().forget()
        self.teacher, self.old_classes = {}, []

    def epoch_tensors(self) -> list[Tensor]:
        """Return inputs, labels, task labels and targets (n, C) of new samples and exemplars."""
        parts = [self.experience.tensors(self.device)]
        if self.memory():
            parts.append(self.memory())
        x, y, t = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return [x, y, t, self.targets(x, y)]

    @torch.no_grad()
    def targets(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the target of every output, (n, C): labels, and the teacher's for old classes."""
        present = self.experience.classes_in_this_experience
        old = [label for label in self.old_classes if label not in present]
        targets = F.one_hot(y, len(self.met)).float()
        if old:
            model = prototypes_of(self.model)
            with second_pass(model):
                logits = [model.logits_with(self.teacher, each) for each in torch.split(x, BATCH)]
            targets[:, old] = torch.cat(logits).sigmoid()[:, old]
        return targets

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        self.drew(len(self.exemplars))

    def _before_forward(self, **kwargs: Any) -> None:
        *self.mbatch, self._targets = self.mbatch
        super()._before_forward(**kwargs)

    def criterion(self) -> Tensor:
        """Return the binary cross-entropy, summed over outputs: classification and distillation."""
        each = F.binary_cross_entropy_with_logits(self.mb_output, self._targets, reduction="none")
        loss: Tensor = each.masked_fill(self.mb_output == HIDDEN, 0).sum(1).mean()
        return loss

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        tensors = prototypes_of(self.model).model.state_dict()
        self.teacher = {name: tensor.clone() for name, tensor in tensors.items()}
        classes = self.experience.classes_in_this_experience
        self.old_classes = sorted({*self.old_classes, *classes})
