"""The serial executor: clients in this process, one after another."""

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedlearn import records
from fedlearn.client_state import UsedTurn, record_of

RUN_ID = 1

_log = logging.getLogger(__name__)


class Executor(Protocol):
    """Runs clients' turns for the in-process grid.

    Attributes:
        num_clients: Of the federation.
        description: What it is, as JSON values: ``executor``, its name in the configuration;
            ``workers``, its processes; ``formulation``, ``why`` and ``chunk``, where cohorts are
            trained as one program, as of `fedlearn.turns.CohortTrainer`.
    """

    num_clients: int
    description: dict[str, Any]

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies to the messages, in their order; whatever fails is an error reply."""
        ...

    def context(self, node_id: int) -> Context:
        """Return the context that holds a client's state."""
        ...

    def restore(self, node_id: int, turn: UsedTurn) -> None:
        """Let a client that has taken no turn here go on from this one."""
        ...

    def close(self) -> None:
        """Free what the executor holds but for contexts; may be called twice."""
        ...


class Serial:
    """Executes clients here, in the order of their messages.

    Attributes:
        num_clients: Of the federation.
        description: See `Executor`.
    """

    def __init__(self, client_app: ClientApp, num_clients: int) -> None:
        self.num_clients = num_clients
        self._app = client_app
        self._contexts: dict[int, Context] = {}
        self.description: dict[str, Any] = {"executor": "serial"}

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies to the messages, in their order."""
        return [self.take_turn(message) for message in messages]

    def take_turn(self, message: Message) -> Message:
        """Return one client's reply."""
        node_id = message.metadata.dst_node_id
        try:
            return self._app(message, self.context(node_id))
        except Exception as error:  # a client's fault costs its own turn, never the run
            _log.warning("client %d raised", node_id - 1, exc_info=True)
            return records.error_reply(message, reason_of(error))

    def context(self, node_id: int) -> Context:
        """Return the context that holds a client's state, made when first asked for."""
        if node_id not in self._contexts:
            self._contexts[node_id] = make_context(node_id, RecordDict())
        return self._contexts[node_id]

    def restore(self, node_id: int, turn: UsedTurn) -> None:
        """Let a client go on from this turn."""
        self._contexts[node_id] = make_context(node_id, record_of(turn))

    def close(self) -> None:
        """Do nothing."""


def make_context(node_id: int, state: RecordDict) -> Context:
    """Return a client's context with this state."""
    return Context(
        run_id=RUN_ID,
        node_id=node_id,
        node_config={records.PARTITION_ID: node_id - 1},
        state=state,
        run_config={},
    )


def reason_of(error: Exception) -> str:
    """Return what an error reply tells of an exception."""
    return f"{type(error).__name__}: {error}"
