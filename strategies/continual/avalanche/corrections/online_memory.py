"""A memory that takes in every batch as it is learnt."""

from typing import Any

import torch
from torch import Tensor

from strategies.continual.avalanche.template import TurnByTurn
from strategies.continual.reservoir import Reservoir, keys_of


class OnlineMemory(TurnByTurn):
    """Mix-in, left of an Avalanche template: a uniform part of all samples seen so far.

    Avalanche's ``MER`` and ``LaMAML`` fill memory at an experience's end; their papers' algorithms
    after each step, so that memory holds samples of the present, too. So here. A client sees its
    samples many times, and a sample has the same chance whether it is seen once or a hundred times:
    see `reservoir`.

    Attributes:
        memory_size: Samples kept.
        memory_batch_size: Samples from memory a draw; None for as many as the batch has.
        memory: What is kept.
    """

    memory_size: int
    memory_batch_size: int | None
    memory: Reservoir

    def forget(self) -> None:
        """Empty memory."""
        super().forget()
        self.memory = Reservoir(self.memory_size)
        self._samples: list[Tensor] = []

    def epoch_tensors(self) -> list[Tensor]:
        """Return what a turn reads, and where in the experience each sample stands."""
        tensors = super().epoch_tensors()
        self._offered = keys_of(self.experience.origin, self._seed)
        return [*tensors, torch.arange(len(tensors[0]), device=self.device)]

    def with_memory(self) -> list[Tensor]:
        """Return inputs, labels and task labels: the present batch, then one from memory."""
        batch = self.mbatch[:3]
        if not len(self.memory):
            return batch
        rows = torch.randperm(len(self.memory), generator=self._draws)
        rows = rows[: self.memory_batch_size or self.train_mb_size].to(self.device)
        self.drew(len(rows))
        x, y, t = (tensor[rows] for tensor in self._samples)
        remembered = [x if self._change is None else self._change(x), y, t]
        return [torch.cat(pair) for pair in zip(batch, remembered, strict=True)]

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        if not self._samples:
            empty = [tensor[:0] for tensor in self._tensors[1][:3]]
            self._samples = self.gathered(self.memory.rows) if len(self.memory) else empty
        epoch = self._next_epoch - 1
        self._draws = torch.Generator().manual_seed(self._seed("replay", epoch, 0))
        self._change = self._augmentation(epoch, 1)

    def _after_training_iteration(self, **kwargs: Any) -> None:
        super()._after_training_iteration(**kwargs)
        at = self.mbatch[3]
        rows, keys = (tensor[at.cpu()] for tensor in self._offered)
        kept = self.memory.offer(rows, keys)
        if kept is not None:
            kept = kept.to(self.device)
            new = [tensor[at] for tensor in self._tensors[1]]
            pairs = zip(self._samples, new, strict=False)
            self._samples = [torch.cat(pair)[kept] for pair in pairs]
