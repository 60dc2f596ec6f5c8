"""Memory by rank: every sample has a random key, and memory keeps the samples with the largest.

That is reservoir sampling (a uniform part of all that was offered), as Avalanche does it, with one
difference: a sample's key is drawn once, from the client's seed and the sample's experience. So it
makes no difference how often a sample is offered, in what order, or in how many rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedlearn.types import Experience
from strategies.continual.rows import Stream, pairs_of


@dataclass
class Reservoir:
    """Names of samples, at most `size` of them. All tensors live on the CPU.

    Attributes:
        size: Most samples kept.
        rows: (n, 2) int64, experience and row of each.
        keys: (n,) float64 in [0, 1), the key of each.
    """

    size: int
    rows: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.int64))
    keys: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.keys)

    def offer(self, rows: Tensor, keys: Tensor) -> Tensor | None:
        """Keep the samples with the largest keys out of those here and those offered.

        Args:
            rows: (m, 2) int64, which may name samples that are here already.
            keys: (m,) float64, always the same for the same sample.

        Returns:
            Where what is kept stood in here-then-offered, (n,) int64; None where nothing changed.
        """
        here = len(self)
        fit = keys > (self.keys.min() if here >= self.size else -1)
        if not bool(fit.any()):
            return None  # the usual case, and the cheapest
        new = (fit & ~torch.isin(keys, self.keys)).nonzero().squeeze(1)
        if not len(new):
            return None
        candidates = torch.cat([torch.arange(here), here + new])
        rows, keys = torch.cat([self.rows, rows[new]]), torch.cat([self.keys, keys[new]])
        best = keys.argsort(descending=True, stable=True)[: self.size]
        self.rows, self.keys = rows[best], keys[best]
        return candidates[best]

    def offer_balanced(self, rows: Tensor, keys: Tensor, labels: Tensor) -> None:
        """Keep as many samples of each class as of any other, those with the largest keys.

        Args:
            rows: (m, 2) int64, none of them here yet.
            keys: (m,) float64.
            labels: (n + m,) int64, of what is here and then of what is offered.
        """
        rows, keys = torch.cat([self.rows, rows]), torch.cat([self.keys, keys])
        chosen = balanced(keys, labels, self.size)
        self.rows, self.keys = rows[chosen], keys[chosen]


def balanced(keys: Tensor, groups: Tensor, size: int) -> Tensor:
    """Return the positions of at most `size` samples, shared by the groups as equally as can be.

    Of each group those with the largest keys are taken. What a small group does not fill goes to
    the others, and a remainder to the groups with the lowest numbers. A sample that was left out
    stays so whatever else is offered later, so the choice can be made again from what was kept.

    Args:
        keys: (n,) float.
        groups: (n,) int64.
        size: At least 1.
    """
    order = keys.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]  # by group, the largest key first
    numbers = groups[order]
    starts = torch.searchsorted(numbers, numbers)
    rank = torch.arange(len(order)) - starts
    return order[rank.argsort(stable=True)[:size]]


def keys_of(experience: Experience, seed: Callable[..., int]) -> tuple[Tensor, Tensor]:
    """Return rows (n, 2) and keys (n,) of all samples of `experience`.

    Args:
        experience: Whose samples.
        seed: Of the client; see `fedlearn.types.Turn.seed`.
    """
    generator = torch.Generator().manual_seed(seed("reservoir", experience.index))
    rows = pairs_of(experience)
    return rows, torch.rand(len(rows), generator=generator, dtype=torch.float64)


def labels_of(stream: Stream, rows: Tensor) -> Tensor:
    """Return the labels (n,) of the samples `rows` (n, 2), on the CPU."""
    labels = torch.empty(len(rows), dtype=torch.int64)
    for index in torch.unique(rows[:, 0]).tolist():
        at = rows[:, 0] == index
        labels[at] = stream(index).samples.targets(rows[at, 1]).cpu()
    return labels
