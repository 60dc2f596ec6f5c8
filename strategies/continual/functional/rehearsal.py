"""Rehearsal: which samples a client remembers, and how they come back.

What is kept are names of samples, (experience, row) pairs; see `strategies.continual.rows`. The
draws are the Avalanche engine's own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedlearn.types import Experience
from strategies.continual.batches import MemoryBatches
from strategies.continual.rows import pairs_of

Draw = Callable[[Sequence[Tensor], int, bool], MemoryBatches]
"""Makes endless batches of tensors, of a size, with or without dropping what fills no batch."""

_NOTHING = torch.empty(0)


class Kept(NamedTuple):
    """Names of remembered samples, on the CPU, in the order that they are drawn from.

    Attributes:
        rows: (n, 2) int64, experience and row of each.
        groups: (n,) int64, what each counts towards: its class, or its experience's place.
        seen: (g,) int64, the groups that have a share, in increasing order.
        keys: (n,) float, the rank of each in its group; empty where the order is the rank.
        logits: (n, C), what the model said of each when it was kept; empty where nobody asks.
    """

    rows: Tensor
    groups: Tensor
    seen: Tensor
    keys: Tensor = _NOTHING
    logits: Tensor = _NOTHING


@dataclass(frozen=True)
class Arrival:
    """The samples of an experience, offered to memory.

    Attributes:
        experience: Whose they are.
        seed: Of the client; see `fedlearn.types.Turn.seed`.
        logits: (n, C), on the CPU; empty unless `Rehearsal.keeps_logits`.
    """

    experience: Experience
    seed: Callable[..., int]
    logits: Tensor = _NOTHING

    @property
    def rows(self) -> Tensor:
        """(n, 2) int64, experience and row of each sample, on the CPU."""
        return pairs_of(self.experience)

    @property
    def labels(self) -> Tensor:
        """(n,), on the CPU."""
        return self.experience.samples.targets(self.experience.rows).cpu()


@dataclass(frozen=True)
class Rehearsal:
    """Decides what is kept, and how it is drawn.

    Attributes:
        size: Samples kept, at least 1.
        batch_size: Samples from memory a step; None for as many as the present batch size.
        drop_last: Whether to leave out what does not fill a batch before memory is shuffled anew.
        keeps_logits: Whether samples are kept with the logits that they have at their experience's
            end.
    """

    size: int
    batch_size: int | None = None
    drop_last: bool = False
    keeps_logits: bool = False

    def update(self, kept: Kept | None, arrival: Arrival) -> Kept:
        """Return what is kept once an experience's samples have been offered."""
        raise NotImplementedError

    def shown(self, kept: Kept | None, present: Arrival) -> Kept | None:
        """Return what is replayed beside the `present` experience."""
        return kept

    def batches(
        self, samples: Sequence[Tensor], groups: Tensor, batch_size: int, draw: Draw
    ) -> Iterator[Sequence[Tensor]]:
        """Return what one epoch replays, step by step, without end.

        Args:
            samples: Tensors (n, ...) of all that is shown, n at least 1.
            groups: (n,) int64, on the CPU.
            batch_size: Of the present samples.
            draw: Makes batches with seeds of their own.
        """
        return draw(samples, self.batch_size or batch_size, self.drop_last)


def shares(size: int, groups: int) -> list[int]:
    """Return how many samples each of `groups` may keep: equal parts, the first ones one more."""
    share, left = divmod(size, groups)
    return [share + (place < left) for place in range(groups)]
