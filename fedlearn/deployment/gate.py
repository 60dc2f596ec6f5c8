"""The gate: what nodes reach of Flower's SuperLink, and nothing else of it.

A SuperLink has one port for everything, so whoever reaches it can also start runs. The gate stands
before it: it listens where nodes can reach it, and passes on calls of the fleet API alone, which
the SuperLink answers to registered keys only. Control stays on the server's own machine. Questions
for messages wait at the gate until there are some.
"""

import re
import ssl
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from fedlearn.deployment.folder import Folder
from fedlearn.deployment.waiting_room import WaitingRoom

FLEET = "/v1/fleet/"
"""What nodes may call; the names of Flower's calls follow."""

PULL, CONFIRM = f"{FLEET}pull-messages", f"{FLEET}confirm-message-received"
"""How a node asks for a message, and says that it has it."""

MOST_BYTES = 64 * 1024 * 1024
"""Of one call; Flower cuts arrays into pieces of 5 MB."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gate:
    """An ASGI app that passes calls of the fleet API on."""

    def __init__(self, base_url: str, trust: ssl.SSLContext, room: WaitingRoom) -> None:
        """Make one.

        Args:
            base_url: Of the SuperLink.
            trust: Knows its certificate.
            room: Where nodes wait for messages.
        """
        self._room = room
        self._client = httpx.AsyncClient(
            base_url=base_url,
            verify=trust,
            timeout=60.0,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        path = scope["path"]
        # a name and nothing else, so that no way leads round: no dots, escapes, slashes
        if scope["method"] != "POST" or not _CALL.fullmatch(path):
            await _answer(send, 403, b"only nodes are served here")
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > MOST_BYTES:
                await _answer(send, 413, b"too large")
                return
            if not message.get("more_body"):
                break
        content, headers = bytes(body), _kept(scope["headers"], _HOP_BY_HOP)

        async def ask() -> httpx.Response:
            return await self._client.post(path, content=content, headers=headers)

        try:
            if path == PULL:
                reply = await self._room.pull(content, ask, receive)
            else:
                reply = await ask()
        except httpx.HTTPError as error:
            await _answer(send, 502, f"the SuperLink does not answer: {error}".encode())
            return
        if path == CONFIRM and reply.status_code == httpx.codes.OK:
            self._room.confirm(content)
        # httpx has undone the encoding
        kept = _kept(reply.headers.raw, _HOP_BY_HOP | {b"content-encoding"})
        await _answer(send, reply.status_code, reply.content, kept)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._client.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})


_CALL = re.compile(re.escape(FLEET) + "[a-z0-9-]+", re.ASCII)

_HOP_BY_HOP = frozenset(
    {
        *(b"host", b"content-length"),  # told anew
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer"),
        *(b"transfer-encoding", b"upgrade", b"proxy-authenticate", b"proxy-authorization"),
    }
)


def _kept(
    headers: Iterable[tuple[bytes, bytes]], dropped: Collection[bytes]
) -> list[tuple[bytes, bytes]]:
    """Return the headers that are passed on: none of `dropped`, nor those of one connection."""
    pairs = [(name.lower(), value) for name, value in headers]
    named = {
        each.strip().lower()
        for name, value in pairs
        if name == b"connection"
        for each in value.split(b",")
    }
    return [pair for pair in pairs if pair[0] not in dropped and pair[0] not in named]


async def _answer(
    send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    head = [*(headers or []), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def main(folder: Folder, listen: str) -> None:
    """Serve until the process ends.

    Args:
        folder: The deployment.
        listen: The address to listen at.
    """
    trust = ssl.create_default_context(cafile=str(folder.authority))
    uvicorn.run(
        Gate(f"https://127.0.0.1:{folder.facts.control_port}", trust, WaitingRoom(folder.bell)),
        host=listen,
        port=folder.facts.port,
        ssl_certfile=str(folder.server / "server.crt"),
        ssl_keyfile=str(folder.server / "server.key"),
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )


if __name__ == "__main__":
    main(Folder(Path(sys.argv[1])), sys.argv[2])
