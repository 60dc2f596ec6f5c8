"""Trees: tensors by name, and the little arithmetic that local training needs on them."""

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

Tree = dict[str, Tensor]
"""Tensors by the name of the parameter or buffer that they belong to."""


class Batch(TypedDict):
    """What one step learns from. A plain dictionary, which ``vmap`` can take apart.

    Attributes:
        x: (batch, *input_shape).
        y: (batch,), the labels.
        task: (batch,) int64, the task label of each sample, where there are heads.
        present: (batch,) bool, which samples are there and not padding; all where it is missing.
        logits: (batch, C), what the model once said of a remembered sample.
        replayed: The samples from memory that this step learns from too.
    """

    x: Tensor
    y: Tensor
    task: NotRequired[Tensor]
    present: NotRequired[Tensor]
    logits: NotRequired[Tensor]
    replayed: NotRequired["Batch"]


def batch_of(tensors: Sequence[Tensor]) -> Batch:
    """Return inputs, labels and, where they are given, task labels as a batch."""
    if len(tensors) == 2:
        return {"x": tensors[0], "y": tensors[1]}
    return {"x": tensors[0], "y": tensors[1], "task": tensors[2]}


def together(one: Batch, other: Batch) -> Batch:
    """Return one batch of the samples of both, those of `one` first."""
    both: Batch = {
        "x": torch.cat([one["x"], other["x"]]),
        "y": torch.cat([one["y"], other["y"]]),
    }
    if "task" in one:
        both["task"] = torch.cat([one["task"], other["task"]])
    if "present" in one:
        both["present"] = torch.cat([one["present"], other["present"]])
    return both


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Tensor:
    """Return the inner product of two trees over the names that both have, a scalar.

    There must be at least one.
    """
    parts = [torch.dot(one[name].flatten(), other[name].flatten()) for name in one if name in other]
    return torch.stack(parts).sum()


def norm(tree: Mapping[str, Tensor]) -> Tensor:
    """Return the L2 norm of all of a tree, a scalar; it must not be empty."""
    norms = [torch.linalg.vector_norm(tensor) for tensor in tree.values()]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def clipped(tree: Tree, length: Tensor, max_norm: float) -> Tree:
    """Return `tree`, whose norm is `length`, shortened to `max_norm` where it is longer.

    The same as `torch.nn.utils.clip_grad_norm_`, its 1e-6 included.
    """
    factor = torch.clamp(max_norm / (length + 1e-6), max=1.0)
    return {name: tensor * factor for name, tensor in tree.items()}
