"""A node: one client's data, model and state, and what answers the server's messages with them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedlearn.client import make_client_app
from fedlearn.config.composition import Composed
from fedlearn.deployment.configuration import Configuration, read_configuration
from fedlearn.deployment.packing import packer, unpacked
from fedlearn.runtimes.serial import make_context

_log = logging.getLogger(__name__)

TARGET = "_target_"


class Node:
    """Answers messages as one client, and keeps what it has built for the next one.

    Attributes:
        client_id: Whose data this is.
    """

    def __init__(
        self,
        client_id: int,
        admin_public: Path | None = None,
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        """Make a node; nothing is loaded yet.

        Args:
            client_id: Whose data this is.
            admin_public: By which it knows the configurations that it obeys; None for any.
            device: Where samples and model are, e.g. ``cuda:0``.
            threads: That torch may use.
        """
        self.client_id = client_id
        self._admin_public = admin_public
        self._device = device
        self._threads = threads
        self._built: tuple[Configuration, ClientApp] | None = None

    def configuration(self, carried: Mapping[str, Any]) -> Configuration:
        """Return the configuration that Flower carried here.

        Args:
            carried: Flower's run configuration.

        Raises:
            ConfigError: It is none that this node obeys.
        """
        return read_configuration(carried, self._admin_public)

    def answer(self, message: Message, told: Configuration, state: RecordDict) -> Message:
        """Return the reply to a message.

        Args:
            message: Of the server.
            told: What the run is.
            state: This client's, in this run; changed in place.

        Raises:
            ConfigError: The configuration cannot run here.
        """
        app = self._app(told)
        context = make_context(self.client_id + 1, state)
        reply = app(unpacked(message), context)
        if reply.has_content():
            reply.content = packer()(reply.content)
        return reply

    def _app(self, told: Configuration) -> ClientApp:
        """Return the app for a run, built when the run is new."""
        if self._built is None or self._built[0] != told:
            self._built = None  # two do not fit into memory, maybe
            self._built = told, self._build(told.composed)
        return self._built[1]

    def _build(self, composed: Composed) -> ClientApp:
        from fedlearn.config.experiment import build, prepare
        from fedlearn.run import make_client

        torch.set_num_threads(self._threads)
        here = {
            "runtime": {
                TARGET: "fedlearn.runtimes.inprocess.InProcess",
                "devices": self._device,
                "threads": self._threads,
            },
            "tracker": {TARGET: "fedlearn.tracking.tracker.NoTracker"},
        }
        experiment = build(prepare(Composed({**composed.tree, **here}, composed.choices)))
        return make_client_app(make_client(experiment))
