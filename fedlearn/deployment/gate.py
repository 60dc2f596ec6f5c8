"""The gate: what nodes reach of Flower's SuperLink, and nothing else of it.

A SuperLink has one port for everything, so whoever reaches it can also start runs. The gate stands
before it: it listens where nodes can reach it, and passes on calls of the fleet API alone, which
the SuperLink answers to registered keys only. Control stays on the server's own machine.
"""

import ssl
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from fedlearn.deployment.folder import Folder

FLEET = "/v1/fleet/"
"""What nodes may call; the names of Flower's calls follow."""

MOST_BYTES = 64 * 1024 * 1024
"""Of one call; Flower cuts arrays into pieces of 5 MB."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gate:
    """An ASGI app that passes calls of the fleet API on."""

    def __init__(self, base_url: str, trust: ssl.SSLContext) -> None:
        """Make one.

        Args:
            base_url: Of the SuperLink.
            trust: Knows its certificate.
        """
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
        path = scope["path"]
        # compared as it is passed on: no way round by dots
        if scope["method"] != "POST" or not path.startswith(FLEET) or ".." in path or "%" in path:
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
        headers = [pair for pair in scope["headers"] if pair[0] not in _HOP_BY_HOP]
        try:
            reply = await self._client.post(path, content=bytes(body), headers=headers)
        except httpx.HTTPError as error:
            await _answer(send, 502, f"the SuperLink does not answer: {error}".encode())
            return
        kept = [(k, v) for k, v in reply.headers.raw if k.lower() not in _HOP_BY_HOP]
        await _answer(send, reply.status_code, reply.content, kept)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._client.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})


_HOP_BY_HOP = {b"host", b"connection", b"content-length", b"transfer-encoding", b"content-encoding"}


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
        Gate(f"https://127.0.0.1:{folder.facts.control_port}", trust),
        host=listen,
        port=folder.facts.port,
        ssl_certfile=str(folder.server / "server.crt"),
        ssl_keyfile=str(folder.server / "server.key"),
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(Folder(Path(sys.argv[1])), sys.argv[2])
