"""MIR, corrected."""

from typing import Any, cast

import torch
from avalanche.models import avalanche_forward
from avalanche.training.plugins import MIRPlugin
from torch import Tensor

from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.corrections.virtual_step import virtual_step
from strategies.continual.batches import MemoryBatches
from strategies.continual.reservoir import Reservoir, keys_of, labels_of


class MIR(MIRPlugin):  # type: ignore[misc]
    """Maximally interfered retrieval.

    Attributes:
        memory: Samples of past experiences, shared equally by the classes.
    """

    def __init__(self, memory_size: int, subsample: int, memory_batch_size: int | None) -> None:
        """Create the plugin.

        Args:
            memory_size: Samples kept over all experiences.
            subsample: Samples from memory that a step looks at.
            memory_batch_size: How many of them are replayed; None for as many as the batch has.
        """
        super().__init__(memory_batch_size, memory_size, subsample)
        self.memory = Reservoir(memory_size)
        self._samples: list[Tensor] | None = None
        self._draw: MemoryBatches | None = None

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Start drawing from memory."""
        # Upstream replays nothing while memory holds no more than a batch. And it leaves out the
        # classes of the last batch of the experience that has ended: none of that experience is
        # replayed in the next.
        self._draw = None
        if len(self.memory):
            if self._samples is None:
                self._samples = strategy.gathered(self.memory.rows)
            self._draw = strategy.draw_from(self._samples, self.subsample)

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add the loss of the samples from memory that the step would harm the most."""
        if self._draw is None:
            return
        x, y, t = next(self._draw)
        chosen = self.retrieve(strategy, x, y, t)
        x, y, t = x[chosen], y[chosen], t[chosen]
        strategy.loss += strategy._criterion(strategy.logits_of(x, t), y)

    def retrieve(self, strategy: Any, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """Return the positions of the samples whose loss a step on the batch would raise the most.

        Args:
            strategy: Its loss is that of the present batch.
            x: (n, *input_shape).
            y: (n,) labels.
            t: (n,) task labels.
        """
        # Upstream sets `reduction` on the criterion, which only some losses have. It looks in
        # training mode: dropout decides what is retrieved, and batch statistics move three times a
        # step. And with fewer samples than it wants it takes n - wanted from the wrong end.
        before = self._losses(strategy, x, y, t)
        rate = strategy.optimizer.param_groups[0]["lr"]
        with virtual_step(strategy.loss, strategy.model, rate):
            after = self._losses(strategy, x, y, t)
        wanted = self.batch_size_mem or strategy.train_mb_size
        return (after - before).topk(min(wanted, len(y))).indices

    @torch.no_grad()
    def _losses(self, strategy: Any, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        with second_pass(strategy.model):
            losses, _ = strategy._criterion.terms(avalanche_forward(strategy.model, x, t), y)
        return cast(Tensor, losses)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Put samples of the experience into memory."""
        rows, keys = keys_of(strategy.experience.origin, strategy._seed)
        labels = labels_of(strategy.stream, torch.cat([self.memory.rows, rows]))
        self.memory.offer_balanced(rows, keys, labels)
        self._samples = None
