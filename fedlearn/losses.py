"""Losses of local training: a term and a weight for each sample, and their weighted mean.

The mean over a batch is ``sum(weights * losses) / sum(weights)``: what torch's cross-entropy does
with class weights, and the plain mean where all weights are 1. A vectorised engine multiplies the
weights by 0 where its batches are padded.

An output that is hidden (`fedlearn.heads.HIDDEN`: another task's head, or another experience's
classes under ``head.mask``) counts in no loss: not in its sum, its mean or its smoothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlearn.heads import HIDDEN, companion_table, hide
from fedlearn.types import LocalTraining, LossName


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of one client's turn. Works under ``torch.func.vmap``.

    `terms` of a sample with K visible outputs z and label y, whose one-hot target is t:

    - ``"cross_entropy"``: ``-(1-s) log p_y - s/K sum_k log p_k``, s the label smoothing; without
      it, exactly `torch.nn.functional.cross_entropy`.
    - ``"bce"``: the sum over the visible outputs of the binary cross-entropy of ``sigmoid(z_k)``
      and t_k, one against all. A sum, not torch's mean, so that a logit's gradient, ``sigmoid(z_k)
      - t_k``, is on the scale of the cross-entropy's and the same learning rate suits both.
    - ``"mse"``: the mean over the visible outputs of ``(z_k - t_k)^2``, torch's ``mse_loss``.

    Attributes:
        kind: Of the terms.
        label_smoothing: s, in [0, 1); for the cross-entropy only.
        class_weights: (C,) float, what a sample of each class weighs; None for 1 each.
        companions: (C, C) bool, the outputs that a sample of each class sees; None for all.
    """

    kind: LossName = "cross_entropy"
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    companions: Tensor | None = None

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted mean of `terms`, a scalar; arguments as there."""
        if self.kind == "cross_entropy" and self.class_weights is None and not self.label_smoothing:
            return F.cross_entropy(self._seen(logits, labels), labels)  # in one kernel
        losses, weights = self.terms(logits, labels)
        return (losses * weights).sum() / weights.sum()

    def terms(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (batch,) and the weight (batch,) of each sample.

        Args:
            logits: (batch, C), float32.
            labels: (batch,) int64; for ``"mse"`` also floating targets (batch,), where C is 1, or
                (batch, C), each of weight 1.
        """
        if labels.is_floating_point():
            targets = labels.reshape(logits.shape)
            return (logits - targets).square().mean(1), logits.new_ones(len(logits))
        logits = self._seen(logits, labels)
        if self.class_weights is None:
            weights = logits.new_ones(len(logits))
        else:
            weights = self.class_weights.to(logits)[labels]
        if self.kind == "cross_entropy":
            return self._cross_entropy(logits, labels), weights
        visible = logits != HIDDEN
        targets = (labels[:, None] == torch.arange(logits.shape[1], device=labels.device)).to(
            logits.dtype
        )
        if self.kind == "bce":
            each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
            return each.masked_fill(~visible, 0).sum(1), weights
        each = (logits - targets).square().masked_fill(~visible, 0)
        return each.sum(1) / visible.sum(1), weights

    def _seen(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return `logits` with what a sample's class must not see hidden."""
        if self.companions is None:
            return logits
        return hide(logits, self.companions.to(logits.device)[labels])

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if not self.label_smoothing:
            return F.cross_entropy(logits, labels, reduction="none")
        visible = logits != HIDDEN
        log_p = logits.log_softmax(1)
        own = log_p.gather(1, labels[:, None]).squeeze(1)
        spread = log_p.masked_fill(~visible, 0).sum(1) / visible.sum(1)
        return -(1 - self.label_smoothing) * own - self.label_smoothing * spread


def make_loss(training: LocalTraining, labels: Tensor | None) -> Loss:
    """Return the loss of a turn.

    Args:
        training: Which loss, and its options.
        labels: (n,) labels of the client's present experience, for the class balance; None where
            there are none yet: all classes then weigh the same.
    """
    weights = None
    if training.class_balance is not None and labels is not None:
        weights = class_weights(labels, training.num_classes, training.class_balance)
    companions = None
    if training.mask_loss is not None:
        companions = _companions(training.mask_loss, training.num_classes)
        companions = companions if labels is None else companions.to(labels.device)
    return Loss(training.loss, training.label_smoothing, weights, companions)


def class_weights(labels: Tensor, num_classes: int, beta: float) -> Tensor:
    """Return (C,) float32: the class-balanced weights of Cui et al.

    Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie, "Class-Balanced Loss Based on Effective Number
    of Samples", CVPR 2019, eq. 4: ``(1-beta) / (1-beta^n_c)`` for a class with n_c samples,
    normalised as in their section 4.1 so that the weights of all classes add up to their number.
    Deviations: the classes counted are those present, since n_c = 0 has no effective number; a
    class that comes from memory only has the mean weight, 1. And the batch's mean is divided by
    its weights, not by its size, so that a step's length does not depend on the batch's luck.

    Args:
        labels: (n,) int64.
        num_classes: C.
        beta: In [0, 1); 0 weighs all classes the same, towards 1 by their inverse frequency.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    present = counts > 0
    weights = torch.ones_like(counts)
    raw = (1 - beta) / (1 - beta ** counts[present])
    weights[present] = raw * (len(raw) / raw.sum())
    return weights.float()


@lru_cache(maxsize=16)
def _companions(groups: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    return companion_table(groups, num_classes)
