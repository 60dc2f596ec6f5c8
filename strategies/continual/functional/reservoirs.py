"""Memories that are uniform random parts of what they were offered: reservoir sampling.

Every sample gets a random key, and those with the largest keys stay.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from strategies.continual.functional.rehearsal import Arrival, Kept, Rehearsal, shares
from strategies.continual.reservoir import balanced, keys_of


@dataclass(frozen=True)
class Reservoirs(Rehearsal):
    """Fixed equal shares, one reservoir each: Avalanche's balanced buffers.

    A group that offers less than its share leaves the rest of it empty.

    Attributes:
        by: What a group is: an experience, or a class.
    """

    by: Literal["experience", "class"] = "experience"

    def update(self, kept: Kept | None, arrival: Arrival) -> Kept:
        """Return what is kept once an experience's samples have been offered."""
        seed = arrival.seed("consolidate", arrival.experience.index)
        generator = torch.Generator().manual_seed(seed)
        groups = arrival.labels
        if self.by == "experience":
            place = 0 if kept is None else len(kept.seen)
            groups = torch.full((len(groups),), place, dtype=torch.int64)
        keys, arrived = torch.empty(len(groups)), torch.unique(groups)
        for group in arrived.tolist():
            at = groups == group
            keys[at] = torch.rand(int(at.sum()), generator=generator)
        offered = Kept(arrival.rows, groups, arrived, keys, arrival.logits)
        if kept is not None:  # the new ones first, as in Avalanche, where keys are equal
            offered = Kept(*(torch.cat(pair) for pair in zip(offered, kept, strict=True)))
        return self._best(offered._replace(seen=torch.unique(offered.seen)))

    def _best(self, offered: Kept) -> Kept:
        """Return the samples with the largest keys of each group, as many as its share."""
        chosen = []
        sizes = shares(self.size, len(offered.seen))
        for group, share in zip(offered.seen.tolist(), sizes, strict=True):
            at = (offered.groups == group).nonzero().squeeze(1)
            chosen.append(at[offered.keys[at].sort(descending=True).indices[:share]])
        return _selected(offered, torch.cat(chosen))


@dataclass(frozen=True)
class RankedMemory(Rehearsal):
    """One reservoir for all, or one for each class: `strategies.continual.reservoir`.

    Attributes:
        by_class: Whether classes have equal parts; what one does not fill goes to the others.
        per_class: Samples kept of each class, at least 1; None for equal parts of `size`.
        shows_present: Whether samples of the present experience are replayed too: what memory will
            be once it has taken them in. From the stream's second experience on.
    """

    by_class: bool = True
    per_class: int | None = None
    shows_present: bool = False

    def update(self, kept: Kept | None, arrival: Arrival) -> Kept:
        """Return what is kept once an experience's samples have been offered."""
        rows, keys = keys_of(arrival.experience, arrival.seed)
        groups = arrival.labels if self.by_class else torch.zeros(len(rows), dtype=torch.int64)
        offered = Kept(rows, groups, torch.unique(groups), keys)
        if kept is not None:
            pairs = zip(kept, offered, strict=True)
            offered = Kept(*(torch.cat(pair) for pair in pairs))
        return _selected(offered, self._best(offered))

    def shown(self, kept: Kept | None, present: Arrival) -> Kept | None:
        """Return what is replayed beside the `present` experience."""
        if not self.shows_present:
            return kept
        return self.update(kept, present) if present.experience.index else None

    def _best(self, offered: Kept) -> torch.Tensor:
        """Return the positions of the samples to keep."""
        if self.per_class is None:
            return balanced(offered.keys, offered.groups, self.size)
        chosen = []
        for group in torch.unique(offered.groups).tolist():
            at = (offered.groups == group).nonzero().squeeze(1)
            chosen.append(
                at[offered.keys[at].argsort(descending=True, stable=True)[: self.per_class]]
            )
        return torch.cat(chosen)


def _selected(offered: Kept, at: torch.Tensor) -> Kept:
    """Return the samples at positions `at`."""
    logits = offered.logits[at] if len(offered.logits) else offered.logits
    seen = torch.unique(offered.seen)
    return Kept(offered.rows[at], offered.groups[at], seen, offered.keys[at], logits)
