"""Every continual strategy in every kind of scenario that it fits, federated, on digits.

3 clients, 3 experiences, 2 rounds of one epoch each. The second of two equal runs sends each
client's context through Flower's own serialization before every message: so if both end with the
same weights, the state came back exactly, and the run can be repeated.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.common.serde import context_from_proto, context_to_proto
from lone_client import KINDS, REGRESSION, TWINS

from fedlearn.client import make_client_app
from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from fedlearn.run import make_parts
from fedlearn.runtimes.inprocess import InProcess, InProcessGrid
from fedlearn.runtimes.serial import Serial
from fedlearn.server import Server, make_server_app

SCENARIOS = {
    "class": "split_digits",
    "task": "task_digits",
    "domain": "permuted_digits",
    "regression": "permuted_diabetes",
}
CASES = [
    (engine, name, kind)
    for engine, names in (("avalanche", KINDS), ("functional", TWINS))
    for name in names
    for kind in KINDS[name] + ["regression"] * (name in REGRESSION)
]


CLIPPED = ("ewc", "ewc_online")
"""Whose springs are stiff enough to diverge in so few and large steps."""


class Serializing(Serial):
    """Keeps nothing of a client but bytes."""

    def take_turn(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        data = context_to_proto(self.context(node_id)).SerializeToString()
        self._contexts[node_id] = from_bytes(data)
        return super().take_turn(message)


def from_bytes(data: bytes) -> Context:
    from flwr.proto.message_pb2 import Context as ProtoContext

    return context_from_proto(ProtoContext.FromString(data))


class Events:
    """A tracker that keeps the events."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def event(self, event: Any) -> None:
        self.seen.append(dict(event))

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        return (event for event in self.seen if event["event"] == kind)


def federate(executor: type[Serial], *overrides: str) -> tuple[Server, Events]:
    events = Events()
    made = build(prepare(compose(list(overrides))))
    server, client = make_parts(made, events)  # type: ignore[arg-type]
    grid = InProcessGrid(executor(make_client_app(client), 3))
    InProcess().run(make_server_app(server), grid)
    return server, events


@pytest.mark.parametrize(("engine", "name", "kind"), CASES)
def test_every_strategy_runs_repeats_and_comes_back_from_bytes(
    engine: str, name: str, kind: str
) -> None:
    overrides = (
        f"scenario={SCENARIOS[kind]}",
        "scenario.num_experiences=3",
        f"partition={'iid' if kind == 'regression' else 'dirichlet'}",
        "num_clients=3",
        "rounds_per_experience=2",
        "local.epochs=1",
        "local.batch_size=32",
        "model.hidden_sizes=[32]",
        "tracker=none",
        f"continual={name}",
        f"engine={engine}",
        f"local.max_grad_norm={1 if name in CLIPPED or kind == 'regression' else 'null'}",
    )
    server, events = federate(Serial, *overrides)
    again, _ = federate(Serializing, *overrides)

    assert server.rounds == 6
    assert not list(events.of("warning"))
    for event in events.of("round"):
        assert not event["failed"]
        assert not event["quarantined"]
        assert not event["diverged"]
    tensors = [*server.parameters.values(), *server.buffers.values()]
    assert all(tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point())
    assert again.digest == server.digest
