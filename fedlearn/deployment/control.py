"""What the admin asks of Flower's SuperLink: to know nodes, to start, follow and stop runs.

The only home of Flower's control API, which is private and moves between versions; flwr is pinned.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

import fedlearn
from fedlearn.config.errors import ConfigError, one_line
from fedlearn.deployment.folder import Folder

APP = {
    "pyproject.toml": f"""\
[project]
name = "fedlearn"
version = "{fedlearn.__version__}"
description = "Federated continual learning; the code is what each machine has installed."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "fedlearn"

[tool.flwr.app.components]
serverapp = "app:server_app"
clientapp = "app:client_app"

[tool.flwr.app.config]
configuration = ""
signature = ""
overrides = ""
""",
    "app.py": '''\
"""Each machine runs the fedlearn that it has installed."""

from fedlearn.deployment.apps import client_app, server_app

__all__ = ["client_app", "server_app"]
''',
}
"""The files of the Flower app that is submitted; it brings no code of its own to any machine."""


UNREGISTERED = "unregistered"
"""Flower's status of a node that it once knew."""


@dataclass(frozen=True)
class Node:
    """A node as the SuperLink sees it.

    Attributes:
        client_id: By its key; None for one that is not of this deployment.
        node_id: Flower's.
        status: ``registered`` (never seen), ``online`` or ``offline``.
        since: When it last came or went, as Flower tells it; empty for never.
    """

    client_id: int | None
    node_id: int
    status: str
    since: str


@dataclass(frozen=True)
class Status:
    """A run as the SuperLink sees it.

    Attributes:
        run_id: Flower's.
        status: ``pending``, ``starting``, ``running`` or ``finished``.
        outcome: ``completed``, ``failed`` or ``stopped``; empty while it runs.
        details: Why it failed, in one line.
    """

    run_id: int
    status: str
    outcome: str
    details: str


class Control:
    """The admin's line to the SuperLink of a deployment, from the server's own machine."""

    def __init__(self, folder: Folder) -> None:
        """Make the line; nothing is sent yet."""
        self._folder = folder
        self.address = f"127.0.0.1:{folder.facts.control_port}"
        self._client = ControlHttpClient.from_server_address(
            server_address=self.address,
            insecure=False,
            root_certificates=folder.authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def register(self) -> None:
        """Have the SuperLink know the deployment's nodes by their public keys, and no others."""
        own = self._folder.clients_by_key()
        with self._asking():
            told = self._client.ListNodes(ListNodesRequest()).nodes_info
            known = {node.public_key: node for node in told if node.status != UNREGISTERED}
            for key, node in known.items():
                if key not in own:
                    self._client.UnregisterNode(UnregisterNodeRequest(node_id=node.node_id))
            for key in own:
                if key not in known:
                    self._client.RegisterNode(RegisterNodeRequest(public_key=key))

    def nodes(self) -> list[Node]:
        """Return the nodes that the SuperLink knows, by client id."""
        clients = self._folder.clients_by_key()
        with self._asking():
            told = self._client.ListNodes(ListNodesRequest()).nodes_info
        nodes = [
            Node(
                clients.get(node.public_key),
                node.node_id,
                node.status,
                node.last_activated_at if node.status == "online" else node.last_deactivated_at,
            )
            for node in told
            if node.status != UNREGISTERED
        ]
        return sorted(nodes, key=lambda node: (node.client_id is None, node.client_id))

    def submit(self, config: Mapping[str, str], app: Mapping[str, str] = APP) -> int:
        """Start a run and return its Flower id.

        Args:
            config: The app's run configuration.
            app: Its files.
        """
        content, _ = build_fab_from_files({name: text.encode() for name, text in app.items()})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        with self._asking():
            reply = self._client.StartRun(
                StartRunRequest(
                    fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config))
                )
            )
        if not reply.HasField("run_id"):
            raise ConfigError(
                f"the SuperLink at {self.address} refused the run: {one_line(reply.note)}"
            )
        return int(reply.run_id)

    def status(self, run_id: int) -> Status:
        """Return how a run is.

        Raises:
            ConfigError: There is no such run.
        """
        with self._asking():
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        if run_id not in runs:
            raise ConfigError(f"{run_id}: is no run of {self._folder.path.name}")
        told = runs[run_id].status
        return Status(run_id, told.status, told.sub_status, one_line(told.details))

    def runs(self) -> list[Status]:
        """Return the runs that the SuperLink knows, the latest first."""
        with self._asking():
            runs = self._client.ListRuns(ListRunsRequest(limit=20)).run_dict
        told = ((run_id, runs[run_id].status) for run_id in sorted(runs, key=_begun(runs))[::-1])
        return [Status(at, each.status, each.sub_status, each.details) for at, each in told]

    def logs(self, run_id: int) -> Iterator[str]:
        """Yield what a run's server app prints, from its beginning to its end, as it comes.

        Raises:
            httpx.HTTPError: The line broke.
        """
        for reply in self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=0.0)):
            yield reply.log_output

    def stop(self, run_id: int) -> None:
        """End a run."""
        with self._asking():
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            told = one_line(error.response.text)[:200] or error.response.reason_phrase
            raise ConfigError(f"the SuperLink at {self.address} refused: {told}") from error
        except httpx.HTTPError as error:
            raise ConfigError(
                f"no SuperLink answers at {self.address} ({one_line(error)}); "
                f"fedlearn deploy superlink {self._folder.path.name} starts it on this machine"
            ) from error


def _begun(runs: Mapping[int, object]):  # type: ignore[no-untyped-def]
    return lambda run_id: runs[run_id].pending_at  # type: ignore[attr-defined]
