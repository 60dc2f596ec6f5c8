"""When a run's checkpoints are taken, and by whom they are written: a thread, beside the rounds."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fedlearn.aggregation_state import UnsavableError
from fedlearn.checkpoint import Checkpoints
from fedlearn.client_state import UsedTurn
from fedlearn.grids import ReachesStates, RunFailedError, used_turns
from fedlearn.server import Server
from fedlearn.spans import span


@dataclass(frozen=True)
class Snapshot:
    """A run after a round, in memory.

    Attributes:
        server_round: The round.
        tensors: What the server knows.
        values: Likewise, and what the checkpoint says of the run; JSON values.
        lasting: Whether the round was an experience's end.
    """

    server_round: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]
    lasting: bool


class Checkpointing:
    """Takes and writes the checkpoints of a run.

    After every round the server's state is noted, by reference where nobody writes into it, so that
    a run that is interrupted in the middle of a round has a checkpoint of the one before. What
    clients keep is fetched when a checkpoint is written: a client that has begun another turn still
    has what its last used one left. Clients that keep their states on machines of their own commit
    them as soon as they hear that a round was used: so that they never know more than the server's
    checkpoint, every round has one, and it is on disk before the next round is begun.
    """

    def __init__(
        self,
        server: Server,
        grid: Any,
        checkpoints: Checkpoints,
        every: int,
        about: Mapping[str, Any],
        settle: Callable[[], None],
    ) -> None:
        """Begin, before the first of the rounds that are left.

        Args:
            server: Whose rounds they are.
            grid: Where its clients are; their states are saved if it reaches them.
            checkpoints: Where to.
            every: Rounds from one checkpoint to the next, at least 1; each experience's end has one
                anyway.
            about: What a checkpoint says of the run, JSON values.
            settle: Returns once all events so far are written down: a checkpoint must not know more
                than they tell.
        """
        self._server = server
        self._grid = grid
        self._checkpoints = checkpoints
        self._every = every if isinstance(grid, ReachesStates) else 1
        self._about = dict(about)
        self._settle = settle
        self._started = time.perf_counter()
        self._learned = server.scoreboard.learned
        self._latest: Snapshot | None = None
        self._saved = server.rounds
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def after_round(self) -> None:
        """Note the server's state; have it written, where it is time.

        Raises:
            RunFailedError: An earlier checkpoint could not be written, or this one not be taken.
        """
        with span("checkpoint"):
            server = self._server
            try:
                tensors, values = server.state()
            except UnsavableError as error:
                raise RunFailedError(
                    f"checkpoint_every={self._every}: the aggregation keeps {error}, which a "
                    "checkpoint cannot hold; set checkpoint_every=null"
                ) from error
            seconds = server.ledger.earlier_s + time.perf_counter() - self._started
            values = {**self._about, "seconds": seconds, "server": values}
            learned = server.scoreboard.learned
            lasting = learned > self._learned
            self._learned = learned
            self._latest = Snapshot(server.rounds, tensors, values, lasting)
            if lasting or server.rounds % self._every == 0:
                self._write(self._latest)
            if not isinstance(self._grid, ReachesStates):
                self._wait()

    def finish(self) -> None:
        """Have the last completed round's checkpoint on disk, and the thread ended.

        Raises:
            RunFailedError: A checkpoint could not be written.
        """
        self._wait()
        if self._latest is not None and self._latest.server_round > self._saved:
            self._write(self._latest)
            self._wait()

    def _write(self, snapshot: Snapshot) -> None:
        """Have a checkpoint written from a thread, once the one before is."""
        self._wait()
        turns: dict[int, UsedTurn] = {}
        if isinstance(self._grid, ReachesStates):
            acknowledged: dict[int, int] = snapshot.values["server"]["acknowledged"]
            changed = {k for k, used in acknowledged.items() if used > self._saved}
            changed |= self._checkpoints.crowded(changed)
            turns = used_turns(self._grid, {k: acknowledged[k] for k in sorted(changed)})
        self._thread = threading.Thread(
            target=self._commit, args=(snapshot, turns), name="checkpoint"
        )
        self._thread.start()

    def _commit(self, snapshot: Snapshot, turns: Mapping[int, UsedTurn]) -> None:
        try:
            self._settle()
            self._checkpoints.write(
                snapshot.server_round, snapshot.tensors, snapshot.values, turns, snapshot.lasting
            )
        except BaseException as error:  # raised where somebody waits for it
            self._error = error
        else:
            self._saved = snapshot.server_round

    def _wait(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        error, self._error = self._error, None
        if isinstance(error, OSError):
            raise RunFailedError(f"a checkpoint cannot be written: {error}") from error
        if error is not None:
            raise error
