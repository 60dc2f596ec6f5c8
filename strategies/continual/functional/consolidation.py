"""Consolidation: what an experience leaves behind, measured on its data, once an experience."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlearn.losses import Loss
from fedlearn.types import LocalTraining
from strategies.continual.functional.method import Learnt, Method
from strategies.continual.functional.network import Live, Network
from strategies.continual.functional.step import Differentiate, by_leaves
from strategies.continual.functional.trees import Batch, Tree, batch_of


@dataclass(frozen=True)
class Survey:
    """A pure function: importances so far, and a batch, to importances with the batch's added.

    The mean over an experience's batches is what `Method.consolidate` gets.

    Attributes:
        method: Says what matters.
        network: The model in evaluation mode.
        criterion: Loss of the experience.
        differentiate: As for `strategies.continual.functional.step.Step`.
    """

    method: Method[Any]
    network: Network
    criterion: Loss
    differentiate: Differentiate

    def __call__(self, total: Tree, params: Tree, batch: Batch) -> Tree:
        """Add a batch.

        Args:
            total: The sum over batches so far; all zeros at first.
            params: The trainable weights where the experience is consolidated.
            batch: Samples of the experience.
        """
        _, gradient = self.differentiate(
            lambda weights: self.method.sensitivity(self.network, weights, batch, self.criterion),
            params,
        )
        with torch.no_grad():
            return {
                name: summed + self.method.importance(gradient[name])
                if name in gradient
                else summed
                for name, summed in total.items()
            }


def batches_of(samples: Sequence[Tensor], batch_size: int) -> list[Batch]:
    """Return the batches of an experience's samples, in the order of the samples."""
    return [
        batch_of(parts)
        for parts in zip(*(torch.split(each, batch_size) for each in samples), strict=True)
    ]


def learnt(
    live: Live,
    method: Method[Any],
    criterion: Loss,
    batches: Sequence[Batch],
    weights: Tree,
    classes: Tensor,
) -> Learnt:
    """Return what one client's experience leaves behind.

    Args:
        live: The model.
        method: The continual strategy.
        criterion: Loss of the experience.
        batches: The experience's samples.
        weights: Parameters and buffers where it is consolidated.
        classes: (heads, C) bool, the labels of its samples, by head.
    """
    importance: Tree = {}
    if method.measures:
        survey = Survey(method, live, criterion, by_leaves)
        importance = {name: torch.zeros_like(weights[name]) for name in live.trainable}
        with live.at(weights):
            for batch in batches:
                importance = survey(importance, live.leaves, batch)
        importance = {name: total / len(batches) for name, total in importance.items()}
    return Learnt(weights, importance, classes)


def logits_of(live: Live, batches: Sequence[Batch], weights: Tree) -> Tensor:
    """Return the model's logits (n, C) at `weights`, in evaluation mode, on the CPU."""
    with live.at(weights), torch.no_grad():
        return torch.cat([live.logits(live.leaves, batch) for batch in batches]).cpu()


def classes_of(labels: Tensor, task_label: int, training: LocalTraining) -> Tensor:
    """Return (heads, C) bool: `labels` (n,) in the row of their head, 0 where there is one head."""
    heads = 1 if training.heads is None else len(training.heads)
    table = torch.zeros(heads, training.num_classes, dtype=torch.bool, device=labels.device)
    if not labels.is_floating_point():  # a regression has none
        table[0 if training.heads is None else task_label, labels] = True
    return table
