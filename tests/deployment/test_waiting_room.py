"""The waiting room: nodes are answered when there is something, and have it in the end."""

import asyncio
import contextlib
import time

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, Message, Metadata
from flwr.proto.node_pb2 import Node

from fedlearn.deployment import waiting_room
from fedlearn.deployment.bell import Bell
from fedlearn.deployment.waiting_room import WaitingRoom


@pytest.fixture
def bell(tmp_path):
    return Bell(tmp_path / "bell")


def ring(bell):
    """Ring, and be sure that the file system's clock shows it."""
    before = bell.rung()
    while bell.rung() == before:
        bell.ring()


def question(node_id=7):
    return PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString()


def confirmation(message_id, node_id=7):
    return ConfirmMessageReceivedRequest(
        node=Node(node_id=node_id), message_object_id=message_id
    ).SerializeToString()


def told(message_id, ttl=60.0, status=200):
    metadata = Metadata(message_id=message_id, created_at=time.time(), ttl=ttl)
    reply = PullMessagesResponse(messages_list=[Message(metadata=metadata)])
    return httpx.Response(status, content=reply.SerializeToString())


def ids_in(reply):
    told = PullMessagesResponse.FromString(reply.content).messages_list
    return [message.metadata.message_id for message in told]


class SuperLink:
    """Delivers each message once, as Flower's does."""

    def __init__(self):
        self.waiting = []
        self.asked = 0
        self.status = 200

    async def ask(self):
        self.asked += 1
        await asyncio.sleep(0)
        if self.status != 200:
            return httpx.Response(self.status)
        return self.waiting.pop(0) if self.waiting else httpx.Response(200)


async def never():
    await asyncio.Event().wait()


async def at_once():
    return {"type": "http.disconnect"}


def test_what_is_there_is_answered_at_once(bell):
    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.waiting = [told("a")]
        assert ids_in(await room.pull(question(), link.ask, never)) == ["a"]
        assert link.asked == 1

    asyncio.run(story())


def test_a_question_waits_until_the_bell_rings(bell, monkeypatch):
    monkeypatch.setattr(waiting_room, "ASK_S", 100.0)

    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        asking = asyncio.create_task(room.pull(question(), link.ask, never))
        other = asyncio.create_task(room.pull(question(8), SuperLink().ask, never))
        for _ in range(3):  # it is rung for others, too
            await asyncio.sleep(0.12)
            asked = link.asked
            ring(bell)
            while link.asked == asked:
                await asyncio.sleep(0.01)
        assert link.asked == 4
        assert not asking.done()
        link.waiting = [told("a")]
        ring(bell)
        assert ids_in(await asyncio.wait_for(asking, 20)) == ["a"]
        assert not other.done()
        other.cancel()

    asyncio.run(story())


def test_a_bell_that_rings_while_it_asks_is_heard(bell, monkeypatch):
    """The SuperLink has looked, then the message comes and it rings, then its answer is here."""
    monkeypatch.setattr(waiting_room, "ASK_S", 100.0)

    async def story():
        room, link = WaitingRoom(bell), SuperLink()

        async def ask():
            reply = await link.ask()
            if link.asked == 1:
                link.waiting = [told("a")]
                ring(bell)
                await asyncio.sleep(0.3)
            return reply

        assert ids_in(await asyncio.wait_for(room.pull(question(), ask, never), 20)) == ["a"]

    asyncio.run(story())


def test_it_asks_though_nobody_rings(bell, monkeypatch):
    monkeypatch.setattr(waiting_room, "ASK_S", 0.05)

    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        asking = asyncio.create_task(room.pull(question(), link.ask, never))
        while link.asked < 3:
            await asyncio.sleep(0.01)
        link.waiting = [told("a")]
        assert ids_in(await asyncio.wait_for(asking, 20)) == ["a"]

    asyncio.run(story())


def test_a_question_is_answered_before_its_node_gives_up(bell, monkeypatch):
    assert waiting_room.HOLD_S + waiting_room.ASK_S < 30  # httpx's limit in a SuperNode
    monkeypatch.setattr(waiting_room, "HOLD_S", 0.1)

    async def story():
        reply = await WaitingRoom(bell).pull(question(), SuperLink().ask, never)
        assert (reply.status_code, ids_in(reply)) == (200, [])

    asyncio.run(story())


@pytest.mark.parametrize("status", [401, 403, 500, 502])
def test_a_refusal_is_passed_on_at_once(bell, status):
    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.status = status
        assert (await room.pull(question(), link.ask, never)).status_code == status
        assert link.asked == 1

    asyncio.run(story())


def test_nothing_is_taken_for_a_node_that_has_hung_up(bell, monkeypatch):
    monkeypatch.setattr(waiting_room, "ASK_S", 0.05)

    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        await room.pull(question(), link.ask, at_once)
        assert link.asked == 1
        link.waiting = [told("a")]
        assert ids_in(await room.pull(question(), link.ask, never)) == ["a"]

    asyncio.run(story())


def test_a_node_that_asks_anew_takes_the_place_of_its_first_question(bell, monkeypatch):
    """A cut link: the first question's answer would go to nobody, and the message with it."""
    monkeypatch.setattr(waiting_room, "ASK_S", 0.05)

    async def story():
        room, first, second = WaitingRoom(bell), SuperLink(), SuperLink()
        old = asyncio.create_task(room.pull(question(), first.ask, never))
        while not first.asked:
            await asyncio.sleep(0.01)
        new = asyncio.create_task(room.pull(question(), second.ask, never))
        assert ids_in(await asyncio.wait_for(old, 20)) == []
        assert not new.done()
        second.waiting = [told("a")]
        assert ids_in(await asyncio.wait_for(new, 20)) == ["a"]

    asyncio.run(story())


def test_a_stranger_takes_nobodys_place(bell, monkeypatch):
    monkeypatch.setattr(waiting_room, "ASK_S", 0.05)

    async def story():
        room, link, refusing = WaitingRoom(bell), SuperLink(), SuperLink()
        asking = asyncio.create_task(room.pull(question(), link.ask, never))
        while not link.asked:
            await asyncio.sleep(0.01)
        refusing.status = 401
        for node_id in range(20):
            assert (await room.pull(question(node_id), refusing.ask, never)).status_code == 401
        asked = link.asked
        while link.asked < asked + 3:
            await asyncio.sleep(0.01)
        assert not asking.done()
        assert len(room._latest) == 1
        link.waiting = [told("a")]
        assert ids_in(await asyncio.wait_for(asking, 20)) == ["a"]

    asyncio.run(story())


def test_a_message_that_was_not_confirmed_is_delivered_again(bell):
    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.waiting = [told("a")]
        for _ in range(2):
            assert ids_in(await room.pull(question(), link.ask, never)) == ["a"]

    asyncio.run(story())


@pytest.mark.parametrize("node_id", [7, 8])
def test_only_to_its_own_node_and_only_unconfirmed(bell, monkeypatch, node_id):
    monkeypatch.setattr(waiting_room, "HOLD_S", 0.05)

    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.waiting = [told("a")]
        assert ids_in(await room.pull(question(), link.ask, never)) == ["a"]
        if node_id == 7:
            room.confirm(confirmation("a"))
        assert ids_in(await room.pull(question(node_id), link.ask, never)) == []

    asyncio.run(story())


def test_the_confirmation_of_another_message_is_none(bell):
    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.waiting = [told("b")]
        await room.pull(question(), link.ask, never)
        room.confirm(confirmation("a"))
        room.confirm(confirmation("b", node_id=8))
        room.confirm(b"\xff\xff")
        assert ids_in(await room.pull(question(), link.ask, never)) == ["b"]

    asyncio.run(story())


def test_a_refused_node_is_not_told_what_was_delivered(bell):
    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.waiting = [told("a")]
        await room.pull(question(), link.ask, never)
        link.status = 401
        reply = await room.pull(question(), link.ask, never)
        assert (reply.status_code, reply.content) == (401, b"")

    asyncio.run(story())


def test_what_is_too_late_is_not_delivered_again(bell, monkeypatch):
    monkeypatch.setattr(waiting_room, "HOLD_S", 0.05)

    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.waiting = [told("a", ttl=-1.0)]
        assert ids_in(await room.pull(question(), link.ask, never)) == ["a"]
        assert ids_in(await room.pull(question(), link.ask, never)) == []

    asyncio.run(story())


def test_a_node_that_cannot_take_a_message_is_not_told_for_ever(bell, monkeypatch):
    monkeypatch.setattr(waiting_room, "HOLD_S", 0.05)

    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.waiting = [told("a")]
        answers = [ids_in(await room.pull(question(), link.ask, never)) for _ in range(5)]
        assert answers == [["a"]] * waiting_room.DELIVERIES + [[]] * 2

    asyncio.run(story())


def test_a_superlink_that_dies_meanwhile_is_told_as_it_is(bell, monkeypatch):
    monkeypatch.setattr(waiting_room, "ASK_S", 0.05)

    async def story():
        async def ask():
            raise httpx.ConnectError("gone")

        with pytest.raises(httpx.ConnectError):
            await WaitingRoom(bell).pull(question(), ask, never)

    asyncio.run(story())


def test_what_is_no_question_is_for_the_superlink_to_refuse(bell):
    async def story():
        room, link = WaitingRoom(bell), SuperLink()
        link.status = 401
        assert (await room.pull(b"\xff\xff", link.ask, never)).status_code == 401

    asyncio.run(story())


def test_an_answer_that_cannot_be_read_is_passed_on(bell):
    async def story():
        async def ask():
            return httpx.Response(200, content=b"\xff\xff")

        assert (await WaitingRoom(bell).pull(question(), ask, never)).content == b"\xff\xff"

    asyncio.run(story())


def test_a_bell_that_cannot_ring_is_no_reason_to_fail(tmp_path):
    bell = Bell(tmp_path / "nowhere" / "bell")
    bell.ring()
    assert bell.rung() == 0


def test_the_watch_ends_with_its_loop(bell):
    """No task is left pending when a gate is told to end."""

    async def story():
        asking = asyncio.create_task(WaitingRoom(bell).pull(question(), SuperLink().ask, never))
        await asyncio.sleep(0.1)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking

    asyncio.run(story(), debug=True)
