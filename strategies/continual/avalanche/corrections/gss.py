"""GSS, greedy, corrected."""

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import avalanche_forward
from torch import Tensor
from torch.nn import functional as F

from strategies.continual.avalanche.corrections.gradients import gradient_of, trainable
from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.dataset import pairs_of
from strategies.continual.batches import ReplayBatches

FIRST_SCORE = 0.1
"""The score of the samples that come into an empty memory, as upstream has it."""


class GSS(SupervisedPlugin):  # type: ignore[misc]
    """Gradient-based sample selection: ``GSS_greedyPlugin`` with memory as names of samples.

    Attributes:
        rows: (n, 2) int64, experience and row of each sample in memory.
        scores: (n,) in [-1, 1], how much its gradient was like that of memory when it came.
        offered: The experience whose samples were offered last; -1 for none.
    """

    def __init__(
        self, memory_size: int, num_references: int, memory_batch_size: int | None
    ) -> None:
        """Create the plugin.

        Args:
            memory_size: Samples kept.
            num_references: Parts of memory whose gradients a score is measured against, at most.
            memory_batch_size: Samples replayed a step; None for as many as the batch has.
        """
        super().__init__()
        self._size = memory_size
        self._num_references = num_references
        self._memory_batch_size = memory_batch_size
        self.rows = torch.empty(0, 2, dtype=torch.int64)
        self.scores = torch.empty(0)
        self.offered = -1
        self._positions: Iterator[Tensor] | None = None
        self._pairs = self.rows

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Let each batch be followed by one from memory."""
        # Upstream copies memory when an experience begins, and counts what it replays from it among
        # the samples that have come in: memory fills with copies of itself.
        batches, index = strategy.dataloader, strategy.experience.current_experience
        # Upstream offers a sample again in every epoch: after some, memory holds nothing but the
        # present experience, many times. The paper's stream brings each sample once.
        self._positions = None
        if self.offered != index:
            self._positions, self.offered = iter(batches.order.split(batches.sizes)), index
        self._pairs = pairs_of(strategy.experience.origin)
        self.rows = self.rows.cpu()
        if len(self.rows):
            size = self._memory_batch_size or strategy.train_mb_size
            memory = strategy.draw_from(strategy.gathered(self.rows), size)
            strategy.dataloader = ReplayBatches(batches, memory)

    def after_forward(self, strategy: Any, **_: Any) -> None:
        """Offer the present batch to memory, if the experience is new."""
        if self._positions is None:
            return
        positions = next(self._positions)
        # Upstream leaves the gradient of the last sample that it scored in the parameters, where
        # the gradient of the loss is added to it, and wakes layers that the user froze.
        with second_pass(strategy.model):
            self._offer(strategy, self._pairs[positions.cpu()], positions)

    def _offer(self, strategy: Any, pairs: Tensor, positions: Tensor) -> None:
        """Put into memory what belongs there of the samples `pairs` (n, 2)."""
        samples = [tensor[positions] for tensor in strategy.tensors]
        place = self._size - len(self.rows)
        if place > 0:
            samples, pairs = [tensor[:place] for tensor in samples], pairs[:place]
            scores = self._scores(strategy, samples, self._references(strategy, len(positions)))
            self.rows = torch.cat([self.rows, pairs])
            self.scores = torch.cat([self.scores.to(scores), scores])
            return
        references = self._references(strategy, len(positions))
        if float(likeness(references, gradient(strategy, samples)[None])) < 0:
            self._replace(pairs, self._scores(strategy, samples, references))

    def _replace(self, pairs: Tensor, scores: Tensor) -> None:
        """Let samples compete with samples of memory for their places, as in Algorithm 2.

        The place i is drawn with probability C_i / sum C, and lost with probability C_i / (C_i +
        c), where C_i and c are the scores there and here, plus 1.
        """
        # Upstream draws in proportion to (C - min C) / (max C - min C), which raises where all
        # scores are the same, and where a batch has more samples than memory has places.
        contest = min(len(pairs), len(self.rows))
        there = (self.scores + 1).clamp(min=1e-6)
        places = torch.multinomial(there, contest)
        here = (scores[:contest] + 1).clamp(min=1e-6)
        lost = torch.rand(contest, device=here.device) < there[places] / (there[places] + here)
        self.rows[places[lost].cpu()] = pairs[:contest][lost.cpu()]
        self.scores[places[lost]] = scores[:contest][lost]

    def _references(self, strategy: Any, batch_size: int) -> Tensor:
        """Return (r, parameters): the gradients of random parts of memory; r is 0 without one."""
        # Upstream has no part at all, and raises, while memory holds less than a batch.
        size = len(self.rows)
        if not size:
            return torch.empty(0, 0)
        parts = torch.split(torch.randperm(size), min(batch_size, size))
        whole = max(1, min(self._num_references, size // batch_size))
        return torch.stack(
            [gradient(strategy, strategy.gathered(self.rows[part])) for part in parts[:whole]]
        )

    def _scores(self, strategy: Any, samples: list[Tensor], references: Tensor) -> Tensor:
        """Return (n,): how much the gradient of each sample is like the references."""
        n = len(samples[0])
        if not len(references):
            return torch.full((n,), FIRST_SCORE, device=samples[0].device)
        each = (gradient(strategy, [tensor[i : i + 1] for tensor in samples]) for i in range(n))
        return torch.cat([likeness(references, one[None]) for one in each])


def gradient(strategy: Any, samples: list[Tensor]) -> Tensor:
    """Return (parameters,): the gradient of the mean loss of `samples`, of what is trainable."""
    x, y, t = samples
    # Upstream passes no task labels, so it knows one head only.
    loss = strategy._criterion(avalanche_forward(strategy.model, x, t), y)
    return gradient_of(loss, trainable(strategy.model))


def likeness(references: Tensor, gradients: Tensor) -> Tensor:
    """Return (n,): the largest cosine of each of `gradients` (n, d) with `references` (r, d)."""
    return (F.normalize(gradients, dim=1) @ F.normalize(references, dim=1).T).amax(1)
