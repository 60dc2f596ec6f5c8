"""What the clients of a vectorized cohort keep: packed, staged in a turn, committed when used.

The rule is that of `fedlearn.client_state`, which says why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.app import RecordDict

from fedlearn.client_state import ClientState, UsedTurn
from fedlearn.turns import NEVER, Integers
from fedlearn.types import State


class Packs(Protocol):
    """Keeps packed states."""

    def open(self, parcel: Any) -> Any:
        """Return what was packed."""
        ...

    def drop(self, parcel: Any) -> None:
        """Forget what was packed."""
        ...


@dataclass(slots=True)
class _Kept:
    """What is kept of one client.

    Attributes:
        state: The committed state, packed, or as it was read; None before there is one.
        experience: Of the turn that left it.
        acknowledged: The round of that turn.
        staged: The state of a turn that may be rolled back, packed; None for none.
        staged_round: Of that turn; 0 for none.
        staged_experience: Likewise.
    """

    state: Any = None
    experience: int = NEVER
    acknowledged: int = 0
    staged: Any = None
    staged_round: int = 0
    staged_experience: int = NEVER


class CohortStates:
    """Every client's packed states, by client id."""

    def __init__(self, packs: Packs) -> None:
        self._packs = packs
        self._kept: dict[int, _Kept] = {}

    def settle(self, client_ids: Integers, acknowledged: Integers) -> tuple[list[Any], Integers]:
        """Commit what is staged where the server used it, drop it elsewhere.

        Args:
            client_ids: (n,).
            acknowledged: (n,), the last round whose reply of each the server used; 0 for none.

        Returns:
            What each has committed, packed, None for nothing; and (n,) the experience that it was
            left in, `NEVER` for none.
        """
        states: list[Any] = []
        last: list[int] = []
        for client_id, told in zip(client_ids.tolist(), acknowledged.tolist(), strict=True):
            kept = self._kept.get(client_id)
            if kept is None:
                states.append(None)
                last.append(NEVER)
                continue
            if kept.staged_round and kept.staged_round == told:
                before, kept.state = kept.state, kept.staged
                kept.experience, kept.acknowledged = kept.staged_experience, kept.staged_round
                self._drop(before)  # last: whoever is interrupted here finds what is kept
            elif kept.staged_round:
                self._drop(kept.staged)
            kept.staged, kept.staged_round = None, 0
            states.append(kept.state)
            last.append(kept.experience)
        return states, np.array(last, dtype=np.int64)

    def stage(
        self,
        client_ids: Integers,
        states: Sequence[Any],
        server_round: int,
        experiences: Integers,
    ) -> None:
        """Keep what turns left behind.

        Args:
            client_ids: (n,).
            states: Of each, packed; None for a turn that does not count.
            server_round: Of the turns.
            experiences: (n,), that they were spent in.
        """
        for client_id, state, index in zip(
            client_ids.tolist(), states, experiences.tolist(), strict=True
        ):
            if state is not None:
                kept = self._kept.setdefault(client_id, _Kept())
                kept.staged, kept.staged_round, kept.staged_experience = state, server_round, index

    def write(self, client_id: int, into: RecordDict) -> None:
        """Write a client's states into the record in which other executors keep them."""
        kept = self._kept.get(client_id)
        if kept is None:
            return
        own = ClientState(into)
        if kept.acknowledged:
            own.stage(self._opened(kept.state), kept.acknowledged, kept.experience)
            own.settle(kept.acknowledged)
        if kept.staged_round:
            staged = self._opened(kept.staged)
            own.stage(staged, kept.staged_round, kept.staged_experience)

    def read(self, client_id: int, turn: UsedTurn) -> None:
        """Take a client's last turn from elsewhere; its state stays unpacked until its next one."""
        self._kept[client_id] = _Kept(turn.state, turn.experience, turn.server_round)

    def _opened(self, state: Any) -> State:
        return state if isinstance(state, State) else self._packs.open(state)

    def _drop(self, state: Any) -> None:
        if state is not None and not isinstance(state, State):
            self._packs.drop(state)
