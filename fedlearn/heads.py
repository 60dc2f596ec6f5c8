"""Heads: which of the model's outputs a sample may use.

The model has one full-size head of C outputs. A task-incremental scenario gives each task a head of
its own, which is the same as hiding the outputs of all the others. ``head.mask`` hides, in the
training loss only (`fedlearn.losses`), the classes of other experiences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

HIDDEN = -1e4
"""The logit of a hidden output: exp of it is exactly 0, and it is finite, so norms of logits and
products with 0 stay finite (minus infinity would turn MAS's squared norm into NaN)."""


def head_table(heads: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """Return (num_heads, num_classes) bool: which outputs belong to which head."""
    table = torch.zeros(len(heads), num_classes, dtype=torch.bool)
    for head, classes in enumerate(heads):
        table[head, list(classes)] = True
    return table


def companion_table(groups: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """Return (num_classes, num_classes) bool: row y marks the classes that share a group with y."""
    table = torch.zeros(num_classes, num_classes, dtype=torch.bool)
    for row in head_table(groups, num_classes):
        table |= row[:, None] & row[None, :]
    return table


def hide(logits: Tensor, visible: Tensor) -> Tensor:
    """Return `logits` (batch, C) with every output that is not `visible` (broadcastable) hidden."""
    return logits.masked_fill(~visible, HIDDEN)
