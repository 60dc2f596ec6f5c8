"""The grid of a deployment: which clients are connected, and how long a round waits for them."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Protocol, cast

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedlearn import records
from fedlearn.deployment.packing import packer, unpacked
from fedlearn.grids import RunFailedError

PAUSE = 0.3
"""Seconds between looks for clients."""

SHORTEST_S, LONGEST_S, SHARE = 0.05, 1.0, 0.05
"""Seconds between looks for replies, and what share of the time waited they are between those."""


@dataclass(frozen=True)
class Patience:
    """How long a deployment's server waits, in seconds.

    Attributes:
        round_s: For the replies of a round.
        quorum: Fewest clients that must be connected for a round to begin.
        gather_s: For a client that is not connected, from when it was first missed.
        quorum_s: For a quorum.
    """

    round_s: float = 3600.0
    quorum: int = 1
    gather_s: float = 60.0
    quorum_s: float = 3600.0


class Roll(Protocol):
    """Says which node is which client.

    Attributes:
        num_clients: How many there are, connected or not.
    """

    num_clients: int

    def present(self, grid: Any) -> dict[int, int]:
        """Return the node ids of the clients that are connected, by client id."""
        ...


class KnownKeys:
    """Knows clients by their nodes' public keys, which the SuperLink has checked.

    Attributes:
        num_clients: See `Roll`.
    """

    def __init__(self, clients: Callable[[], Mapping[bytes, int]]) -> None:
        """Make a roll.

        Args:
            clients: Returns client ids by public key, as they are now: a node may have a new one.
        """
        self._clients = clients
        self.num_clients = len(clients())

    def present(self, grid: Any) -> dict[int, int]:
        """Return the node ids of the clients that are connected, by client id."""
        clients = self._clients()
        known = [node for node in grid.get_nodes() if node.public_key in clients]
        return {clients[node.public_key]: node.node_id for node in known}


class Asked:
    """Asks nodes who they are, once: for a SuperLink without keys, as of ``flwr run`` at home.

    Attributes:
        num_clients: See `Roll`.
    """

    def __init__(self, num_clients: int) -> None:
        """Make a roll of so many clients."""
        self.num_clients = num_clients
        self._known: dict[int, int] = {}

    def present(self, grid: Any) -> dict[int, int]:
        """Return the node ids of the clients that are connected, by client id."""
        here = set(grid.get_node_ids())
        asked = [
            Message(RecordDict(), dst_node_id=node_id, message_type=MessageType.QUERY)
            for node_id in sorted(here - self._known.keys())
        ]
        for reply in grid.send_and_receive(asked) if asked else ():
            if reply.has_content():
                told = records.metrics_of(reply).get(records.PARTITION_ID)
                if isinstance(told, int) and 0 <= told < self.num_clients:
                    self._known[reply.metadata.src_node_id] = told
        return {self._known[node_id]: node_id for node_id in sorted(here & self._known.keys())}


class DeploymentGrid(Grid):
    """Flower's own grid, with clients known by their keys, and deadlines.

    Attributes:
        description: What runs the clients, as JSON values.
    """

    def __init__(
        self, grid: Any, roll: Roll, patience: Patience, ring: Callable[[], None] = lambda: None
    ) -> None:
        """Make one.

        Args:
            grid: Flower's, with ``get_nodes``.
            roll: Which node is which client.
            patience: How long it waits.
            ring: Called when messages were sent, for nodes that wait for some.
        """
        self._ring = ring
        self._grid = grid
        self._roll = roll
        self._patience = patience
        self._missed: dict[int, float] = {}
        self.description = {"executor": "deployment", "workers": roll.num_clients}

    def nodes_of_clients(self) -> dict[int, int]:
        """Return the node ids of the clients that are connected, by client id."""
        return dict(sorted(self._roll.present(self._grid).items()))

    def gather(self) -> dict[int, int]:
        """Wait until a round can begin; return the node ids of those connected, by client id.

        Raises:
            RunFailedError: There was no quorum for too long.
        """
        patience, begun = self._patience, time.monotonic()
        while True:
            nodes, now = self.nodes_of_clients(), time.monotonic()
            missing = set(range(self._roll.num_clients)) - nodes.keys()
            self._missed = {k: self._missed.get(k, now) for k in missing}
            late = [k for k, since in self._missed.items() if now - since < patience.gather_s]
            if len(nodes) >= patience.quorum and not late:
                return nodes
            if len(nodes) < patience.quorum and now - begun > patience.quorum_s:
                raise RunFailedError(
                    f"{len(nodes)} of {self._roll.num_clients} clients are connected after "
                    f"{patience.quorum_s:.0f} s, and runtime.quorum={patience.quorum}"
                )
            time.sleep(PAUSE)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Sequence[Message]:
        """Send messages and return the replies that come in time.

        Args:
            messages: Each to a client of its own.
            timeout: Seconds, where it is less than the round's.
        """
        batch = list(messages)
        pack = packer()
        for message in batch:
            message.content = pack(message.content)
            # what waits for a node that is gone is not for it to find when it is back
            message.metadata.ttl = min(message.metadata.ttl, self._patience.round_s)
        # Flower has an empty id for a message that it refused, and no ids for too large a batch
        pushed = zip_longest(self.push_messages(batch), batch)
        waiting: dict[str, Message] = {}
        replies: list[Message] = []
        for key, message in pushed:
            if key:
                waiting[key] = message
            else:
                replies.append(records.error_reply(message, "the SuperLink refused its message"))
        limit = min(math.inf if timeout is None else timeout, self._patience.round_s)
        begun = time.monotonic()
        end = begun + limit
        while waiting:
            for reply in self._grid.pull_messages(list(waiting)):
                asked = waiting.pop(reply.metadata.reply_to_message_id, None)
                if asked is not None:
                    replies.append(_from_client(reply, asked))
                    _note_round_trip(replies[-1], time.monotonic() - begun)
            now = time.monotonic()
            if not waiting or now > end:
                break
            time.sleep(min(max(SHORTEST_S, SHARE * (now - begun)), LONGEST_S))
        late = f"no reply within {limit:.0f} s"
        return replies + [records.error_reply(asked, late) for asked in waiting.values()]

    def set_run(self, run: Any) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Flower's run."""
        return self._grid.run

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
        """Return the node ids of the clients that are connected."""
        return list(self.nodes_of_clients().values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass on, and wake those who wait for messages."""
        pushed = list(self._grid.push_messages(messages))
        self._ring()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pass on."""
        return cast(Iterable[Message], self._grid.pull_messages(message_ids))


def _note_round_trip(reply: Message, seconds: float) -> None:
    """Add to a turn's metrics how long the server waited for it."""
    if reply.has_content() and reply.metadata.message_type == MessageType.TRAIN:
        records.metrics_of(reply)["node-round-trip-s"] = seconds


def _from_client(reply: Message, asked: Message) -> Message:
    """Return a reply, readable, and under the name of whom was asked.

    Flower signs its own errors as node 1.
    """
    if reply.metadata.src_node_id != asked.metadata.dst_node_id:
        if reply.has_error():
            return Message(reply.error, reply_to=asked)
        return records.error_reply(asked, "another node answered in its place")
    try:
        return unpacked(reply)
    except ValueError as error:
        return records.error_reply(asked, str(error))
