"""Batches cut from tensors: no ``DataLoader``, no collation of single samples.

Avalanche's loaders collate samples one by one, which costs more than the training of a small model.
These give the same batches from tensors gathered once a turn.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Batch = list[Tensor]
"""One batch: tensors of equal length, in the order inputs, labels, task labels, ..."""

Change = Callable[[Tensor], Tensor]
"""What happens to the inputs of each batch as it is drawn: augmentation."""


def batch_sizes(num_samples: int, batch_size: int, avoid_one: bool) -> list[int]:
    """Return the sizes of an epoch's batches, which add up to `num_samples`.

    Args:
        num_samples: At least 1.
        batch_size: At least 1.
        avoid_one: Whether a last batch of one sample takes one from the batch before, where that
            leaves it more than one: batch normalisation cannot train on a single sample.
    """
    full, last = divmod(num_samples, batch_size)
    sizes = [batch_size] * full + ([last] if last else [])
    if avoid_one and last == 1 and full and batch_size > 2:
        sizes[-2:] = [batch_size - 1, 2]
    return sizes


class TensorBatches:
    """One epoch over tensors: every sample once, in the given order, the last batch maybe smaller.

    Equals ``DataLoader(batch_size, shuffle=True, drop_last=False)`` for the same order, unless
    `avoid_one` changes the last two batches; see `batch_sizes`.

    Attributes:
        sizes: Samples of each batch.
        order: (n,) int64, the positions of the samples in the order of the batches.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        order: Tensor,
        avoid_one: bool = False,
        change: Change | None = None,
    ) -> None:
        """Cut batches.

        Args:
            tensors: Each (n, ...).
            batch_size: At least 1.
            order: (n,) int64, a permutation.
            avoid_one: See `batch_sizes`.
            change: Of the inputs, batch by batch; None for the inputs as they are.
        """
        self._change = change
        self.order = order
        self.sizes = batch_sizes(len(order), batch_size, avoid_one)
        self._parts = [torch.split(tensor.index_select(0, order), self.sizes) for tensor in tensors]

    def __len__(self) -> int:
        return len(self._parts[0])

    def __iter__(self) -> Iterator[Batch]:
        batches = map(list, zip(*self._parts, strict=True))
        if self._change is None:
            return batches
        return ([self._change(x), *others] for x, *others in batches)


def memory_sizes(num_samples: int, batch_size: int, drop_last: bool) -> tuple[int, int]:
    """Return the size of batches from memory, and how many samples each shuffle gives.

    Args:
        num_samples: In memory, at least 1.
        batch_size: Asked for, at least 1.
        drop_last: Whether to leave out what does not fill a batch before each new shuffle.
    """
    size = min(batch_size, num_samples)
    return size, num_samples - num_samples % size if drop_last else num_samples


class MemoryBatches:
    """Endless batches from memory: without replacement until it is used up, then shuffled anew.

    The same as Avalanche's ``MultiDatasetSampler`` does with the smaller data set of a
    ``ReplayDataLoader``, and as its ``cycle`` over a shuffled ``DataLoader``.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        batch_size: int,
        generator: torch.Generator,
        drop_last: bool = False,
        change: Change | None = None,
    ) -> None:
        """Start at the first batch.

        Args:
            tensors: Each (n, ...), n at least 1.
            batch_size: At least 1.
            generator: Draws every shuffle.
            drop_last: Whether to leave out what does not fill a batch before each new shuffle.
            change: Of the inputs, batch by batch; None for the inputs as they are.
        """
        self._change = change
        self._tensors = tensors
        self._batch_size, self._size = memory_sizes(len(tensors[0]), batch_size, drop_last)
        self._generator = generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._next = self._size
        self.drawn = 0

    def __iter__(self) -> "MemoryBatches":
        return self

    def __next__(self) -> Batch:
        if self._next >= self._size:
            order = torch.randperm(len(self._tensors[0]), generator=self._generator)
            self._order, self._next = order[: self._size].to(self._tensors[0].device), 0
        rows = self._order[self._next : self._next + self._batch_size]
        self._next += self._batch_size
        self.drawn += len(rows)
        batch = [tensor.index_select(0, rows) for tensor in self._tensors]
        if self._change is not None:
            batch[0] = self._change(batch[0])
        return batch


class ReplayBatches:
    """An epoch over the current data, each batch followed by a batch from memory.

    Equals Avalanche's ``ReplayDataLoader``: the current data decide the number of batches, and
    memory comes second in each.
    """

    def __init__(self, current: TensorBatches, memory: MemoryBatches) -> None:
        self._current = current
        self._memory = memory

    def __len__(self) -> int:
        return len(self._current)

    def __iter__(self) -> Iterator[Batch]:
        for batch, remembered in zip(self._current, self._memory, strict=False):
            yield [torch.cat(pair) for pair in zip(batch, remembered, strict=True)]
