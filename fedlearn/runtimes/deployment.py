"""The deployment runtime: clients on machines of their own, over Flower's SuperLink.

``fedlearn run`` only submits and follows; the server's app runs beside the SuperLink, and there
this is the runtime that it opens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp
from torch import nn

from fedlearn.client import Client
from fedlearn.config.errors import ConfigError
from fedlearn.deployment.folder import Folder
from fedlearn.deployment.grid import DeploymentGrid, Patience, Roll
from fedlearn.runtimes.device_names import resolve
from fedlearn.runtimes.inprocess import num_cores, torch_threads
from fedlearn.types import ContinualStrategy


class Deployment:
    """Runs a ServerApp beside a SuperLink, for clients that are SuperNodes.

    Attributes:
        devices: Where the server's model is.
        testers: How many threads may test it.
        connection: The deployment's folder.
    """

    def __init__(
        self,
        connection: str,
        round_s: float = 3600.0,
        quorum: int = 1,
        gather_s: float = 60.0,
        quorum_s: float = 3600.0,
        devices: str = "cpu",
        threads: int = 1,
    ) -> None:
        """Make the runtime.

        Args:
            connection: Folder that ``fedlearn deploy init`` made.
            round_s: Seconds that a round waits for replies, above 0.
            quorum: Fewest clients that must be connected for a round to begin, at least 1.
            gather_s: Seconds that a round waits for a client that is not connected, from when it
                was first missed; at least 0.
            quorum_s: Seconds without a quorum that end the run, at least 0.
            devices: Of the server's model.
            threads: That torch may use, at least 1.

        Raises:
            ValueError: A value is out of range.
        """
        for key, value in (("round_s", round_s), ("quorum", quorum), ("threads", threads)):
            if value <= 0:
                raise ValueError(f"runtime.{key}={value}: must be above 0")
        for key, value in (("gather_s", gather_s), ("quorum_s", quorum_s)):
            if value < 0:
                raise ValueError(f"runtime.{key}={value}: must be at least 0")
        self.devices = resolve(devices, "deployment", several=False)
        self.connection = connection
        self._patience = Patience(round_s, quorum, gather_s, quorum_s)
        self.testers = max(1, num_cores() // threads) if self.devices[0].type == "cpu" else 1
        self._threads = threads
        self._given: tuple[Any, Roll, Callable[[], None]] | None = None

    def folder(self) -> Folder:
        """Return the deployment's folder.

        Raises:
            ConfigError: There is none.
        """
        try:
            return Folder(Path(self.connection))
        except ConfigError as error:
            raise ConfigError(f"runtime.connection={error}") from error

    def check(self, continual: ContinualStrategy, build_model: Callable[[], nn.Module]) -> None:
        """Do nothing: nodes train one model at a time, as the serial executor does."""

    def give(self, grid: Any, roll: Roll, ring: Callable[[], None] = lambda: None) -> None:
        """Say what Flower gave the server's app.

        Args:
            grid: Its grid.
            roll: Which node is which client.
            ring: Called when messages were sent.
        """
        self._given = grid, roll, ring

    @contextmanager
    def open(self, client: Client) -> Iterator[DeploymentGrid]:
        """Make a grid of the nodes.

        Args:
            client: Not needed: each node builds its own.

        Raises:
            ConfigError: This process is no server's app.
        """
        if self._given is None:
            raise ConfigError(
                "runtime=deployment: runs beside a SuperLink; fedlearn run submits it there"
            )
        grid, roll, ring = self._given
        yield DeploymentGrid(grid, roll, self._patience, ring)

    def run(self, server_app: ServerApp, grid: DeploymentGrid) -> None:
        """Run `server_app` to its end."""
        context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
        with torch_threads(self._threads):
            server_app(grid, context)
