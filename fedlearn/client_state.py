"""A client's continual state in Flower's `Context.state`: staged in a turn, committed when used.

A turn leaves its new state *staged* beside the *committed* one. The next instruction says which
round of this client the server last used: if that is the staged round, it is committed; if not
(the reply was late, lost or quarantined), it is dropped and the client goes on from where the
server last saw it. A turn that raises stages nothing.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedlearn.records import to_arrays, to_tensors
from fedlearn.types import State

_COMMITTED, _STAGED = "committed", "staged"
_ROUND, _EXPERIENCE = "round", "experience"
_PARTS = ("tensors", "values", "progress")


@dataclass(frozen=True)
class UsedTurn:
    """The last turn of a client that the server used: where the client's next one begins.

    Attributes:
        state: What the turn left behind.
        server_round: Of the turn.
        experience: That it was spent in.
    """

    state: State
    server_round: int
    experience: int


class ClientState:
    """The view of one client's state inside its `Context.state`."""

    def __init__(self, records: RecordDict) -> None:
        self._records = records

    def settle(self, acknowledged: int) -> None:
        """Commit what is staged if the server used it, else drop it.

        Args:
            acknowledged: The last round whose reply of this client the server used; 0 for none.

        Raises:
            ValueError: A later round is committed already: the server went back behind it, or this
                instruction is an old one.
        """
        committed, staged = self._round(_COMMITTED), self._round(_STAGED)
        if committed is not None and committed > acknowledged:
            raise ValueError(
                f"the client's state is of round {committed}, and the server has used its replies "
                f"up to round {acknowledged}"
            )
        if staged is None:
            return
        if staged == acknowledged:
            self._move(_STAGED, _COMMITTED)
        else:
            self._drop(_STAGED)

    def committed(self) -> tuple[State, int | None]:
        """Return the committed state and the experience it was left in (None before any turn)."""
        if self._round(_COMMITTED) is None:
            return State(), None
        return self._read(_COMMITTED)

    def used(self, acknowledged: int) -> UsedTurn | None:
        """Return the turn that the server used last, committed by now or not; change nothing.

        Args:
            acknowledged: Its round.

        Returns:
            The turn; None where there is no trace of it.
        """
        for which in (_COMMITTED, _STAGED):
            if self._round(which) == acknowledged:
                state, experience = self._read(which)
                return UsedTurn(state, acknowledged, experience)
        return None

    def stage(self, state: State, server_round: int, experience: int) -> None:
        """Keep what the turn of `server_round`, spent in `experience`, left behind."""
        self._records[f"{_STAGED}.tensors"] = to_arrays(state.tensors)
        self._records[f"{_STAGED}.values"] = ConfigRecord(dict(state.values))
        self._records[f"{_STAGED}.progress"] = ConfigRecord(
            {_ROUND: server_round, _EXPERIENCE: experience}
        )

    def _read(self, which: str) -> tuple[State, int]:
        tensors = cast(ArrayRecord, self._records[f"{which}.tensors"])
        values, progress = (
            cast(ConfigRecord, self._records[f"{which}.{part}"]) for part in _PARTS[1:]
        )
        return State(to_tensors(tensors), dict(values)), cast(int, progress[_EXPERIENCE])

    def _round(self, which: str) -> int | None:
        progress = self._records.get(f"{which}.progress")
        return None if progress is None else cast(int, cast(ConfigRecord, progress)[_ROUND])

    def _move(self, source: str, target: str) -> None:
        for part in _PARTS:
            self._records[f"{target}.{part}"] = self._records[f"{source}.{part}"]
        self._drop(source)

    def _drop(self, which: str) -> None:
        for part in _PARTS:
            del self._records[f"{which}.{part}"]


def record_of(turn: UsedTurn) -> RecordDict:
    """Return the record of a client whose last turn this was, and was committed."""
    record = RecordDict()
    own = ClientState(record)
    own.stage(turn.state, turn.server_round, turn.experience)
    own.settle(turn.server_round)
    return record


def written(value: Any) -> Any:
    """Return one of a state's plain values as JSON has it; bytes as an object of their own."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [written(each) for each in value]
    return value


def read_back(value: Any) -> Any:
    """Return the plain value that was `written`."""
    if isinstance(value, Mapping):
        return base64.b64decode(value["base64"])
    if isinstance(value, list):
        return [read_back(each) for each in value]
    return value
