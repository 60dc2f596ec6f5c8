"""Evaluation: a model's accuracy and loss on experiences, each in its own domain and head.

The accuracy of a regression is R^2, the share of the targets' variance that is explained: each
sample counts for ``1 - mean_k (prediction_k - target_k)^2``, whose mean it is, because targets have
variance 1 over the training samples. So it adds up exactly over samples, experiences and clients,
as the share of correct answers does. It is at most 1, 0 for a model that always answers with the
mean, and negative for a worse one. (scikit-learn's ``r2_score`` divides by the variance of the
tested samples instead, which differs from one experience and one client to the next.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.heads import head_table, hide
from fedlearn.types import Experience

BATCH = 2048
"""Samples a forward pass: large enough to amortise its overhead, small enough for any image."""


@dataclass(frozen=True)
class Score:
    """How a model did on one experience.

    Attributes:
        correct: Samples classified correctly; of a regression, the sum of what each counts for.
        loss: Sum of their cross-entropies; of a regression, of their squared errors.
        total: Samples seen.
    """

    correct: float
    loss: float
    total: int

    @property
    def accuracy(self) -> float:
        """Share classified correctly, in [0, 1], or R^2, at most 1; NaN without samples."""
        return self.correct / self.total if self.total else float("nan")


class Evaluator:
    """Scores a model on experiences; the model's parameters, buffers and mode stay as they were."""

    def __init__(self, num_classes: int, heads: Sequence[Sequence[int]] | None) -> None:
        """Make an evaluator.

        Args:
            num_classes: C.
            heads: Classes of each head by task label, or None for one head over all classes.
        """
        self._heads = head_table(heads, num_classes) if heads is not None else None

    @torch.no_grad()
    def score(self, model: nn.Module, experience: Experience) -> Score:
        """Return the model's score on every sample of `experience`."""
        was_training = model.training
        model.eval()
        correct, loss = 0.0, 0.0
        for rows in torch.split(experience.rows, BATCH):
            x, y = experience.gather(rows)
            if experience.samples.regression:
                errors = float((model(x) - y).double().square().mean(1).sum())
                correct, loss = correct + len(y) - errors, loss + errors
                continue
            logits = self._visible(model(x), experience.task_label)
            correct += int((logits.argmax(1) == y).sum())
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
        model.train(was_training)
        return Score(correct, loss, len(experience))

    def _visible(self, logits: Tensor, task_label: int) -> Tensor:
        if self._heads is None:
            return logits
        return hide(logits, self._heads[task_label].to(logits.device))
