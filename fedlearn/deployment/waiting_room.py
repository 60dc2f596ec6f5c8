"""The waiting room: where a node's question for messages stays until there is an answer.

A SuperNode that asks and finds nothing sleeps 3 s, so that a round takes as long whatever it
computes. Here its question waits instead, and is put to the SuperLink when the server has sent
messages. A message whose delivery failed is delivered again, which the SuperLink itself does not.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import httpx
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from google.protobuf.message import DecodeError

from fedlearn.deployment.bell import Bell

HOLD_S = 20.0
"""Seconds that a question waits at most; a SuperNode waits 30 for its answer."""

ASK_S = 3.0
"""Seconds after which it is put again though nobody rang: as often as a SuperNode would."""

LOOK_S = 0.05
"""Seconds between looks at the bell."""

DELIVERIES = 3
"""Of one message, at most: a node may be unable to take it."""


@dataclass
class _Delivery:
    message_id: str
    reply: httpx.Response
    until: float
    times: int = 1


class WaitingRoom:
    """Holds the questions of nodes for messages."""

    def __init__(self, bell: Bell) -> None:
        """Make one."""
        self._bell = bell
        self._ringing = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._latest: dict[int, object] = {}
        self._delivered: dict[int, _Delivery] = {}

    async def pull(
        self,
        question: bytes,
        ask: Callable[[], Awaitable[httpx.Response]],
        gone: Callable[[], Awaitable[object]],
    ) -> httpx.Response:
        """Return the answer to a node's question for messages.

        Args:
            question: A `PullMessagesRequest`.
            ask: Puts it to the SuperLink, which knows whether it is the node's.
            gone: Returns when the node has hung up.
        """
        node_id = _node_of(question)
        turn: object = None
        until = time.monotonic() + HOLD_S
        hung_up = asyncio.ensure_future(gone())
        try:
            while True:
                ringing = self._watched()
                reply = await ask()
                if reply.status_code != httpx.codes.OK or self._noted(node_id, reply):
                    return reply
                if again := self._again(node_id):
                    return again
                if turn is None:  # the SuperLink has said that it is the node's own question
                    turn = self._latest[node_id] = object()
                rest = min(ASK_S, until - time.monotonic())
                rung = asyncio.ensure_future(ringing.wait())
                await asyncio.wait({rung, hung_up}, timeout=max(0.0, rest), return_when=_FIRST)
                rung.cancel()
                # a node that asks anew has given up what it asked before
                waits = self._latest.get(node_id) is turn and not hung_up.done()
                if not waits or time.monotonic() >= until:
                    return reply
        finally:
            hung_up.cancel()

    def confirm(self, told: bytes) -> None:
        """Note that a node has a message.

        Args:
            told: A `ConfirmMessageReceivedRequest` that the SuperLink took.
        """
        with suppress(DecodeError):
            request = ConfirmMessageReceivedRequest.FromString(told)
            known = self._delivered.get(request.node.node_id)
            if known is not None and known.message_id == request.message_object_id:
                del self._delivered[request.node.node_id]

    def _noted(self, node_id: int, reply: httpx.Response) -> bool:
        """Remember a message that is about to be delivered; return whether there is one."""
        try:
            messages = PullMessagesResponse.FromString(reply.content).messages_list
        except DecodeError:
            return True  # for the node to make something of
        for message in messages:
            told = message.metadata
            self._delivered[node_id] = _Delivery(told.message_id, reply, told.created_at + told.ttl)
        return bool(messages)

    def _again(self, node_id: int) -> httpx.Response | None:
        """Return what was delivered to a node that never had it, while it is of use."""
        known = self._delivered.get(node_id)
        if known is None:
            return None
        if known.times >= DELIVERIES or time.time() > known.until:
            del self._delivered[node_id]
            return None
        known.times += 1
        return known.reply

    def _watched(self) -> asyncio.Event:
        """Return what is set when the bell is next rung."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look(self._bell.rung()))
        return self._ringing

    async def _look(self, seen: int) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            now = self._bell.rung()
            if now != seen:
                seen = now
                self._ringing.set()
                self._ringing = asyncio.Event()


_FIRST = asyncio.FIRST_COMPLETED


def _node_of(question: bytes) -> int:
    try:
        return int(PullMessagesRequest.FromString(question).node.node_id)
    except DecodeError:
        return 0  # the SuperLink refuses it
