"""The process executor: clients in a pool of workers, with bit by bit the serial one's results.

What clients have in common (the global arrays) is written once a round where all workers read it. A
client's state stays with the workers too: the main process holds no more of it than where it is.
"""

import copy
import logging
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlearn import records
from fedlearn.client_state import UsedTurn, record_of
from fedlearn.runtimes.serial import Serial, make_context, reason_of
from fedlearn.runtimes.shared import Keeping, Parcel
from fedlearn.runtimes.task import task_identity
from fedlearn.runtimes.worker import Raised
from fedlearn.runtimes.workers import Crashed
from fedlearn.spans import span

_log = logging.getLogger(__name__)

Layout = tuple[tuple[str, int | None], ...]
"""A content's keys, in their order: where its record stands in what is shared, None for nowhere."""


@dataclass(frozen=True)
class Job:
    """A message on its way to a worker.

    Attributes:
        message: With those records that it shares with no other.
        layout: How to make its content whole.
        state: The client's, packed, or as a checkpoint has brought it back; None for an empty one.
    """

    message: Message
    layout: Layout
    state: Parcel | RecordDict | None


@dataclass(frozen=True)
class Done:
    """What a worker returns.

    Attributes:
        reply: The client's.
        state: Its new state; None where it stays as it was.
        raised: The traceback, if the client raised.
    """

    reply: Message
    state: Parcel | None
    raised: str | None


class TurnTaker:
    """Does jobs in a worker."""

    def __init__(self, client_app: ClientApp) -> None:
        self._app = client_app

    def __call__(self, job: Job, shared: Sequence[ArrayRecord], keeper: Keeping) -> Done:
        """Take one client's turn."""
        message = job.message
        own = message.content
        message.content = RecordDict(
            {key: own[key] if at is None else shared[at] for key, at in job.layout}
        )
        with span("open"):
            state = keeper.open(job.state) if isinstance(job.state, Parcel) else job.state
        context = make_context(
            message.metadata.dst_node_id, RecordDict() if state is None else state
        )
        raised = None
        with task_identity():
            try:
                reply = self._app(message, context)
            except Exception as error:  # a client's fault costs its own turn, never the run
                raised = traceback.format_exc()
                reply = records.error_reply(message, reason_of(error))
        with span("pack"):
            new = keeper.pack(context.state) if context.state or job.state else None
        if new is not None and isinstance(job.state, Parcel) and new.blob == job.state.blob:
            new = None
        return Done(reply, new, raised)


class Pool(Protocol):
    """Workers, whatever they are: does jobs, and keeps what they pack.

    Attributes:
        count: Of workers.
    """

    count: int

    def map(
        self, jobs: Sequence[Any], shared: Any = None, costs: Sequence[float] | None = None
    ) -> list[Any]:
        """Return the jobs' results; see `fedlearn.runtimes.workers.Workers`."""
        ...

    def drop(self, parcel: Parcel) -> None:
        """Free what only this parcel holds."""
        ...

    def open(self, parcel: Parcel) -> Any:
        """Return what is in a parcel, here."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class Process:
    """Executes clients in a pool of workers.

    Attributes:
        num_clients: Of the federation.
        description: See `fedlearn.runtimes.serial.Executor`.
        workers: The pool.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_clients: int,
        workers: Pool,
        cost: Callable[[int], float] | None = None,
        name: str = "process",
    ) -> None:
        """Make the executor.

        Args:
            client_app: What the clients run.
            num_clients: Of the federation.
            workers: The pool, whose handle is a `TurnTaker` of the app; closed with the executor.
            cost: How long a client's turn takes, in any unit, by client id; None for all alike.
            name: Its own, in the configuration.
        """
        self.num_clients = num_clients
        self.workers = workers
        self._app = client_app
        self._cost = cost
        self._states: dict[int, Parcel | RecordDict] = {}  # by node
        self.description: dict[str, Any] = {"executor": name, "workers": workers.count}

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies to the messages, in their order."""
        replies: list[Message | None] = [None] * len(messages)
        left = list(range(len(messages)))
        while left:  # a client's second message waits for what its first leaves behind
            first: dict[int, int] = {}
            for at in left:
                first.setdefault(messages[at].metadata.dst_node_id, at)
            now = list(first.values())
            for at, reply in zip(now, self._execute([messages[at] for at in now]), strict=True):
                replies[at] = reply
            left = [at for at in left if replies[at] is None]
        return [reply for reply in replies if reply is not None]

    def context(self, node_id: int) -> Context:
        """Return a context with a copy of a client's state."""
        kept = self._states.get(node_id)
        if isinstance(kept, Parcel):
            return make_context(node_id, self.workers.open(kept))
        return make_context(node_id, RecordDict(dict(kept or {})))

    def restore(self, node_id: int, turn: UsedTurn) -> None:
        """Let a client go on from this turn; its state goes to a worker with its next message."""
        self._states[node_id] = record_of(turn)

    def close(self) -> None:
        """End the workers; contexts can still be asked for."""
        self.workers.close()

    def _execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies to messages, at most one to each client."""
        if all(_asks_who(message) for message in messages):
            # Not worth a trip: who a client is depends on its node's configuration alone.
            return Serial(self._app, self.num_clients).execute(messages)
        jobs, shared = self._jobs(messages)
        nodes = [message.metadata.dst_node_id for message in messages]
        costs = None if self._cost is None else [self._cost(node_id - 1) for node_id in nodes]
        results = self.workers.map(jobs, shared, costs)
        return [
            self._reply(message, result) for message, result in zip(messages, results, strict=True)
        ]

    def _jobs(self, messages: Sequence[Message]) -> tuple[list[Job], list[ArrayRecord]]:
        """Return the messages as jobs, and the array records that more than one of them has."""
        uses = Counter(id(each) for message in messages for each in message.content.values())
        shared: list[ArrayRecord] = []
        places: dict[int, int] = {}
        jobs = []
        for message in messages:
            layout: list[tuple[str, int | None]] = []
            own = RecordDict()
            for key, record in message.content.items():
                if isinstance(record, ArrayRecord) and uses[id(record)] > 1:
                    if id(record) not in places:
                        places[id(record)] = len(shared)
                        shared.append(record)
                    layout.append((key, places[id(record)]))
                else:
                    own[key] = record
                    layout.append((key, None))
            sent = copy.copy(message)
            sent.content = own
            jobs.append(Job(sent, tuple(layout), self._states.get(message.metadata.dst_node_id)))
        return jobs, shared

    def _reply(self, message: Message, result: Done | Raised | Crashed) -> Message:
        node_id = message.metadata.dst_node_id
        if isinstance(result, Done):
            if result.state is not None:
                before = self._states.get(node_id)
                self._states[node_id] = result.state
                if isinstance(before, Parcel):  # last: see `fedlearn.runtimes.cohort_states`
                    self.workers.drop(before)
            if result.raised is not None:
                _log.warning("client %d raised\n%s", node_id - 1, result.raised)
            return result.reply
        told = result.traceback if isinstance(result, Raised) else result.reason
        _log.warning("client %d's turn failed: %s", node_id - 1, told)
        return records.error_reply(message, result.reason)


def _asks_who(message: Message) -> bool:
    return message.metadata.message_type.partition(".")[0] == "query"
