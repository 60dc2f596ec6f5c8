"""What n clients made of a parameter, without writing down n parameters.

A linear layer's gradient on a batch is a product of two thin matrices, the slopes in its outputs
and its inputs. So what plain SGD makes of a weight in a few steps is the weight it began with less
one product of what those steps saw, which is smaller than the weight; and the clients' mean needs
but a single product over all their samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Deferred:
    """A parameter of n clients: for each k, ``start - rate * left[k].T @ right[k]``.

    Attributes:
        start: (*shape), what all began with.
        rate: The learning rate.
        left: (n, rows, out), slopes in the layer's outputs, of all samples of all steps.
        right: (n, rows, in), the inputs; None for a bias, where they would be ones.
    """

    start: Tensor
    rate: float
    left: Tensor
    right: Tensor | None

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, client: int) -> Tensor:
        """Return one client's parameter, (*shape)."""
        left = self.left[client]
        if self.right is None:
            return self.start.sub(left.sum(0), alpha=self.rate)
        return torch.addmm(self.start, left.mT, self.right[client], alpha=-self.rate)

    def stack(self, out: Tensor | None = None) -> Tensor:
        """Return every client's parameter, (n, *shape).

        Args:
            out: (n, *shape), written to; None for new memory.
        """
        if out is None:
            out = self.start.new_empty(len(self), *self.start.shape)
        out.copy_(self.start)
        if self.right is None:
            return out.sub_(self.left.sum(1), alpha=self.rate)
        return out.baddbmm_(self.left.mT, self.right, alpha=-self.rate)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return the sum over clients of what each has, times its weight, (*shape).

        Args:
            weights: (n,), of the dtype of `start`.
        """
        left = self.left * weights[:, None, None]
        start = self.start * weights.sum()
        if self.right is None:
            return start.sub_(left.sum((0, 1)), alpha=self.rate)
        return start.addmm_(left.flatten(0, 1).t(), self.right.flatten(0, 1), alpha=-self.rate)

    def only(self, clients: list[int]) -> "Deferred":
        """Return what some clients have."""
        right = None if self.right is None else self.right[clients]
        return Deferred(self.start, self.rate, self.left[clients], right)
