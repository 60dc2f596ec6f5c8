"""The gate: nodes reach the fleet API through it, unchanged, and nobody reaches anything else."""

import asyncio
import gzip
import socket
import ssl
import threading
import time
from pathlib import Path

import httpx
import pytest
import uvicorn

from fedlearn.deployment import gate as gates
from fedlearn.deployment.bell import Bell
from fedlearn.deployment.gate import FLEET, MOST_BYTES, Gate
from fedlearn.deployment.waiting_room import WaitingRoom

CALLS = [
    "register-node",
    "activate-node",
    "deactivate-node",
    "unregister-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "push-object",
    "pull-object",
    "confirm-message-received",
]


def room():
    return WaitingRoom(Bell(Path("no bell")))


def make_gate(answer):
    """A gate before `answer`, and what comes through."""
    seen = []

    def upstream(request):
        seen.append(request)
        return answer(request)

    gate = Gate("https://127.0.0.1:9093", ssl.create_default_context(), room())
    gate._client = httpx.AsyncClient(
        base_url="https://127.0.0.1:9093", transport=httpx.MockTransport(upstream)
    )
    return gate, seen


def fine(request):
    return httpx.Response(200, content=b"reply")


def call(gate, path, *, method="POST", body=(b"",), headers=(), ends=True):
    """What the gate answers to a call as uvicorn tells it: status, headers, body."""
    sent = []

    async def receive():
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces) or not ends}

    async def send(message):
        sent.append(message)

    pieces = list(body)
    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    scope["query_string"] = b""

    async def ask():
        await gate(scope, receive, send)
        await gate._client.aclose()

    asyncio.run(ask())
    if not sent:
        return None
    start, end = sent
    assert start["type"] == "http.response.start"
    assert end["type"] == "http.response.body"
    told = dict(start["headers"])
    assert int(told[b"content-length"]) == len(end["body"])
    return start["status"], told, end["body"]


# --- what passes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_calls_of_the_fleet_api_pass(name):
    gate, seen = make_gate(fine)
    status, _, body = call(gate, FLEET + name, body=[b"\0one", b"", b"two\xff"])
    assert (status, body) == (200, b"reply")
    (request,) = seen
    assert request.method == "POST"
    assert str(request.url) == f"https://127.0.0.1:9093{FLEET}{name}"
    assert request.content == b"\0onetwo\xff"
    assert request.headers["content-length"] == "8"


def test_headers_pass_but_for_those_of_one_connection():
    def answer(request):
        headers = [
            ("X-Flower", "2"),
            ("Content-Type", "application/x"),
            ("Connection", "X-Own, close"),
            ("X-Own", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Trailer", "x"),
            ("Proxy-Authenticate", "x"),
        ]
        return httpx.Response(418, headers=headers, content=b"b")

    gate, seen = make_gate(answer)
    passed = [
        (b"content-type", b"application/x"),
        (b"content-encoding", b"zstd"),
        (b"flwr-signature", b"a, b"),
        (b"x-more", b"1"),
        (b"x-more", b"2"),
    ]
    dropped = [
        (b"host", b"fl.example.org"),
        (b"connection", b"keep-alive, X-Hop"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"te", b"trailers"),
        (b"trailer", b"x-end"),
        (b"upgrade", b"h2c"),
        (b"transfer-encoding", b"chunked"),
        (b"proxy-authorization", b"x"),
        (b"content-length", b"77"),
    ]
    status, told, body = call(gate, FLEET + "get-run", headers=passed + dropped, body=[b"abc"])
    (request,) = seen
    for name, _ in passed:
        expected = [value.decode() for other, value in passed if other == name]
        assert request.headers.get_list(name.decode()) == expected
    assert request.headers["host"] == "127.0.0.1:9093"
    assert request.headers["content-length"] == "3"
    gone = {"x-hop", "te", "trailer", "upgrade", "transfer-encoding", "proxy-authorization"}
    assert not gone & set(request.headers)
    assert (status, body) == (418, b"b")
    assert told == {
        b"x-flower": b"2",
        b"content-type": b"application/x",
        b"content-length": b"1",
    }


def test_an_encoded_answer_arrives_plain_and_says_so():
    def answer(request):
        headers = {"content-encoding": "gzip"}
        return httpx.Response(200, headers=headers, content=gzip.compress(b"plain"))

    _, told, body = call(make_gate(answer)[0], FLEET + "get-run")
    assert body == b"plain"
    assert b"content-encoding" not in told


def test_refusals_of_the_superlink_pass_as_they_are():
    gate, _ = make_gate(lambda request: httpx.Response(401, content=b"unknown key"))
    status, _, body = call(gate, FLEET + "activate-node")
    assert (status, body) == (401, b"unknown key")


def test_a_redirection_is_not_followed():
    def answer(request):
        return httpx.Response(307, headers={"location": "/v1/control/start-run"})

    gate, seen = make_gate(answer)
    assert call(gate, FLEET + "get-run")[0] == 307
    assert len(seen) == 1


# --- what does not ------------------------------------------------------------------------------

ELSEWHERE = [
    "/",
    "",
    "*",
    "/v1/control/start-run",
    "/v1/control/list-nodes",
    "/v1/runtime/get-nodes",
    "/v1/runtime/push-messages",
    "/v1/health",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleetx/get-run",
    "/V1/fleet/get-run",
    "/v1/FLEET/get-run",
    "//v1/fleet/get-run",
    "/x/v1/fleet/get-run",
    "https://127.0.0.1/v1/fleet/get-run",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/./get-run",
    "/v1/fleet/get-run/../../control/start-run",
    "/v1/fleet/..",
    "/v1/fleet/.",
    "/v1/fleet//control",
    "/v1/fleet/get-run/",
    "/v1/fleet/get/run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/%2E%2E%2Fcontrol",
    "/v1/fleet/%252e",
    "/v1/fleet/get-run%00",
    "/v1/fleet/..\\control\\start-run",
    "/v1/fleet/\\",
    "/v1/fleet/get-run?x",
    "/v1/fleet/get-run#x",
    "/v1/fleet/get-run;x",
    "/v1/fleet/get-run\n",
    "/v1/fleet/\r\nhost: x",
    "/v1/fleet/\0",
    "/v1/fleet/ä",
    "/v1/fleet/\uff0e\uff0e/control",
    "/v1/fleet/@evil",
]


@pytest.mark.parametrize("path", ELSEWHERE, ids=ascii)
def test_nothing_else_passes(path):
    gate, seen = make_gate(fine)
    assert call(gate, path)[0] == 403
    assert seen == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "post"])
def test_nothing_but_post_passes(method):
    gate, seen = make_gate(fine)
    assert call(gate, FLEET + "get-run", method=method)[0] == 403
    assert seen == []


def test_what_is_too_large_does_not_pass(monkeypatch):
    assert MOST_BYTES > 2 * 5 * 1024 * 1024  # Flower's pieces
    monkeypatch.setattr(gates, "MOST_BYTES", 10)
    gate, seen = make_gate(fine)
    assert call(gate, FLEET + "push-object", body=[b"12345", b"67890"])[0] == 200
    seen.clear()
    gate, seen = make_gate(fine)
    assert call(gate, FLEET + "push-object", body=[b"12345", b"678901"] + 9 * [b"x"])[0] == 413
    assert seen == []


def test_a_call_that_its_node_broke_off_does_not_pass():
    gate, seen = make_gate(fine)
    assert call(gate, FLEET + "push-object", body=[b"half"], ends=False) is None
    assert seen == []


@pytest.mark.parametrize(
    "error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.WriteError]
)
def test_a_superlink_that_is_gone_is_502(error):
    def answer(request):
        raise error("gone", request=request)

    status, _, body = call(make_gate(answer)[0], FLEET + "get-run")
    assert status == 502
    assert b"the SuperLink does not answer" in body


def test_there_are_no_websockets():
    gate, seen = make_gate(fine)
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "websocket.connect"}

    asyncio.run(gate({"type": "websocket", "path": FLEET + "get-run"}, receive, send))
    assert sent == [{"type": "websocket.close"}]
    assert seen == []


# --- over real sockets --------------------------------------------------------------------------


@pytest.fixture
def serve():
    """Serve ASGI apps on this machine; return their ports."""
    running = []

    def start(app):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        config = uvicorn.Config(app, port=port, log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return port

    def stop():
        while running:
            server, thread = running.pop()
            server.should_exit = True
            thread.join()

    yield start
    stop()


def raw(port, head, body=b""):
    """The status of an answer to bytes that no library would send."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        told = f"host: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        line.sendall(head + b"\r\n" + told.encode() + body)
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    return int(answer.split()[1])


def test_over_sockets_as_over_the_interface(serve):
    seen = []

    async def superlink(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        seen.append((scope["raw_path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]})
        await send({"type": "http.response.body", "body": body[::-1]})

    upstream = serve(superlink)
    port = serve(Gate(f"http://127.0.0.1:{upstream}", ssl.create_default_context(), room()))
    large = bytes(range(256)) * 20_000
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for _ in range(3):
            reply = client.post(FLEET + "push-object", content=large)
            assert (reply.status_code, reply.headers["x-a"]) == (200, "1")
            assert reply.content == large[::-1]
        reply = client.post(FLEET + "push-object", content=iter([b"a", b"b"]))  # in chunks
        assert reply.content == b"ba"
        assert client.get(FLEET + "push-object").status_code == 403
        assert client.post("/v1/control/start-run", content=large).status_code == 403
        assert {path for path, _ in seen} == {b"/v1/fleet/push-object"}
        before = len(seen)
        for path in (
            b"/v1/fleet/../control/start-run",
            b"/v1/fleet/%2e%2e/control/start-run",
            b"/v1/fleet/%2e%2e%2fcontrol%2fstart-run",
            b"/v1/fleet/%252e%252e/control",
            b"/v1/fleet/..%5ccontrol",
            b"/v1/fleet/get-run%00",
            b"/v1/fleet/get-run%0a",
            b"/v1/fleet//../control/start-run",
        ):
            assert raw(port, b"POST " + path + b" HTTP/1.1") in (400, 403)
        assert len(seen) == before
        assert raw(port, b"POST /v1/fleet/get-run?x=/../v1/control HTTP/1.1") == 200
        assert seen[-1][0] == b"/v1/fleet/get-run"


def test_over_sockets_a_superlink_that_is_not_there_is_502(serve):
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()[1]
    port = serve(Gate(f"http://127.0.0.1:{nobody}", ssl.create_default_context(), room()))
    reply = httpx.post(f"http://127.0.0.1:{port}{FLEET}get-run")
    assert reply.status_code == 502
    assert "does not answer" in reply.text
