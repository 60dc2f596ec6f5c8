"""Averaged gradient episodic memory: the twin of `strategies.continual.avalanche.agem`."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedlearn.types import LocalTraining
from strategies.continual.bounds import at_least
from strategies.continual.functional.continual import FunctionalContinual
from strategies.continual.functional.method import Method
from strategies.continual.functional.rehearsal import Arrival, Draw, Kept, Rehearsal, shares
from strategies.continual.functional.trees import Tree, dot


def agem(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    sample_size: int = 64,
) -> FunctionalContinual:
    """Return A-GEM. A client keeps three integers for each sample in memory.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, shared equally by its experiences, at
            least 1.
        sample_size: Samples behind each g_ref, at least 1, shared equally by the experiences.

    Raises:
        ValueError: A setting is out of bounds, or the optimiser has no twin.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("sample_size", sample_size, 1)
    return FunctionalContinual(
        training, AGEM(), Episodes(memory_per_client, sample_size=sample_size)
    )


@dataclass(frozen=True)
class AGEM(Method[None]):
    """Averaged gradient episodic memory."""

    projects: ClassVar[bool] = True

    def adjust_gradient(self, gradient: Tree, reference: Tree) -> Tree:
        """Return ``g - (g . g_ref / g_ref . g_ref) g_ref`` where g opposes g_ref, else g."""
        along = dot(gradient, reference)
        share = along / dot(reference, reference)
        back = torch.where(along < 0, -share, torch.zeros_like(share))
        return {
            name: torch.addcmul(g, back, reference[name]) if name in reference else g
            for name, g in gradient.items()
        }


@dataclass(frozen=True)
class Episodes(Rehearsal):
    """Memory in equal shares, a random part of each experience, and batches of all of them.

    Attributes:
        sample_size: Samples a batch, shared equally by the experiences, at least one of each.
    """

    sample_size: int = 64

    def update(self, kept: Kept | None, arrival: Arrival) -> Kept:
        """Return what is kept once an experience's samples have been offered."""
        order = list(range(len(arrival.experience)))
        random.Random(arrival.seed("consolidate", arrival.experience.index)).shuffle(order)
        place = 0 if kept is None else len(kept.seen)
        rows, groups = arrival.rows[order], torch.full((len(order),), place, dtype=torch.int64)
        if kept is not None:
            rows, groups = torch.cat([kept.rows, rows]), torch.cat([kept.groups, groups])
        chosen = torch.cat(
            [
                (groups == group).nonzero().squeeze(1)[:share]
                for group, share in enumerate(shares(self.size, place + 1))
            ]
        )
        return Kept(rows[chosen], groups[chosen], torch.arange(place + 1))

    def batches(
        self, samples: Sequence[Tensor], groups: Tensor, batch_size: int, draw: Draw
    ) -> Iterator[Sequence[Tensor]]:
        """Return what one epoch replays; see `Rehearsal`."""
        parts = [(groups == group).nonzero().squeeze(1) for group in torch.unique(groups).tolist()]
        share = max(1, self.sample_size // len(parts))
        draws = [
            draw([tensor[part.to(tensor.device)] for tensor in samples], share, False)
            for part in parts
        ]
        for batches in zip(*draws, strict=True):
            yield [torch.cat(tensors) for tensors in zip(*batches, strict=True)]
