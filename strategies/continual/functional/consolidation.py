"""Consolidation: what an experience leaves behind, measured on its data, once an experience."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedlearn.losses import Loss
from fedlearn.types import LocalTraining
from strategies.continual.functional.method import Learnt, Method
from strategies.continual.functional.network import Live
from strategies.continual.functional.step import by_leaves
from strategies.continual.functional.trees import Batch, Tree, batch_of


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
        with live.at(weights):
            importance = _importance(live, method, criterion, batches)
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


def _importance(live: Live, method: Method[Any], criterion: Loss, batches: Sequence[Batch]) -> Tree:
    """Return how much each element of the leaves matters, the mean over the batches."""
    totals = {name: torch.zeros_like(leaf) for name, leaf in live.leaves.items()}
    for batch in batches:

        def sensitivity(params: Tree, batch: Batch = batch) -> Tensor:
            return method.sensitivity(live, params, batch, criterion)

        _, gradient = by_leaves(sensitivity, live.leaves)
        with torch.no_grad():
            for name, each in gradient.items():
                method.add_importance(totals[name], each)
    return {name: total.div_(len(batches)) for name, total in totals.items()}
