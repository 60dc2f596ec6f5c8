"""A node: one client's data, model and state, and what answers the server's messages with them."""

import dataclasses
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message, MessageType, RecordDict
from flwr.clientapp import ClientApp

from fedlearn import records
from fedlearn.arrivals import parts_of
from fedlearn.client import make_client_app
from fedlearn.commands.run import importable
from fedlearn.config.composition import Composed
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import ON_SITE, Experiment, build, prepare
from fedlearn.deployment.configuration import Configuration, read_configuration
from fedlearn.deployment.load import load_of
from fedlearn.deployment.packing import unpacked
from fedlearn.deployment.site_clock import SiteClock, note_experience, schedule_at_site
from fedlearn.deployment.states import STATES
from fedlearn.run import make_client
from fedlearn.runtimes.serial import make_context
from fedlearn.schedule import Schedule

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
        data: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """Make a node; nothing is loaded yet.

        Args:
            client_id: Whose data this is.
            admin_public: By which it knows the configurations that it obeys; None for any.
            device: Where samples and model are, e.g. ``cuda:0``.
            threads: That torch may use.
            data: Where this machine has what the run's data set reads: a file or a folder, maybe
                one that data arrive in part by part (`fedlearn.arrivals.parts_of`); or a
                loader of its own, ``module:function``. None for where the run says.
            folder: The node's own, where its site's clock is; None for a node without.
        """
        self.client_id = client_id
        self._admin_public = admin_public
        self._device = device
        self._threads = threads
        self._data = data
        self._folder = folder
        self._built: tuple[Configuration, int, Experiment] | None = None
        self._app: tuple[Schedule, ClientApp] | None = None

    def configuration(self, carried: Mapping[str, Any]) -> Configuration:
        """Return the configuration that Flower carried here.

        Args:
            carried: Flower's run configuration.

        Raises:
            ConfigError: It is none that this node obeys.
        """
        return read_configuration(carried, self._admin_public)

    def answer(self, message: Message, told: Configuration, state: RecordDict) -> Message:
        """Return the reply to a message, not packed.

        Args:
            message: Of the server.
            told: What the run is.
            state: This client's, in this run; changed in place.

        Raises:
            ConfigError: The configuration cannot run here.
        """
        training = message.metadata.message_type == MessageType.TRAIN
        arrived = len(parts_of(Path(self._data))) if self._data else 0
        experiment = self._experiment(told, arrived)
        message = unpacked(message)
        schedule, own = experiment.schedule, {}
        if training and experiment.choices["clock"] == ON_SITE:
            now = records.read_instruction(message).server_round
            schedule = self._site_schedule(told.run, schedule, now, arrived)
            own["node-experience"] = float(schedule.experience(self.client_id, now) or 0)
        app = self._app_of(experiment, schedule)
        started = time.perf_counter()
        reply = app(message, make_context(self.client_id + 1, state))
        if training and reply.has_content():
            own |= {"node-seconds": time.perf_counter() - started}
            records.metrics_of(reply).update({**own, **load_of(torch.device(self._device))})
        return reply

    def _experiment(self, told: Configuration, arrived: int) -> Experiment:
        """Return a run's parts, built when the run is new, and when data have arrived."""
        if self._built is None or self._built[:2] != (told, arrived):
            self._built = self._app = None  # two do not fit into memory, maybe
            self._built = told, arrived, self._build(told.composed)
        return self._built[2]

    def _app_of(self, experiment: Experiment, schedule: Schedule) -> ClientApp:
        """Return the client's app, made anew when its clock was moved on."""
        if self._app is None or self._app[0] is not schedule:
            there = dataclasses.replace(experiment, schedule=schedule)
            self._app = schedule, make_client_app(make_client(there))
        return self._app[1]

    def _site_schedule(
        self, run: str, nominal: Schedule, server_round: int, arrived: int
    ) -> Schedule:
        """Return the run's clock with this client's row as the site has it."""
        if self._folder is None:
            raise ConfigError("clock=on_site: needs a node's folder; fedlearn deploy supernode")
        reached = SiteClock.read(self._folder).at(date.today(), arrived)
        seen = note_experience(
            self._folder / STATES / run, reached, nominal.num_experiences, server_round
        )
        schedule = schedule_at_site(nominal, self.client_id, seen)
        known = self._app[0] if self._app else nominal
        same = np.array_equal(known.begins, schedule.begins)
        return known if same else schedule

    def _build(self, composed: Composed) -> Experiment:
        torch.set_num_threads(self._threads)
        here = {
            "runtime": {
                TARGET: "fedlearn.runtimes.inprocess.InProcess",
                "devices": self._device,
                "threads": self._threads,
            },
            "tracker": {TARGET: "fedlearn.tracking.tracker.NoTracker"},
        }
        tree = {**composed.tree, **here}
        if self._data is not None:
            tree["dataset"] = at_site(tree["dataset"], composed.choices["dataset"], self._data)
        if composed.choices["partition"] == ON_SITE:
            tree["partition"]["client"] = self.client_id
        with importable(Path.cwd()):
            return build(prepare(Composed(tree, composed.choices)))


def at_site(dataset: Mapping[str, Any], choice: str, data: str) -> dict[str, Any]:
    """Return a run's data set with this machine's samples in place of the server's.

    Args:
        dataset: What the run's configuration says of it.
        choice: What it is called there.
        data: A file or a folder; or ``module:function``, which returns a data set.

    Raises:
        ConfigError: The data set reads no files.
    """
    module, colon, function = data.partition(":")
    if colon and not Path(data).exists():
        return {TARGET: f"{module}.{function}"}
    for key in ("path", "root"):
        if key in dataset:
            return {**dataset, key: str(Path(data).expanduser().absolute())}
    raise ConfigError(
        f"--data={data}: dataset={choice} reads no files; name a loader, module:function"
    )
