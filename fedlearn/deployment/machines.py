"""What runs on each machine of a deployment: Flower's own processes, and ours beside them."""

import os
import socket
import ssl
import sys
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
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "PYTHONUNBUFFERED": "1",
}
"""Nothing phones home, and nothing is installed because a run asks for it."""

REFUSED_S = 120.0
"""Seconds for which a node's key may be refused: a session that died is forgotten after 60."""


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
            _why_port(folder.facts.control_port, "--control-port"),
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
            _why_port(folder.facts.port, "--port"),
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


def server_answers(part: Folder) -> bool:
    """Return whether this deployment's server answers at its address.

    Raises:
        ConfigError: Somebody else does.
    """
    facts = part.facts
    where = f"{facts.host}:{facts.port}"
    trust = ssl.create_default_context(cafile=str(part.authority))
    try:
        with (
            socket.create_connection((facts.host, facts.port), timeout=10) as line,
            trust.wrap_socket(line, server_hostname=facts.host),
        ):
            return True
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(
            f"{where}: is not the server of this deployment, {one_line(error.verify_message)} "
            f"(by {part.authority})"
        ) from error
    except ssl.SSLError as error:
        raise ConfigError(f"{where}: speaks no TLS, so it is no deployment's server") from error
    except OSError:
        return False


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


def _why_port(port: int, flag: str) -> Why:
    def why(printed: str, _: float) -> str | None:
        if "address already in use" not in printed.lower():
            return None
        return f"port {port}: is in use on this machine; fedlearn deploy init {flag} sets another"

    return why
