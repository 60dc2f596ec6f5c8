"""Which clients of a cohort are trained as one stack: those whose memories have one structure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from fedlearn.turns import Integers, Turns
from strategies.continual.functional.cohort import structure
from strategies.continual.functional.past import Past
from strategies.continual.functional.rehearsal import Arrival, Kept, Rehearsal


@dataclass(frozen=True)
class Piece:
    """Clients that are trained together: of one structure, in descending order of their steps.

    Attributes:
        places: (k,) int64, where they stand in the round's turns.
        turns: Theirs.
        pasts: What each brings along; empty where nobody keeps anything.
        kept: What each replays; empty for nothing.
    """

    places: Integers
    turns: Turns
    pasts: Sequence[Past]
    kept: Sequence[Kept]

    def cut(self, size: int) -> Iterator["Piece"]:
        """Return it in as few pieces of at most `size` clients as can be, of equal size."""
        count = -(-len(self.places) // size)
        if count == 1:
            yield self
            return
        ends = [len(self.places) * number // count for number in range(count + 1)]
        for here in (slice(*pair) for pair in pairwise(ends)):
            yield Piece(
                self.places[here], self.turns.select(here), self.pasts[here], self.kept[here]
            )

    @property
    def in_a_row(self) -> bool:
        """Whether its places are one behind the other."""
        return bool((np.diff(self.places) == 1).all())


def pieces(turns: Turns, pasts: Sequence[Past], rehearsal: Rehearsal | None) -> list[Piece]:
    """Return a cohort in pieces: parted by structure and learning rate.

    Args:
        turns: All clients'.
        pasts: What each brings along; empty where nobody keeps anything.
        rehearsal: Says what is replayed; None for nothing.
    """
    shown = [_shown(rehearsal, turns, past, at) for at, past in enumerate(pasts)]
    groups: dict[Any, list[int]] = {}
    for at, factor in enumerate(turns.lr_factors.tolist()):
        key: tuple[Any, ...] = (factor,)
        if pasts:
            key = (factor, structure(pasts[at].memory), shown[at] is not None)
        groups.setdefault(key, []).append(at)
    steps = turns.num_steps()
    found = []
    for part in map(np.array, groups.values()):
        places = part[np.argsort(-steps[part], kind="stable")]
        found.append(
            Piece(
                places,
                turns.select(places),
                [pasts[at] for at in places] if pasts else (),
                [each for at in places if (each := shown[at]) is not None] if pasts else (),
            )
        )
    return found


def _shown(rehearsal: Rehearsal | None, turns: Turns, past: Past, at: int) -> Kept | None:
    """Return what the client at place `at` replays; None for nothing."""
    if rehearsal is None:
        return None
    return rehearsal.shown(past.kept, Arrival(turns.experience(at), turns.turn(at).seed))
