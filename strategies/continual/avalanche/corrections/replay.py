"""Experience replay, corrected."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin
from torch import Tensor

from strategies.continual.avalanche.corrections.selection import Selection
from strategies.continual.batches import ReplayBatches
from strategies.continual.reservoir import Reservoir


class Replay(ReplayPlugin):  # type: ignore[misc]
    """Experience replay from a memory balanced over experiences, by reservoir sampling."""

    def __init__(self, mem_size: int, batch_size_mem: int | None) -> None:
        """Create the plugin.

        Args:
            mem_size: Samples kept over all experiences.
            batch_size_mem: Samples from memory a step; None for as many as the batch has.
        """
        super().__init__(mem_size, batch_size_mem=batch_size_mem)
        self._memory: list[Tensor] | None = None

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Build no loader: every epoch has its own."""

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Let each batch be followed by one from memory."""
        if self._memory is None:
            groups = [group.buffer for group in self.storage_policy.buffer_groups.values()]
            parts = [strategy.remembered(samples) for samples in groups if len(samples)]
            self._memory = [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
        if self._memory:
            size = self.batch_size_mem or strategy.train_mb_size
            memory = strategy.draw_from(self._memory, size)
            strategy.dataloader = ReplayBatches(strategy.dataloader, memory)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Put samples of the experience into memory."""
        # Upstream calls storage_policy.update, which is deprecated and, each time it is called,
        # changes the warning filters of the whole program.
        self.storage_policy.post_adapt(strategy, strategy.experience)
        self._memory = None


class SelectiveReplay(SupervisedPlugin):  # type: ignore[misc]
    """Experience replay from a memory of names of samples.

    Attributes:
        memory: Samples of past experiences.
    """

    def __init__(self, selection: Selection, memory_batch_size: int | None) -> None:
        """Create the plugin.

        Args:
            selection: Decides what memory keeps.
            memory_batch_size: Samples from memory a step; None for as many as the batch has.
        """
        super().__init__()
        self.memory = Reservoir(selection.size)
        self._select = selection
        self._memory_batch_size = memory_batch_size
        self._samples: list[Tensor] | None = None

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Let each batch be followed by one from memory."""
        if not len(self.memory):
            return
        if self._samples is None:
            self._samples = strategy.gathered(self.memory.rows)
        size = self._memory_batch_size or strategy.train_mb_size
        memory = strategy.draw_from(self._samples, size)
        strategy.dataloader = ReplayBatches(strategy.dataloader, memory)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Put samples of the experience into memory."""
        self.memory = self._select(strategy, self.memory)
        self._samples = None
