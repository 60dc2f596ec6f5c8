"""A-GEM, corrected."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from avalanche.training.plugins import AGEMPlugin
from torch import Tensor

from strategies.continual.batches import Batch, MemoryBatches


class AGEM(AGEMPlugin):  # type: ignore[misc]
    """Averaged gradient episodic memory."""

    def __init__(self, memory_size: int, sample_size: int) -> None:
        """Create the plugin.

        Args:
            memory_size: Samples kept over all experiences.
            sample_size: Samples behind a reference gradient, shared equally by the experiences.
        """
        super().__init__(patterns_per_experience=memory_size, sample_size=sample_size)
        self.buffers: list[Any] = []
        self.buffer_dliter: Iterator[Batch] = iter([])
        self._memory: list[list[Tensor]] | None = None

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Start drawing from memory."""
        if self._memory is None:
            self._memory = [strategy.remembered(buffer) for buffer in self.buffers if len(buffer)]
        if self._memory:
            # Upstream's share is 0, which its loader refuses, once there are more experiences than
            # sample_size. And its loader does not shuffle: an epoch of few steps would see the
            # first samples of memory only.
            share = max(1, self.sample_size // len(self._memory))
            groups = [strategy.draw_from(tensors, share) for tensors in self._memory]
            self.buffer_dliter = together(groups)

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Measure the reference gradient."""
        if not self._memory:
            return
        # Upstream puts every layer in training mode first: also those that the user froze, and
        # batch normalisation that has a single sample before it and must not train on it.
        x, y, task_labels = next(self.buffer_dliter)
        strategy.optimizer.zero_grad()
        strategy._criterion(strategy.logits_of(x, task_labels), y).backward()
        self.reference_gradients = torch.cat(
            [
                parameter.new_zeros(parameter.numel())
                if parameter.grad is None
                else parameter.grad.flatten()
                for parameter in strategy.model.parameters()
            ]
        )
        strategy.optimizer.zero_grad()

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Project the gradient where it would undo memory."""
        if self._memory:
            super().after_backward(strategy, **kwargs)

    def update_memory(self, dataset: Any, num_workers: int = 0, **_: Any) -> None:
        """Put samples of `dataset` into memory and shrink what is there.

        Upstream keeps `patterns_per_experience` of every experience, so memory grows for ever; here
        that number bounds the whole of memory, shared equally by the experiences. Every buffer is
        in random order, so what is left of it is a random part.
        """
        order = list(range(len(dataset)))
        random.shuffle(order)
        buffers = [*self.buffers, dataset.subset(order)]
        share, left = divmod(self.patterns_per_experience, len(buffers))
        sizes = [share + (place < left) for place in range(len(buffers))]
        self.buffers = [
            buffer.subset(range(min(size, len(buffer))))
            for buffer, size in zip(buffers, sizes, strict=True)
        ]
        self._memory = None


def together(groups: list[MemoryBatches]) -> Iterator[Batch]:
    """Yield batches that hold one batch of every group."""
    for parts in zip(*groups, strict=True):
        yield [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
