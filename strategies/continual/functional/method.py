"""What a continual strategy is made of: pure functions of weights, batches and memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor

from fedlearn.losses import Loss
from strategies.continual.functional.network import Network
from strategies.continual.functional.springs import Spring
from strategies.continual.functional.trees import Batch, Tree, together

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
    moving: ClassVar[tuple[str, ...]] = ()
    """Fields of the memory that `after_step` changes; it leaves the others as they are."""
    measures: ClassVar[bool] = False
    """Whether consolidation needs a pass over the experience's data."""
    projects: ClassVar[bool] = False
    """Whether the gradient is compared with that of `reference`."""
    blends: ClassVar[bool] = False
    """Whether what is replayed counts in `loss` as if it were part of the present batch."""

    def enter(self, memory: M | None, params: Tree, network: Network) -> M | None:
        """Return the memory at an experience's start, after the one before was consolidated."""
        return memory

    def loss(
        self, network: Network, params: Tree, batch: Batch, memory: M | None, criterion: Loss
    ) -> Tensor:
        """Return the part of the loss, a scalar, that autograd differentiates."""
        if self.blends and "replayed" in batch:
            batch = together(batch, batch["replayed"])
        return mean_loss(criterion, network.logits(params, batch), batch)

    def teacher(self, memory: M) -> Tree | None:
        """Return the weights that `loss` has taught by, if it calls `Network.teach`."""
        return None

    def springs(self, memory: M) -> Sequence[Spring]:
        """Return the quadratic part of the loss."""
        return ()

    def reference(self, network: Network, params: Tree, batch: Batch, criterion: Loss) -> Tensor:
        """Return the loss, a scalar, whose gradient `adjust_gradient` compares with.

        Args:
            network: The model.
            params: The trainable weights.
            batch: What is replayed.
            criterion: Loss of the present experience.
        """
        return mean_loss(criterion, network.logits(params, batch), batch)

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
        """Return the scalar whose gradient tells how much each parameter matters for a batch.

        Args:
            network: The model, in evaluation mode.
            params: The trainable weights.
            batch: Samples of the experience; nothing is replayed.
            criterion: Its loss.
        """
        return mean_loss(criterion, network.logits(params, batch), batch)

    def importance(self, gradient: Tensor) -> Tensor:
        """Return how much each element matters, given its gradient."""
        raise NotImplementedError

    def add_importance(self, total: Tensor, gradient: Tensor) -> None:
        """Add `importance` to `total`, in place; to be overridden where it takes fewer passes."""
        total.add_(self.importance(gradient))

    def consolidate(self, memory: M | None, learnt: Learnt) -> M | None:
        """Return the memory at an experience's end."""
        return memory

    def completed(self, memory: M) -> M:
        """Return `memory` with its `derived` fields."""
        return memory


def mean_loss(criterion: Loss, logits: Tensor, batch: Batch) -> Tensor:
    """Return the weighted mean of the loss over the samples that are present, at least one."""
    present = batch.get("present")
    if present is None:
        return criterion(logits, batch["y"])
    losses, weights = criterion.terms(logits, batch["y"])
    weights = weights * present
    return (losses * weights).sum() / weights.sum()


def mean(values: Tensor, batch: Batch) -> Tensor:
    """Return the mean of `values` (batch,) over the samples that are present, at least one."""
    present = batch.get("present")
    if present is None:
        return values.mean()
    return (values * present).sum() / present.sum().to(values.dtype)
