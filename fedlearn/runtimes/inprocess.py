"""The in-process runtime: Flower's `Grid`, executing ClientApps here, one after another.

Two private parts of Flower are touched, both here and nowhere else: `TaskIdentity` (process-wide,
so one run at a time in a process) and a message's id, which a SuperLink would set.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fedlearn import records

_log = logging.getLogger(__name__)

RUN_ID = 1
SERVER_NODE = 0
"""The server's node id; client k's is k + 1."""


class InProcessGrid(Grid):
    """A grid whose nodes are the clients 0..K-1 of this process, each with a context of its own."""

    def __init__(self, client_app: ClientApp, num_clients: int) -> None:
        self._app = client_app
        self._contexts: dict[int, Context] = {}
        self._num_clients = num_clients
        self._ids = itertools.count(1)
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Do nothing: the grid serves the one run that it was made for."""

    @property
    def run(self) -> Any:
        """Not available: there is no SuperLink that could describe a run."""
        raise AttributeError("the in-process grid belongs to no SuperLink run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to one client (the API of `Grid`)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return every client's node id, ascending."""
        return list(range(1, self._num_clients + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Execute the messages now; return the ids under which the replies wait."""
        pushed = []
        for message in messages:
            message_id = _identify(message, next(self._ids))
            self._replies[message_id] = self._execute(message)
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to the messages of these ids, each once."""
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Execute the messages and return their replies.

        Args:
            messages: To any clients, in any order.
            timeout: Ignored: a turn in this process cannot be abandoned half-way.
        """
        return self.pull_messages(self.push_messages(messages))

    def context(self, node_id: int) -> Context:
        """Return the context that holds a client's state, made when first asked for."""
        if node_id not in self._contexts:
            self._contexts[node_id] = Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config={records.PARTITION_ID: node_id - 1},
                state=RecordDict(),
                run_config={},
            )
        return self._contexts[node_id]

    def _execute(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        try:
            reply = self._app(message, self.context(node_id))
        except Exception as error:  # a client's fault costs its own turn, never the run
            _log.warning("client %d raised", node_id - 1, exc_info=True)
            reply = records.error_reply(message, f"{type(error).__name__}: {error}")
        _identify(reply, next(self._ids))
        return reply


def _identify(message: Message, number: int) -> str:
    message_id = f"m{number}"
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


@contextmanager
def task_identity() -> Iterator[None]:
    """Say who sends messages in this process, as Flower's task launcher would."""
    before = TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE, 1
    try:
        yield
    finally:
        TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = before


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads, and as many as before on the way out."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class InProcess:
    """Runs a ServerApp and its ClientApps in this process."""

    def __init__(self, executor: Literal["serial"] = "serial", threads: int = 1) -> None:
        """Make the runtime.

        Args:
            executor: How the clients of a cohort are executed: ``serial``, one after another.
            threads: Threads that torch may use, at least 1. The last bits of a sum depend on how
                many share it, so equal numbers give equal results on any machine.

        Raises:
            ValueError: The executor is unknown or `threads` is out of range.
        """
        if executor != "serial":
            raise ValueError(f"runtime.executor={executor}: unknown; choices: serial")
        if threads < 1:
            raise ValueError(f"runtime.threads={threads}: must be at least 1")
        self._threads = threads

    def run(self, server_app: ServerApp, client_app: ClientApp, num_clients: int) -> None:
        """Run `server_app` to its end against `num_clients` clients that run `client_app`."""
        context = Context(
            run_id=RUN_ID, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={}
        )
        with task_identity(), _torch_threads(self._threads):
            server_app(self.make_grid(client_app, num_clients), context)

    def make_grid(self, client_app: ClientApp, num_clients: int) -> InProcessGrid:
        """Return the grid to run on; an executor of another kind overrides this."""
        return InProcessGrid(client_app, num_clients)
