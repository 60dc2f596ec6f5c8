"""What runs on each machine of a deployment: Flower's own processes, and ours beside them."""

import os
import socket
import ssl
import sys
from email.utils import parsedate_to_datetime
from errno import EADDRINUSE
from http.client import HTTPException, HTTPSConnection
from pathlib import Path

import fedlearn
from fedlearn.config.errors import ConfigError, one_line
from fedlearn.deployment.folder import Folder
from fedlearn.deployment.serving import SERVER
from fedlearn.deployment.supervisor import Child, Why

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    "PYTHONUNBUFFERED": "1",
}
"""Nothing phones home, and nothing is installed because a run asks for it."""

REFUSED_S = 120.0
"""Seconds for which a node's key may be refused: a session that died is forgotten after 60."""

MOST_AHEAD_S, MOST_BEHIND_S = 5.0, 300.0
"""Seconds by which a node's clock may differ: Flower's SuperLink refuses what was signed beyond."""


def superlink(folder: Folder, listen: str) -> list[Child]:
    """Return the server's processes.

    Args:
        folder: The deployment.
        listen: The address at which nodes reach it.
    """
    server, authority = folder.server, str(folder.authority)
    control = f"127.0.0.1:{folder.facts.control_port}"
    secret = ["--superexec-auth-secret-file", str(server / "executor.secret")]
    environment = {
        **_environment(server),
        SERVER: str(folder.path),
    }
    return [
        Child(
            "flower-superlink",
            [
                _program("flower-superlink"),
                *("--host", "127.0.0.1", "--port", str(folder.facts.control_port)),
                *("--ssl-ca-certfile", authority),
                *("--ssl-certfile", str(server / "server.crt")),
                *("--ssl-keyfile", str(server / "server.key")),
                *("--database", str(server / "superlink.db")),
                *("--isolation", "process", *secret),
                *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            ],
            server / "logs" / "superlink.log",
            environment,
        ),
        Child(
            "flower-superexec",
            [
                _program("flower-superexec"),
                *("--runtime-api-address", control, "--root-certificates", authority, *secret),
            ],
            server / "logs" / "superexec.log",
            environment,
        ),
        Child(
            "gate",
            [sys.executable, "-m", "fedlearn.deployment.gate", str(folder.path), listen],
            server / "logs" / "gate.log",
            environment,
        ),
    ]


def supernode(
    part: Folder, number: int, port: int, device: str, threads: int, data: str | None = None
) -> list[Child]:
    """Return a node's processes.

    Args:
        part: The node's folder.
        number: Which node it is.
        port: On this machine only, where its trainer asks for tasks.
        device: Where it trains.
        threads: That torch may use.
        data: See `fedlearn.deployment.node.Node`.
    """
    facts = part.facts
    environment = _environment(part.path)
    return [
        Child(
            "flower-supernode",
            [
                _program("flower-supernode"),
                *("--root-certificates", str(part.authority)),
                *("--superlink", f"{facts.host}:{facts.port}"),
                *("--auth-supernode-private-key", str(part.path / "node.key")),
                *("--node-config", f"partition-id={number} num-partitions={facts.nodes}"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--isolation", "process"),
                *("--superexec-auth-secret-file", str(part.path / "executor.secret")),
            ],
            part.path / "logs" / "supernode.log",
            environment,
            _why_supernode(part),
        ),
        Child(
            "trainer",
            [
                *(sys.executable, "-m", "fedlearn.deployment.trainer"),
                *(str(part.path), str(port), device, str(threads), *([data] if data else [])),
            ],
            part.path / "logs" / "trainer.log",
            environment,
        ),
    ]


def server_time(part: Folder) -> float | None:
    """Return what this deployment's server says the time is, in seconds; None if it is silent.

    Raises:
        ConfigError: Somebody else answers at its address.
    """
    facts = part.facts
    where = f"{facts.host}:{facts.port}"
    trust = ssl.create_default_context(cafile=str(part.authority))
    line = HTTPSConnection(facts.host, facts.port, context=trust, timeout=10)
    try:
        line.request("GET", "/")
        told = line.getresponse().getheader("date")
        return parsedate_to_datetime(told).timestamp() if told else None
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"{where}: is not the server of this deployment, {one_line(error.verify_message)} "
            f"(by {part.authority})"
        ) from error
    except ssl.SSLError as error:
        raise ConfigError(f"{where}: speaks no TLS, so it is no deployment's server") from error
    except (OSError, HTTPException, ValueError):
        return None
    finally:
        line.close()


def clock_trouble(there: float, here: float) -> str | None:
    """Return why a node with this clock would be refused, in one line; None for one that is not.

    Args:
        there: What time it is at the server, in seconds; no more exact than to one.
        here: What time it is at the node.
    """
    ahead = here - there
    if -MOST_BEHIND_S < ahead < MOST_AHEAD_S + 1:
        return None
    way = "ahead of" if ahead > 0 else "behind"
    return (
        f"this machine's clock is {abs(ahead):.0f} s {way} the server's, which refuses nodes that "
        f"are more than {MOST_AHEAD_S:.0f} s ahead or {MOST_BEHIND_S:.0f} s behind; waiting until "
        "it is set right"
    )


def check_port_is_free(flag: str, address: str, port: int) -> None:
    """Refuse a port of this machine that is in use.

    Raises:
        ConfigError: It is, or `address` is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, port), family=family).close()
    except OSError as error:
        why = "is in use on this machine" if error.errno == EADDRINUSE else one_line(error.strerror)
        raise ConfigError(f"{flag}={port}: {why}, at {address}") from error


def _environment(home: Path) -> dict[str, str]:
    # the programs of this environment come first: Flower starts others by their names
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    source = str(Path(fedlearn.__file__).parents[1])
    paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**QUIET, "FLWR_HOME": str(home / "flower"), "PATH": here, "PYTHONPATH": paths}


def _program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _why_supernode(part: Folder) -> Why:
    facts = part.facts
    where = f"{facts.host}:{facts.port}"

    def why(printed: str, seconds: float) -> str | None:
        if "CERTIFICATE_VERIFY_FAILED" in printed:
            return f"{where}: is not the server of this deployment; see {part.path / 'logs'}"
        if "Failed to activate SuperNode" in printed and seconds > REFUSED_S:
            return (
                f"{where}: refuses this node's key, {part.path / 'node.key'}; it is not registered "
                "there, or another process uses it"
            )
        return None

    return why
