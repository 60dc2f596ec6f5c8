"""What a continual strategy is made of: pure functions of weights, batches and memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from fedlearn.losses import Loss
from strategies.continual.functional.network import Network
from strategies.continual.functional.springs import Spring
from strategies.continual.functional.trees import Batch, Tree

M = TypeVar("M")
"""A method's memory: a ``NamedTuple`` of trees and tensors, whose shapes do not depend on how many
experiences have passed, so that the memories of many clients can be stacked."""


class Learnt(NamedTuple):
    """What an experience leaves behind when it is consolidated.

    Attributes:
        weights: Parameters and buffers where it is consolidated.
        importance: Mean of `Method.importance` over the experience's batches; empty for a method
            that measures none.
        classes: (heads, C) bool, the labels that the client has met, by head; one head where the
            scenario has no task labels.
    """

    weights: Tree
    importance: Tree
    classes: Tensor


@dataclass(frozen=True)
class Method(Generic[M]):
    """A continual strategy; this one is plain fine-tuning.

    None of its functions changes its arguments, draws a random number or looks at a tensor's
    values, so all of them work under ``torch.func.vmap``.
    """

    memory: ClassVar[type[Any] | None] = None
    """Type of the memory; None for a method that has none."""
    derived: ClassVar[tuple[str, ...]] = ()
    """Fields of the memory that `completed` works out from the others, and nobody keeps."""
    measures: ClassVar[bool] = False
    """Whether consolidation needs a pass over the experience's data."""
    projects: ClassVar[bool] = False
    """Whether the gradient is compared with that of `reference`."""

    def blank(self, network: Network, weights: Tree) -> M | None:
        """Return the memory of a client that has seen nothing, in its full shape.

        Only clients that are stacked with others need it: alone, such a client has None.

        Args:
            network: The model.
            weights: Its parameters and buffers.
        """
        return None

    def enter(self, memory: M | None, params: Tree, network: Network) -> M | None:
        """Return the memory at an experience's start, after the one before was consolidated."""
        return memory

    def loss(
        self, network: Network, params: Tree, batch: Batch, memory: M | None, criterion: Loss
    ) -> Tensor:
        """Return the part of the loss, a scalar, that autograd differentiates."""
        return mean_loss(criterion, network.logits(params, batch), batch)

    def springs(self, memory: M) -> Sequence[Spring]:
        """Return the quadratic part of the loss."""
        return ()

    def reference(self, network: Network, params: Tree, batch: Batch, criterion: Loss) -> Tensor:
        """Return the loss, a scalar, whose gradient `adjust_gradient` compares with."""
        raise NotImplementedError

    def adjust_gradient(self, gradient: Tree, reference: Tree) -> Tree:
        """Return the gradient to follow instead of `gradient`, given that of `reference`."""
        return gradient

    def after_step(self, memory: M, before: Tree, after: Tree, gradient: Tree) -> M:
        """Return the memory after a step.

        Args:
            memory: As it was.
            before: Trainable weights before the step.
            after: And after it.
            gradient: Of the whole loss, penalties included, before clipping.
        """
        return memory

    def sensitivity(self, network: Network, params: Tree, batch: Batch, criterion: Loss) -> Tensor:
        """Return the scalar whose gradient tells how much each parameter matters for a batch."""
        raise NotImplementedError

    def importance(self, gradient: Tensor) -> Tensor:
        """Return how much each element matters, given its gradient."""
        raise NotImplementedError

    def consolidate(self, memory: M | None, learnt: Learnt) -> M | None:
        """Return the memory at an experience's end."""
        return memory

    def completed(self, memory: M) -> M:
        """Return `memory` with its `derived` fields."""
        return memory


def mean_loss(criterion: Loss, logits: Tensor, batch: Batch) -> Tensor:
    """Return the weighted mean of the loss over the samples that are present; 0 where none is."""
    present = batch.get("present")
    if present is None:
        return criterion(logits, batch["y"])
    losses, weights = criterion.terms(logits, batch["y"])
    weights = weights * present
    return (losses * weights).sum() / _positive(weights.sum())


def mean(values: Tensor, batch: Batch) -> Tensor:
    """Return the mean of `values` (batch,) over the samples that are present; 0 where none is."""
    present = batch.get("present")
    if present is None:
        return values.mean()
    return (values * present).sum() / _positive(present.sum().to(values.dtype))


def _positive(total: Tensor) -> Tensor:
    return total.clamp(min=torch.finfo(total.dtype).tiny)
