"""ER-ACE, corrected; and the memory that it shares with ER-AML."""

from typing import Any

import torch
from torch import Tensor

from fedlearn.heads import hide
from strategies.continual.avalanche.template import TensorTemplate
from strategies.continual.batches import MemoryBatches
from strategies.continual.reservoir import Reservoir, keys_of, labels_of


class AsymmetricReplay(TensorTemplate):
    """A template whose loss treats the present batch and one from memory differently.

    Avalanche's ``ER_ACE`` and ``ER_AML`` put the samples of an experience into memory before they
    learn it, so that replay shows present classes next to past ones. Memory then depends on when it
    is looked at, and grows each time that an experience begins. Here memory is of past experiences
    only, and what is replayed is derived from it and the present samples: the very memory that the
    end of the experience will leave. From the stream's second experience on, as upstream.

    Upstream runs the model twice, on the present batch and on memory. Here once on both: it is
    faster, and a layer of batch normalisation sees one mixed batch instead of two pure ones.

    Attributes:
        memory_size: Samples kept over all experiences, shared equally by the classes.
        memory_batch_size: Samples from memory a step; None for as many as the batch has.
        memory: Samples of past experiences.
    """

    memory_size: int
    memory_batch_size: int | None
    memory: Reservoir

    def forget(self) -> None:
        """Empty memory."""
        self.memory = Reservoir(self.memory_size)
        self._replay: list[Tensor] | None = None
        self._draw: MemoryBatches | None = None
        self._replayed_in_batch = 0

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        self._draw = None
        if self.experience.current_experience == 0:
            return
        if self._replay is None:
            self._replay = self.gathered(self._with_present().rows)
        self._draw = self.draw_from(self._replay, self.memory_batch_size or self.train_mb_size)

    def _before_forward(self, **kwargs: Any) -> None:
        super()._before_forward(**kwargs)
        self._replayed_in_batch = 0
        if self._draw is not None:
            batch = next(self._draw)
            self._replayed_in_batch = len(batch[0])
            self.mbatch = [torch.cat(pair) for pair in zip(batch, self.mbatch, strict=True)]

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self.memory = self._with_present()
        self._replay = None

    def _with_present(self) -> Reservoir:
        """Return what memory will be once it has taken in the present experience."""
        rows, keys = keys_of(self.experience.origin, self._seed)
        labels = labels_of(self.stream, torch.cat([self.memory.rows, rows]))
        memory = Reservoir(self.memory_size, self.memory.rows, self.memory.keys)
        memory.offer_balanced(rows, keys, labels)
        return memory


class ERACE(AsymmetricReplay):
    """Experience replay with asymmetric cross-entropy, turn by turn."""

    def criterion(self) -> Tensor:
        """Return the mean of CE(memory) over all classes and CE(present) over the batch's own.

        Upstream calls ``cross_entropy`` itself, whatever the criterion is.
        """
        replayed = self._replayed_in_batch
        if not replayed:
            plain: Tensor = super().criterion()
            return plain
        output, labels = self.mb_output, self.mb_y
        past: Tensor = self._criterion(output[:replayed], labels[:replayed])
        logits, labels = output[replayed:], labels[replayed:]
        shown = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
        shown[labels] = True
        present: Tensor = self._criterion(hide(logits, shown), labels)
        return (past + present) / 2
