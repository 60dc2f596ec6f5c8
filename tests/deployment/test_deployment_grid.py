"""A deployment's grid: who is there, who answers, how long anybody waits; and servers on it."""

import pytest
import torch
from executors import Remembering
from fake_flower import Clock, FakeFlower, key_of, node_of
from federation import federate, norm_model
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedlearn import records
from fedlearn.deployment import grid as grids
from fedlearn.deployment.grid import Asked, DeploymentGrid, KnownKeys, Patience
from fedlearn.deployment.packing import HEAD, PIECE, packer, unpacked
from fedlearn.grids import RunFailedError
from fedlearn.runtimes.inprocess import InProcessGrid

CLIENTS = {key_of(client_id): client_id for client_id in range(4)}


def known_keys():
    return KnownKeys(lambda: CLIENTS)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(grids, "time", made)
    return made


def connected(*client_ids):
    return {key_of(client_id): node_of(client_id) for client_id in client_ids}


def echo(message):
    """At once, what was sent, packed."""
    return 0.0, Message(packer()(unpacked(message).content), reply_to=message)


def make(clock, answer=echo, present=range(4), **patience):
    flower = FakeFlower(clock, answer, connected(*present))
    return DeploymentGrid(flower, known_keys(), Patience(**patience)), flower


def to(client_id, number=0.0, ttl=None):
    content = RecordDict(
        {
            "arrays": records.to_arrays({"w": torch.full((3,), float(number))}),
            "config": ConfigRecord({"number": number}),
        }
    )
    return Message(content, node_of(client_id), "train", ttl=ttl)


def by_client(replies):
    clients = {node_of(client_id): client_id for client_id in CLIENTS.values()}
    told = {}
    for reply in replies:
        client_id = clients[reply.metadata.src_node_id]
        assert client_id not in told
        told[client_id] = reply
    return told


# --- replies ------------------------------------------------------------------------------------


def test_replies_are_of_whom_was_asked_and_as_they_were_before_packing(clock):
    def answer(message):
        client_id = (7000 - message.metadata.dst_node_id) // 13
        return 5.0 - client_id, echo(message)[1]  # the last one first

    grid, flower = make(clock, answer)
    replies = by_client(grid.send_and_receive([to(k, 10 + k) for k in range(4)]))
    assert sorted(replies) == [0, 1, 2, 3]
    for client_id, reply in replies.items():
        assert list(reply.content) == ["arrays", "config"]
        arrived = records.to_tensors(reply.content["arrays"])["w"]
        assert arrived.tolist() == [10 + client_id] * 3
        assert reply.content["config"]["number"] == 10 + client_id
    assert all(HEAD in message.content for message in flower.pushed)
    assert clock.now < 1006


def test_nobody_asked_is_nobody_waited_for(clock):
    grid, flower = make(clock)
    assert list(grid.send_and_receive([])) == []
    assert flower.pulls == []


def test_flowers_own_errors_get_the_clients_name(clock):
    def answer(message):
        if message.metadata.dst_node_id != node_of(2):
            return echo(message)
        reply = Message(Error(code=3, reason="node unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 1
        return 0.0, reply

    grid, _ = make(clock, answer)
    replies = by_client(grid.send_and_receive([to(k) for k in range(4)]))
    assert [k for k, reply in replies.items() if reply.has_error()] == [2]
    assert replies[2].error.reason == "node unavailable"
    assert replies[2].error.code == 3
    assert replies[2].metadata.reply_to_message_id == "m2"


def test_an_error_of_the_client_stays_as_it_is(clock):
    def answer(message):
        return 0.0, records.error_reply(message, "out of memory")

    grid, _ = make(clock, answer)
    (reply,) = grid.send_and_receive([to(1)])
    assert reply.error.reason == "out of memory"
    assert reply.metadata.src_node_id == node_of(1)


def test_an_answer_in_anothers_place_is_an_error_of_the_one_who_was_asked(clock):
    def answer(message):
        told = echo(message)
        if message.metadata.dst_node_id == node_of(0):
            told[1].metadata.__dict__["_src_node_id"] = node_of(3)
        return told

    grid, _ = make(clock, answer)
    replies = by_client(grid.send_and_receive([to(0), to(3)]))
    assert replies[0].error.reason == "another node answered in its place"
    assert replies[3].has_content()


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({HEAD: ConfigRecord({"layout": "[[", "records": b""})}, "cannot be read"),
        ({HEAD: ConfigRecord()}, "cannot be read"),
        (
            {
                HEAD: ConfigRecord(
                    {"layout": '[["arrays", [["w", "float64", [1000]]]]]', "records": b""}
                ),
                f"{PIECE}0": ConfigRecord({"bytes": bytes(3)}),
            },
            "too few",
        ),
    ],
)
def test_a_reply_that_cannot_be_unpacked_is_that_clients_error(parts, reason, clock):
    def answer(message):
        if message.metadata.dst_node_id != node_of(1):
            return echo(message)
        return 0.0, Message(RecordDict(dict(parts)), reply_to=message)

    grid, _ = make(clock, answer)
    replies = by_client(grid.send_and_receive([to(k) for k in range(4)]))
    assert [k for k, reply in replies.items() if reply.has_error()] == [1]
    assert reason in replies[1].error.reason


def test_a_message_that_the_superlink_refuses_is_an_error_of_its_client(clock):
    class Refusing(FakeFlower):
        def push_messages(self, messages):
            ids = super().push_messages(messages)
            return ["", ids[1], "", ids[3]]

    grid = DeploymentGrid(Refusing(clock, echo, connected(*range(4))), known_keys(), Patience())
    replies = by_client(grid.send_and_receive([to(k) for k in range(4)]))
    assert sorted(replies) == [0, 1, 2, 3]
    refused = {k: reply.error.reason for k, reply in replies.items() if reply.has_error()}
    assert refused == dict.fromkeys([0, 2], "the SuperLink refused its message")
    assert clock.now == 1000


def test_a_batch_that_is_too_large_for_flower_is_an_error_of_each_client(clock):
    class Full(FakeFlower):
        def push_messages(self, messages):
            return []

    grid = DeploymentGrid(Full(clock, echo, connected(*range(4))), known_keys(), Patience())
    replies = by_client(grid.send_and_receive([to(k) for k in range(4)]))
    assert all(reply.has_error() for reply in replies.values())
    assert len(replies) == 4


def test_replies_that_nobody_asked_for_are_ignored(clock):
    class Chatty(FakeFlower):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            strange = records.error_reply(self.pushed[0], "strange")
            strange.metadata.__dict__["_reply_to_message_id"] = "m99"
            return [strange, *replies, *replies]  # and twice

    grid = DeploymentGrid(Chatty(clock, echo, connected(*range(4))), known_keys(), Patience())
    replies = by_client(grid.send_and_receive([to(k, k) for k in range(3)]))
    assert sorted(replies) == [0, 1, 2]
    assert not any(reply.has_error() for reply in replies.values())


# --- deadlines ----------------------------------------------------------------------------------


def answering_late(seconds):
    """Answers at once, but for client 1, who takes its time in its first turn."""

    def answer(message):
        late = message.metadata.dst_node_id == node_of(1) and message.metadata.message_id == "m1"
        return (seconds if late else 0.0), echo(message)[1]

    return answer


def test_a_round_does_not_wait_longer_than_it_may_and_who_is_late_is_an_error(clock):
    grid, _ = make(clock, answering_late(100.0), round_s=20.0)
    replies = by_client(grid.send_and_receive([to(k) for k in range(4)]))
    assert 1020 <= clock.now < 1021
    assert [k for k, reply in replies.items() if reply.has_error()] == [1]
    assert replies[1].error.reason == "no reply within 20 s"


def test_a_reply_that_comes_just_in_time_counts(clock):
    grid, _ = make(clock, answering_late(19.9), round_s=20.0)
    assert not any(reply.has_error() for reply in grid.send_and_receive([to(k) for k in range(4)]))


def test_how_long_a_turn_was_waited_for_is_told_of_trainings_alone(clock):
    def answer(message):
        content = RecordDict({"metrics": MetricRecord({"loss": 1.0})})
        return (0.0 if message.metadata.dst_node_id == node_of(0) else 7.0), Message(
            content, reply_to=message
        )

    grid, _ = make(clock, answer)
    replies = by_client(grid.send_and_receive([to(0), to(1)]))
    waited = {k: reply.content["metrics"]["node-round-trip-s"] for k, reply in replies.items()}
    assert waited[0] == 0
    assert 7 <= waited[1] < 8
    (reply,) = grid.send_and_receive([Message(RecordDict(), node_of(0), "evaluate")])
    assert dict(reply.content["metrics"]) == {"loss": 1.0}


def test_a_late_reply_is_never_one_of_a_later_round(clock):
    grid, flower = make(clock, answering_late(100.0), round_s=20.0)
    grid.send_and_receive([to(k, 1) for k in range(4)])
    for number in range(2, 12):  # it is there for the last of these
        replies = by_client(grid.send_and_receive([to(k, number) for k in range(4)]))
        clock.sleep(20)
        for reply in replies.values():
            assert reply.content["config"]["number"] == number
    asked = [each for pull in flower.pulls[-10:] for each in pull]
    assert "m1" not in asked


@pytest.mark.parametrize(("timeout", "expected"), [(None, 20), (5.0, 5), (0.0, 0), (1000.0, 20)])
def test_a_callers_timeout_can_only_be_shorter(timeout, expected, clock):
    grid, _ = make(clock, lambda message: None, round_s=20.0)
    (reply,) = grid.send_and_receive([to(0)], timeout=timeout)
    assert expected <= clock.now - 1000 < expected + 1
    assert reply.error.reason == f"no reply within {expected} s"


def test_no_message_outlives_its_round(clock):
    grid, flower = make(clock, round_s=20.0)
    grid.send_and_receive([to(0), to(1, ttl=5.0), to(2, ttl=500.0)])
    assert [message.metadata.ttl for message in flower.pushed] == [20, 5, 20]


# --- who is there -------------------------------------------------------------------------------


def test_clients_are_known_by_their_keys_and_strangers_are_not_clients(clock):
    grid, flower = make(clock, present=(2, 0))
    flower.connected[b"another key"] = 99
    assert grid.nodes_of_clients() == {0: node_of(0), 2: node_of(2)}
    assert list(grid.nodes_of_clients()) == [0, 2]
    assert list(grid.get_node_ids()) == [node_of(0), node_of(2)]
    grid, flower = make(clock, present=(), quorum_s=5.0)
    flower.connected[b"another key"] = 99
    with pytest.raises(RunFailedError, match="0 of 4 clients"):
        grid.gather()


def test_without_keys_each_node_is_asked_once_who_it_is(clock):
    """A node that answers nonsense, or not at all, is no client."""
    names = {node_of(0): 0, node_of(1): 3, node_of(2): 7, node_of(3): None, 99: 1}

    def answer(message):
        name = names[message.metadata.dst_node_id]
        if name is None:
            return 0.0, records.error_reply(message, "no idea")
        metrics = MetricRecord({records.PARTITION_ID: name})
        return 0.0, Message(RecordDict({"metrics": metrics}), reply_to=message)

    class Answering(FakeFlower):
        def get_node_ids(self):
            return list(self.connected.values())

        def send_and_receive(self, messages):
            return self.pull_messages(self.push_messages(messages))

    flower = Answering(clock, answer, connected(0, 1, 2, 3))
    grid = DeploymentGrid(flower, Asked(4), Patience(gather_s=0.0))
    assert grid.gather() == grid.gather() == {0: node_of(0), 3: node_of(1)}
    flower.connected = {b"": node_of(1), b"new": 99}
    before = len(flower.pushed)
    assert grid.gather() == {1: 99, 3: node_of(1)}
    assert [each.metadata.dst_node_id for each in flower.pushed[before:]] == [99]
    flower.connected = connected(0)
    assert grid.gather() == {0: node_of(0)}


def test_all_are_there_and_nobody_is_waited_for(clock):
    grid, _ = make(clock, gather_s=60.0)
    assert grid.gather() == {k: node_of(k) for k in range(4)}
    assert clock.now == 1000


def test_a_missing_client_is_waited_for_from_when_it_was_first_missed(clock):
    grid, flower = make(clock, present=(0, 1, 3), gather_s=10.0)
    assert list(grid.gather()) == [0, 1, 3]
    assert 1010 <= clock.now < 1011
    before = clock.now
    for _ in range(5):  # and not again in every round
        assert list(grid.gather()) == [0, 1, 3]
    assert clock.now == before
    flower.connected = connected(0, 1, 2, 3)
    assert list(grid.gather()) == [0, 1, 2, 3]
    flower.connected = connected(0, 1, 3)  # it was back, so it is waited for anew
    assert list(grid.gather()) == [0, 1, 3]
    assert 10 <= clock.now - before < 11
    flower.connected = connected(0, 1)  # and so is another one, but not it
    begun = clock.now
    assert list(grid.gather()) == [0, 1]
    assert 10 <= clock.now - begun < 11


def test_time_that_a_round_took_counts_as_waiting(clock):
    grid, flower = make(clock, present=(0, 1, 3), gather_s=10.0)
    flower.connected = connected(0, 1, 2, 3)
    grid.gather()
    flower.connected = connected(0, 1, 3)
    clock.sleep(500)  # nobody looked, so it was not missed
    begun = clock.now
    grid.gather()
    assert 10 <= clock.now - begun < 11


def test_who_comes_in_time_is_in_the_round(clock, monkeypatch):
    grid, flower = make(clock, present=(0, 1), gather_s=10.0)
    sleep = clock.sleep

    def arriving(seconds):
        sleep(seconds)
        if clock.now > 1004:
            flower.connected = connected(0, 1, 2)
        if clock.now > 1006:
            flower.connected = connected(0, 1, 2, 3)

    monkeypatch.setattr(clock, "sleep", arriving)
    assert list(grid.gather()) == [0, 1, 2, 3]
    assert 1006 < clock.now < 1007


def test_no_patience_is_no_waiting(clock):
    grid, _ = make(clock, present=(1,), gather_s=0.0)
    assert list(grid.gather()) == [1]
    assert clock.now == 1000


def test_without_a_quorum_the_run_ends_and_says_why(clock):
    grid, _ = make(clock, present=(1, 2), gather_s=0.0, quorum=3, quorum_s=30.0)
    with pytest.raises(RunFailedError) as caught:
        grid.gather()
    assert 1030 < clock.now < 1031
    told = "2 of 4 clients are connected after 30 s, and runtime.quorum=3"
    assert str(caught.value) == told


def test_a_quorum_that_comes_back_goes_on(clock, monkeypatch):
    grid, flower = make(clock, present=(1,), gather_s=0.0, quorum=2, quorum_s=30.0)
    sleep = clock.sleep

    def arriving(seconds):
        sleep(seconds)
        if clock.now > 1029:
            flower.connected = connected(1, 3)

    monkeypatch.setattr(clock, "sleep", arriving)
    assert list(grid.gather()) == [1, 3]
    flower.connected = connected(3)
    clock.now = 2000.0  # the patience of each round is its own
    monkeypatch.setattr(clock, "sleep", sleep)
    with pytest.raises(RunFailedError):
        grid.gather()
    assert clock.now > 2030


# --- a server over it ---------------------------------------------------------------------------


def deployment(clock, absent=(), late=()):
    """A grid type of nodes that are away, or answer too late, in rounds of some clients."""

    def make_grid(executor):
        class Nodes(FakeFlower):
            rounds = 0

            def get_nodes(self):
                self.connected = connected(
                    *(k for k in CLIENTS.values() if (k, self.rounds + 1) not in absent)
                )
                return super().get_nodes()

            def push_messages(self, messages):
                self.rounds += messages[0].metadata.message_type.startswith("train")
                return super().push_messages(messages)

        def answer(message):
            client_id = next(k for k in range(4) if node_of(k) == message.metadata.dst_node_id)
            message.metadata.dst_node_id = client_id + 1  # as the executor calls it
            reply = executor.take_turn(unpacked(message))
            reply.metadata.__dict__["_src_node_id"] = node_of(client_id)
            if reply.has_content():
                reply.content = packer()(reply.content)
            trains = message.metadata.message_type == "train"
            return (25.0 if trains and (client_id, flower.rounds) in late else 0.0), reply

        flower = Nodes(clock, answer)
        grid = DeploymentGrid(flower, known_keys(), Patience(round_s=20.0, gather_s=0.0))
        grid.executor = executor
        return grid

    return make_grid


def losing(missing):
    """An in-process grid on which the replies of some clients in some rounds are lost."""

    class Losing(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):
            rounds = {
                each.metadata.dst_node_id: records.read_instruction(each).server_round
                for each in messages
            }
            return [
                records.error_reply(asked, "lost")
                if (node - 1, rounds[node]) in missing and asked.metadata.message_type == "train"
                else reply
                for asked, reply in zip(messages, super().send_and_receive(messages), strict=True)
                for node in [asked.metadata.dst_node_id]
            ]

    return Losing


ABSENCES = {
    "nobody": set(),
    "one for a while": {(2, 3), (2, 4)},
    "one from the beginning": {(0, 1), (0, 2), (0, 3)},
    "one to the end": {(3, 5), (3, 6), (3, 7), (3, 8)},
    "several": {(0, 2), (1, 2), (1, 3), (2, 5), (3, 5), (0, 7), (1, 7), (2, 7)},
}


@pytest.mark.parametrize("build_model", [None, norm_model], ids=["plain", "norms"])
@pytest.mark.parametrize("missing", ABSENCES.values(), ids=ABSENCES)
def test_who_is_away_costs_its_turns_and_nothing_else(missing, build_model, clock):
    asked = {"continual": Remembering(), "rounds_per_experience": 4}
    if build_model is not None:
        asked["build_model"] = build_model
    expected, told, _ = federate(grid_type=losing(missing), **asked)
    server, events, _ = federate(grid_type=deployment(clock, absent=missing), **asked)
    assert server.digest == expected.digest
    for event, other in zip(rounds(events), rounds(told), strict=True):
        absent = {client_id for client_id, at in missing if at == event["round"]}
        assert told_by_clients(event) == told_by_clients(other)
        assert event["failed"] == []
        assert {each["client"] for each in other["failed"]} == absent
    whole, _, _ = federate(**asked)
    assert (server.digest == whole.digest) == (not missing)


@pytest.mark.parametrize("missing", ABSENCES.values(), ids=ABSENCES)
def test_who_answers_too_late_might_as_well_have_been_away(missing, clock):
    asked = {"continual": Remembering(), "rounds_per_experience": 4}
    expected, told, _ = federate(grid_type=losing(missing), **asked)
    server, events, _ = federate(grid_type=deployment(clock, late=missing), **asked)
    assert server.digest == expected.digest
    for event, other in zip(rounds(events), rounds(told), strict=True):
        assert told_by_clients(event) == told_by_clients(other)
        failed = {each["client"]: each["reason"] for each in event["failed"]}
        assert failed.keys() == {each["client"] for each in other["failed"]}
        assert set(failed.values()) <= {"no reply within 20 s"}


def told_by_clients(event):
    """What clients tell of their turns, but for what only a deployment knows."""
    return {
        client_id: {key: value for key, value in told.items() if not key.startswith("node_")}
        for client_id, told in event["clients"].items()
    }


def rounds(events):
    return [event for event in events if event["event"] == "round"]


def test_the_server_tells_once_when_a_client_goes_and_comes(clock):
    missing = {(0, 1), (0, 2), (2, 3), (2, 4), (3, 4), (3, 6)}
    _, events, _ = federate(grid_type=deployment(clock, absent=missing), rounds_per_experience=3)
    told, at = [], 1
    for event in events:
        if event["event"] == "warning":
            told.append((at, event["message"]))
        elif event["event"] == "round":
            at = event["round"] + 1
    gone = "client {} is not connected; the run goes on without it"
    back = "client {} is connected"
    assert told == [
        (1, gone.format(0)),
        (3, gone.format(2)),
        (3, back.format(0)),
        (4, gone.format(3)),
        (5, back.format(2)),
        (5, back.format(3)),
        (6, gone.format(3)),
    ]


def test_a_run_without_a_quorum_fails(clock):
    away = {(k, at) for k in range(4) for at in range(3, 9)}
    with pytest.raises(RunFailedError, match="0 of 4 clients are connected"):
        federate(grid_type=deployment(clock, absent=away), rounds_per_experience=4)
