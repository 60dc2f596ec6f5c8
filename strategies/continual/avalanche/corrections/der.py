"""DER and DER++, corrected."""

from collections import defaultdict
from typing import Any

import torch
from avalanche.benchmarks.utils import make_avalanche_dataset
from avalanche.models import avalanche_forward
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.supervised.der import DER as AvalancheDER  # noqa: N811 - a class's acronym
from avalanche.training.supervised.der import ClassBalancedBufferWithLogits
from torch import Tensor
from torch.nn import functional as F

from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.dataset import attribute_of
from strategies.continual.avalanche.template import TurnByTurn
from strategies.continual.batches import MemoryBatches


class LogitsBuffer(ClassBalancedBufferWithLogits):  # type: ignore[misc]
    """Samples with their logits at the end of their experience, balanced over classes."""

    def update(self, strategy: Any, **_: Any) -> None:
        """Put samples of the experience into memory.

        Upstream runs the bare model, which a task-incremental scenario cannot, and gives the
        classes their sizes in the order of a set, which depends on how the set grew.
        """
        data = strategy.experience.dataset
        samples = make_avalanche_dataset(
            data, data_attributes=[attribute_of("logits", logits(strategy))]
        )
        positions: dict[int, list[int]] = defaultdict(list)
        for position, label in enumerate(data.targets):
            positions[int(label)].append(position)
        self.seen_classes.update(positions)
        sizes = self.get_group_lengths(len(self.seen_classes))
        size_of = dict(zip(sorted(self.seen_classes), sizes, strict=True))
        for label, at in sorted(positions.items()):
            if label not in self.buffer_groups:
                self.buffer_groups[label] = ReservoirSamplingBuffer(size_of[label])
            self.buffer_groups[label].update_from_dataset(samples.subset(at))
        for label, group in self.buffer_groups.items():
            group.resize(strategy, size_of[label])


@torch.no_grad()
def logits(strategy: Any) -> Tensor:
    """Return the model's logits (n, C) on the present experience, in evaluation mode."""
    x, _, t = strategy.experience.tensors(strategy.device)
    size = strategy.train_mb_size
    with second_pass(strategy.model):
        batches = [
            avalanche_forward(strategy.model, inputs, task_labels)
            for inputs, task_labels in zip(x.split(size), t.split(size), strict=True)
        ]
    return torch.cat(batches)


class DER(TurnByTurn, AvalancheDER):  # type: ignore[misc]
    """Dark experience replay, turn by turn.

    Avalanche's differences from the authors' code stay: one forward pass over both batches, one
    batch from memory for both terms, logits from the end of the experience.

    Attributes:
        memory_batch_size: Samples from memory a step; None for as many as the batch has.
    """

    memory_batch_size: int | None = None

    def forget(self) -> None:
        """Empty memory."""
        self.storage_policy = LogitsBuffer(self.mem_size)
        self.batch_size_mem = self.memory_batch_size or self.train_mb_size
        self._memory: list[Tensor] | None = None
        self._draw: MemoryBatches | None = None
        self._replayed_in_batch = 0

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        # Upstream replays only once memory fills a batch, which a client's small memory may never
        # do. With no loader of its own it leaves replay to `_before_forward` and `criterion` below.
        self.replay_loader = None

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        if self._memory is None:
            self._memory = self._remembered_with_logits()
        self._draw = None
        if self._memory:
            self._draw = self.draw_from(self._memory, self.batch_size_mem, drop_last=True)

    def _before_forward(self, **kwargs: Any) -> None:
        super()._before_forward(**kwargs)
        self._replayed_in_batch = 0
        if self._draw is not None:
            *batch, self.batch_logits = next(self._draw)
            self._replayed_in_batch = len(self.batch_logits)
            self.mbatch = [torch.cat(pair) for pair in zip(batch, self.mbatch, strict=True)]

    def criterion(self) -> Tensor:
        """Return CE(current) + alpha * MSE(logits) + beta * CE(memory).

        Upstream calls ``cross_entropy`` itself once it replays, whatever the criterion is.
        """
        replayed = self._replayed_in_batch
        if not replayed:
            plain: Tensor = super().criterion()
            return plain
        output, labels = self.mb_output, self.mb_y
        present: Tensor = self._criterion(output[replayed:], labels[replayed:])
        past: Tensor = self._criterion(output[:replayed], labels[:replayed])
        distance = F.mse_loss(output[:replayed], self.batch_logits)
        loss: Tensor = present + self.alpha * distance + self.beta * past
        return loss

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self._memory = None

    def _remembered_with_logits(self) -> list[Tensor]:
        """Return inputs, labels, task labels and logits of all of memory, if it holds any."""
        parts = []
        for _, group in sorted(self.storage_policy.buffer_groups.items()):
            if len(group.buffer):
                kept = torch.stack(list(group.buffer.logits)).to(self.device)
                parts.append([*self.remembered(group.buffer), kept])
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]
