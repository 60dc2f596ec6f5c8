"""ER-AML, corrected."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.continual.avalanche.corrections.er_ace import AsymmetricReplay
from strategies.continual.avalanche.networks.features import head_of, inputs_of
from strategies.continual.batches import Change
from strategies.continual.reservoir import labels_of


class Partners:
    """Samples of the present classes to compare a batch with: of the same class, and of others.

    Upstream draws as many samples of each class as a batch has, with a loader that drops what does
    not fill a batch and starts over: a class of which memory holds less makes it loop for ever. It
    fails where a batch has no sample of another class. And it looks for other classes among all
    samples of the same task label, which in class-incremental learning are all there are: the past
    classes, which the paper keeps out of this loss, too.
    """

    def __init__(self, tensors: list[Tensor], generator: torch.Generator) -> None:
        """Sort samples by class.

        Args:
            tensors: Inputs (n, *input_shape), labels (n,) and task labels (n,).
            generator: Of every draw.
        """
        order = tensors[1].argsort(stable=True)
        self._tensors = [tensor[order] for tensor in tensors]
        self._counts = torch.bincount(tensors[1].cpu())
        self._starts = self._counts.cumsum(0) - self._counts
        self._generator = generator

    def draw(self, labels: Tensor) -> list[Tensor]:
        """Return one sample of the same class for each of `labels` (batch,), then of others.

        Where there is no other class, there are no others.
        """
        labels = labels.cpu()
        starts, counts = self._starts[labels], self._counts[labels]
        others = len(self._tensors[0]) - counts
        same = starts + (self._uniform(labels) * counts).long()
        rows = same
        if bool(others.all()):
            other = (self._uniform(labels) * others).long()
            rows = torch.cat([same, other + counts * (other >= starts)])
        return [tensor[rows.to(tensor.device)] for tensor in self._tensors]

    def _uniform(self, labels: Tensor) -> Tensor:
        return torch.rand(len(labels), generator=self._generator, dtype=torch.float64)


class ERAML(AsymmetricReplay):
    """Experience replay with asymmetric metric learning, turn by turn.

    Attributes:
        temperature: Of the similarities.
        base_temperature: The metric loss is multiplied by `temperature` / `base_temperature`.
    """

    temperature: float
    base_temperature: float

    def forget(self) -> None:
        """Empty memory."""
        super().forget()
        self._head = head_of(self.model, "er_aml")
        self._candidates: list[Tensor] | None = None
        self._partners: Partners | None = None
        self._change: Change | None = None

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        self._partners = None
        if self._draw is not None:
            if self._candidates is None:
                self._candidates = self._samples_of_present_classes()
            # The epoch's second draw from memory, as it were: the first is what it replays.
            epoch = self._next_epoch - 1
            generator = torch.Generator().manual_seed(self._seed("replay", epoch, 1))
            self._partners = Partners(self._candidates, generator)
            self._change = self._augmentation(epoch, 2)

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self._candidates = None

    def _samples_of_present_classes(self) -> list[Tensor]:
        """Return inputs, labels and task labels of the present samples, and of memory's like."""
        present = self.experience.tensors(self.device)
        labels = labels_of(self.stream, self.memory.rows)
        rows = self.memory.rows[torch.isin(labels, present[1].cpu())]
        if not len(rows):
            return present
        pairs = zip(present, self.gathered(rows), strict=True)
        return [torch.cat(pair) for pair in pairs]

    def _before_forward(self, **kwargs: Any) -> None:
        labels = self.mb_y
        super()._before_forward(**kwargs)
        if self._partners is not None:
            partners = self._partners.draw(labels)
            if self._change is not None:
                partners[0] = self._change(partners[0])
            self._anchors = len(labels)
            self._in_comparison = torch.cat([labels, partners[1]])
            self.mbatch = [torch.cat(pair) for pair in zip(self.mbatch, partners, strict=True)]

    def forward(self) -> Tensor:
        """Return logits (batch, C), and remember the features that they come from."""
        with inputs_of(self._head) as features:
            output = super().forward()
        self._features = features[-1].float()
        return output

    def criterion(self) -> Tensor:
        """Return CE(memory) plus the metric loss of the present batch and its partners.

        Upstream calls ``cross_entropy`` itself, whatever the criterion is.
        """
        replayed = self._replayed_in_batch
        if not replayed:
            plain: Tensor = super().criterion()
            return plain
        past: Tensor = self._criterion(self.mb_output[:replayed], self.mb_y[:replayed])
        metric = contrast(
            self._features[replayed:], self._in_comparison, self._anchors, self.temperature
        )
        loss: Tensor = past + self.temperature / self.base_temperature * metric
        return loss


def contrast(features: Tensor, labels: Tensor, anchors: int, temperature: float) -> Tensor:
    """Return the mean loss of the first `anchors` samples against all the others, a scalar.

    That of an anchor is the mean of ``-log p(other)`` over the others of its class, p being the
    softmax over all others of the cosine similarity divided by `temperature`.

    Upstream lays the softmax's normaliser out as a row where it should be a column, so that each
    pair is normalised by another anchor's similarities.

    Args:
        features: (anchors + others, ...).
        labels: (anchors + others,) int64; each anchor's is that of some other.
        anchors: At least 1.
        temperature: Greater than 0.
    """
    units = F.normalize(features.flatten(1), dim=1, eps=1e-5)
    log_p = (units[:anchors] @ units[anchors:].T / temperature).log_softmax(1)
    alike = labels[:anchors, None] == labels[None, anchors:]
    return -((log_p * alike).sum(1) / alike.sum(1)).mean()
