"""Which clients of a cohort are trained as one stack: those whose memories have one structure."""

from collections.abc import Sequence
from dataclasses import dataclass
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


def pieces(
    turns: Turns, pasts: Sequence[Past], rehearsal: Rehearsal | None, chunk: int
) -> list[Piece]:
    """Return a cohort in pieces: parted by structure and learning rate, cut into chunks.

    Args:
        turns: All clients'.
        pasts: What each brings along; empty where nobody keeps anything.
        rehearsal: Says what is replayed; None for nothing.
        chunk: The most clients of a piece.
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
        ordered = part[np.argsort(-steps[part], kind="stable")]
        for begin in range(0, len(ordered), chunk):
            places = ordered[begin : begin + chunk]
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
