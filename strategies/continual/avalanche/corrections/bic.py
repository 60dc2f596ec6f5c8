"""BiC, corrected."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.networks.bias import BiasCorrected, fit_correction
from strategies.continual.avalanche.template import TensorTemplate
from strategies.continual.batches import ReplayBatches
from strategies.continual.reservoir import Reservoir, keys_of, labels_of


class BiC(TensorTemplate):
    """Replay, distillation and bias correction, turn by turn, on a `BiasCorrected` model.

    Attributes:
        memory_size: Samples kept to train on, shared equally by the classes.
        validation_size: Samples kept, or held out of the present ones, to fit the correction to.
        validation_share: Of the samples that a class has in an experience, the part that may be
            held out.
        memory_batch_size: Samples from memory a step; None for as many as the batch has.
        temperature: Of the distillation.
        memory: Samples of past experiences to train on.
        validation: Samples of past experiences that no model was trained on.
        teacher: The corrected model at the last experience's end; None in the first.
        past_classes: Those of the experiences behind.
    """

    memory_size: int
    validation_size: int
    validation_share: float
    memory_batch_size: int | None
    temperature: float
    memory: Reservoir
    validation: Reservoir
    teacher: nn.Module | None
    past_classes: set[int]
    model: BiasCorrected

    def forget(self) -> None:
        """Empty memory."""
        self.memory, self.validation = (
            Reservoir(self.memory_size),
            Reservoir(self.validation_size),
        )
        self.teacher, self.past_classes = None, set()
        self._replay: list[Tensor] | None = None

    def epoch_tensors(self) -> list[Tensor]:
        """Return the present samples but for those held out."""
        self._learnt, _ = self._parted()
        return self.gathered(self._learnt[0])

    def _parted(self) -> tuple[tuple[Tensor, Tensor], Reservoir]:
        """Return rows and keys of the present samples to train on, and validation with the rest."""
        rows, keys = keys_of(self.experience.origin, self._seed)
        labels = labels_of(self.stream, rows)
        order = keys.argsort(descending=True)
        offered = torch.zeros(len(rows), dtype=torch.bool)
        for label in sorted(set(labels.tolist())):
            of_class = order[labels[order] == label]
            offered[of_class[: int(self.validation_share * len(of_class))]] = True
        validation = Reservoir(self.validation_size, self.validation.rows, self.validation.keys)
        of_all = torch.cat([labels_of(self.stream, validation.rows), labels[offered]])
        validation.offer_balanced(rows[offered], keys[offered], of_all)
        learnt = ~torch.isin(keys, validation.keys)
        return (rows[learnt], keys[learnt]), validation

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        if not len(self.memory):
            return
        if self._replay is None:
            self._replay = self.gathered(self.memory.rows)
        memory = self.draw_from(self._replay, self.memory_batch_size or self.train_mb_size)
        self.dataloader = ReplayBatches(self.dataloader, memory)

    def criterion(self) -> Tensor:
        """Return ``(1 - n / (n + m)) CE + n / (n + m) * distillation`` for n past classes, m new.

        Upstream's softmax of the teacher runs over the batch instead of the classes, at a
        temperature of 2 whatever was asked for.
        """
        loss: Tensor = super().criterion()
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(self.mbatch[0])
        past = sorted(self.past_classes)
        share = len(past) / len(self.past_classes | self.experience.classes_in_this_experience)
        target = (taught[:, past] / self.temperature).softmax(1)
        distilled = F.cross_entropy(self.mb_output[:, past] / self.temperature, target)
        return (1 - share) * loss + share * distilled

    def end_turn(self) -> None:
        """Fit the correction to the weights that the turn leaves."""
        super().end_turn()
        self._fit()

    def _fit(self) -> None:
        """Correct the present classes, if there are past ones to tell them from."""
        classes = torch.tensor(sorted(self.experience.classes_in_this_experience))
        _, validation = self._parted()
        labels = labels_of(self.stream, validation.rows)
        of_present = torch.isin(labels, classes)
        classes = classes.to(self.device)
        alpha, beta = self.model.alpha[classes], self.model.beta[classes]
        if self.teacher is None:
            alpha, beta = torch.ones(()), torch.zeros(())
        elif bool(of_present.any()) and not bool(of_present.all()):
            x, y, _ = self.gathered(validation.rows)
            with second_pass(self.model), torch.no_grad():
                logits = self.model.model(x)
            alpha, beta = fit_correction(logits, y, classes)
        self.model.correct(classes, alpha, beta)

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self._fit()
        self.teacher = copy.deepcopy(self.model).eval().requires_grad_(False)
        (rows, keys), self.validation = self._parted()
        labels = labels_of(self.stream, torch.cat([self.memory.rows, rows]))
        self.memory.offer_balanced(rows, keys, labels)
        self.past_classes = self.past_classes | self.experience.classes_in_this_experience
        self._replay = None
