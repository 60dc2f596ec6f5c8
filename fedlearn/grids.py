"""Grids: which clients there are, which node is which, and who has their states in reach."""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from fedlearn import records
from fedlearn.client_state import ClientState, UsedTurn
from fedlearn.cohorts.sampler import Integers
from fedlearn.spans import span


class RunFailedError(RuntimeError):
    """The run cannot learn: too many rounds in a row changed nothing, or there is nobody."""


@runtime_checkable
class KnowsClients(Protocol):
    """A grid that knows which node is which client, so that nobody has to be asked."""

    def nodes_of_clients(self) -> dict[int, int]:
        """Return each client's node id, by client id, ascending."""
        ...


@runtime_checkable
class ReachesStates(KnowsClients, Protocol):
    """A grid that has its clients' continual states in reach; elsewhere clients keep their own."""

    def context(self, node_id: int) -> Context:
        """Return a context that holds a client's state, not to be changed."""
        ...

    def restore(self, node_id: int, turn: UsedTurn) -> None:
        """Let a client that has taken no turn here go on from this one."""
        ...


@runtime_checkable
class LosesClients(Protocol):
    """A grid whose clients come and go."""

    def gather(self) -> dict[int, int]:
        """Wait until a round can begin; return the node ids of those connected, by client id.

        Raises:
            RunFailedError: It cannot.
        """
        ...


class Roster:
    """The clients that can be asked.

    Attributes:
        reachable: (n,) their ids, ascending; None for all of the run's.
    """

    def __init__(self, grid: Grid, num_clients: int, warn: Callable[[str], None]) -> None:
        """Find them.

        Args:
            grid: Where they are.
            num_clients: How many there should be.
            warn: Told of each that comes or goes, in a line.
        """
        self._grid = grid
        self._num_clients = num_clients
        self._warn = warn
        self._known: Collection[int] = range(num_clients)
        self.reachable: Integers | None = None
        self._set(grid.nodes_of_clients() if isinstance(grid, KnowsClients) else self._asked())

    def gather(self) -> None:
        """Wait until a round can begin, on a grid whose clients come and go.

        Raises:
            RunFailedError: It cannot.
        """
        if not isinstance(self._grid, LosesClients):
            return
        with span("gather"):
            nodes = self._grid.gather()
        for client_id in sorted(set(self._known) - nodes.keys()):
            self._warn(f"client {client_id} is not connected; the run goes on without it")
        for client_id in sorted(nodes.keys() - set(self._known)):
            self._warn(f"client {client_id} is connected")
        self._known = nodes
        self._set(nodes)

    def of(self, client_ids: Collection[int]) -> dict[int, int]:
        """Return the node ids of those of some clients that can be asked, by client id."""
        return {k: self._nodes[k] for k in client_ids if k in self._nodes}

    def _set(self, nodes: Mapping[int, int]) -> None:
        self._nodes = nodes
        whole = len(nodes) == self._num_clients
        self.reachable = None if whole else np.array(list(nodes), dtype=np.int64)

    def _asked(self) -> dict[int, int]:
        """Ask each node who it is: Flower's ids are transport, and random on some grids."""
        asked = [
            Message(RecordDict(), dst_node_id=node_id, message_type="query")
            for node_id in self._grid.get_node_ids()
        ]
        nodes: dict[int, int] = {}
        for reply in self._grid.send_and_receive(asked):
            if reply.has_error():
                continue
            told = records.metrics_of(reply).get(records.PARTITION_ID)
            if isinstance(told, int) and 0 <= told < self._num_clients:
                nodes[told] = reply.metadata.src_node_id
        for client_id in sorted(set(range(self._num_clients)) - nodes.keys()):
            self._warn(f"client {client_id} did not answer; the run goes on without it")
        return dict(sorted(nodes.items()))


def used_turns(grid: ReachesStates, acknowledged: Mapping[int, int]) -> dict[int, UsedTurn]:
    """Return the turns from which clients are going to go on, by client id.

    Args:
        grid: Where the clients are.
        acknowledged: By client id, the last round whose reply the server used.
    """
    nodes = grid.nodes_of_clients()
    turns: dict[int, UsedTurn] = {}
    for client_id, server_round in acknowledged.items():
        turn = ClientState(grid.context(nodes[client_id]).state).used(server_round)
        if turn is not None:
            turns[client_id] = turn
    return turns


def restore_clients(grid: ReachesStates, turns: Mapping[int, UsedTurn]) -> None:
    """Let clients that have taken no turn yet go on from these, by client id."""
    nodes = grid.nodes_of_clients()
    for client_id, turn in turns.items():
        grid.restore(nodes[client_id], turn)
