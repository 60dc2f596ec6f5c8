"""What a run needs of what runs its apps."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from flwr.serverapp import ServerApp
from torch import nn

from fedlearn.client import Client
from fedlearn.types import ContinualStrategy


class Runtime(Protocol):
    """Runs a ServerApp and its ClientApps.

    Attributes:
        devices: Where samples and models live; the server's model is on the first one.
        testers: How many threads may test the server's model, when clients are done.
    """

    devices: list[torch.device]
    testers: int

    def check(self, continual: ContinualStrategy, build_model: Callable[[], nn.Module]) -> None:
        """Check that it can train clients of such a model by such a strategy.

        Raises:
            ValueError: It cannot.
        """
        ...

    def open(self, client: Client) -> AbstractContextManager[Any]:
        """Make a grid of a scenario's clients; end what was started for it afterwards.

        It is a Flower `Grid` with a ``description`` of what runs the clients, as JSON values.

        Args:
            client: What they share.
        """
        ...

    def run(self, server_app: ServerApp, grid: Any) -> None:
        """Run `server_app` to its end on a grid that is open."""
        ...
