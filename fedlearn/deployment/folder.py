"""The deployment folder: who is who, where things lie, and what each machine gets of it.

::

    DIR/deployment.json   names, ports, versions; no secrets
        ca.crt            by which nodes and the admin know the server
        admin.pub         by which server and nodes know the admin
        ca.key            for new certificates; keep it somewhere else
        admin/            the key that signs configurations
        server/           the server's certificate and key, nodes' public keys, database, runs
        nodes/K/          all that the machine of client K needs, and nothing of others

and what starts it all, see `fedlearn.deployment.artefacts`.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import fedlearn
from fedlearn.config.errors import ConfigError, one_line
from fedlearn.deployment.bell import Bell
from fedlearn.deployment.keys import (
    make_admin_key,
    make_authority,
    make_node_key,
    make_server_certificate,
    own_names,
    public_pem,
    write_secret,
)

FACTS = "deployment.json"
PORT, CONTROL_PORT, NODE_PORT = 9092, 9093, 9094
"""Of nodes at the server; of control, on the server itself; of node 0's trainer, on its machine."""

SERVICE = "superlink"
"""The server's name among containers; its certificate is good for it too."""


@dataclass(frozen=True)
class Facts:
    """What every machine of a deployment may know.

    Attributes:
        fedlearn: The version that all of them run.
        flwr: Flower's.
        nodes: How many there are.
        host: The server's name, as nodes reach it.
        port: Where they reach it.
        control_port: Where the server, and nobody else, reaches Flower's control.
    """

    fedlearn: str
    flwr: str
    nodes: int
    host: str
    port: int
    control_port: int


class Folder:
    """A folder of a deployment, or a node's part of it.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        """Open a folder.

        Raises:
            ConfigError: It is none.
        """
        self.path = path.absolute()
        if not (self.path / FACTS).is_file():
            raise ConfigError(
                f"{path}: is no deployment folder, {FACTS} is missing; "
                "fedlearn deploy init makes one"
            )

    @cached_property
    def facts(self) -> Facts:
        """What is public."""
        path = self.path / FACTS
        try:
            return Facts(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: is damaged: {one_line(error)}") from error

    @cached_property
    def number(self) -> int:
        """Of a node's part: which node it is."""
        path = self.path / "node.json"
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["node"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}: is missing or damaged: {one_line(error)}") from error

    @property
    def authority(self) -> Path:
        """The certificate that the server's is signed by."""
        return self.path / "ca.crt"

    @property
    def admin_key(self) -> Path:
        """The key that signs configurations."""
        return self.path / "admin" / "admin.key"

    @property
    def admin_public(self) -> Path:
        """The key that tells whether the admin signed."""
        return self.path / "admin.pub"

    @property
    def server(self) -> Path:
        """The server's own folder."""
        return self.path / "server"

    @property
    def bell(self) -> Bell:
        """By which the server's app tells the gate that it has sent messages."""
        return Bell(self.server / "bell")

    @property
    def audit(self) -> Path:
        """Of a node's part: the record of what has left the node."""
        return self.path / "audit.jsonl"

    def node(self, number: int) -> "Folder":
        """Return a node's part.

        Raises:
            ConfigError: There is no such node, or its part is not on this machine.
        """
        if not 0 <= number < self.facts.nodes:
            raise ConfigError(
                f"--node={number}: must be in [0, {self.facts.nodes}), {self.path.name} has "
                f"{self.facts.nodes} nodes"
            )
        if (self.path / "node.key").is_file():  # a part of its own, on the node's machine
            if self.number != number:
                raise ConfigError(f"--node={number}: {self.path} is of node {self.number}")
            return self
        part = self.path / "nodes" / str(number)
        if not part.is_dir():
            raise ConfigError(f"--node={number}: {part} is not on this machine")
        return Folder(part)

    def renew_key(self, number: int) -> "Folder":
        """Give a node another key pair in place of its own, and return its part.

        Raises:
            ConfigError: There is no such node, or its part is not on this machine.
        """
        part = self.node(number)
        key, public = part.path / "node.key.new", part.path / "node.pub.new"
        key.unlink(missing_ok=True)  # of an earlier try that was broken off
        make_node_key(key, public)
        known = self._public_key(number)
        fresh = known.with_suffix(".new")
        fresh.write_bytes(public.read_bytes())
        for path, place in ((key, "node.key"), (public, "node.pub")):
            path.replace(part.path / place)
        fresh.replace(known)
        return part

    def clients_by_key(self) -> dict[bytes, int]:
        """Return the client id of each node's public key, as Flower tells keys."""
        return {public_pem(self._public_key(number)): number for number in range(self.facts.nodes)}

    def _public_key(self, number: int) -> Path:
        return self.server / "nodes" / f"{number}.pub"


def init(
    path: Path, nodes: int, hosts: Sequence[str], port: int = PORT, control_port: int = CONTROL_PORT
) -> Folder:
    """Make a deployment folder.

    Args:
        path: Of the folder; must not exist, or be empty.
        nodes: At least 1.
        hosts: Names and addresses of the server; nodes reach it by the first.
        port: Where nodes reach it.
        control_port: Where the server itself reaches Flower's control.

    Raises:
        ConfigError: `path` is in use.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError(f"{path}: exists already; keys are never written over")
    for part in (path, path / "admin", path / "server", path / "server" / "nodes", path / "nodes"):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = Facts(
        fedlearn=fedlearn.__version__,
        flwr=metadata.version("flwr"),
        nodes=nodes,
        host=hosts[0],
        port=port,
        control_port=control_port,
    )
    make_authority(path / "ca.key", path / "ca.crt", f"fedlearn deployment {path.name}"[:64])
    make_admin_key(path / "admin" / "admin.key", path / "admin.pub")
    server = path / "server"
    make_server_certificate(
        path / "ca.key",
        path / "ca.crt",
        server / "server.key",
        server / "server.crt",
        own_names([*hosts, SERVICE]),
    )
    write_secret(server / "executor.secret", secrets.token_bytes(32))
    _write(path / FACTS, asdict(facts))
    for number in range(nodes):
        _init_node(path, number, facts)
    return Folder(path)


def _init_node(path: Path, number: int, facts: Facts) -> None:
    part = path / "nodes" / str(number)
    part.mkdir(mode=0o700)
    make_node_key(part / "node.key", part / "node.pub")
    known = (part / "node.pub").read_bytes()
    (path / "server" / "nodes" / f"{number}.pub").write_bytes(known)
    write_secret(part / "executor.secret", secrets.token_bytes(32))
    for public in ("ca.crt", "admin.pub"):
        (part / public).write_bytes((path / public).read_bytes())
    _write(part / FACTS, asdict(facts))
    _write(part / "node.json", {"node": number})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
