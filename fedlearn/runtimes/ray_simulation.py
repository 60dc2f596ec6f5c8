"""Clients in Ray actors, on this machine or on a cluster: Flower's actors, our apps.

The ServerApp runs here. Its messages go straight to the actors, without the SuperLink of Flower's
simulation, its polling and its random node ids; so a run is, bit by bit, the serial one.
"""

import importlib.util
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from flwr.serverapp import ServerApp
from torch import nn

from fedlearn.client import Client, make_client_app
from fedlearn.config.errors import ConfigError
from fedlearn.runtimes.inprocess import InProcessGrid, num_cores, serve
from fedlearn.runtimes.process import Process
from fedlearn.runtimes.worker import keep_memory
from fedlearn.types import ContinualStrategy

LOCAL = "local"

PATIENCE = 5.0
"""Seconds in which a cluster's head must answer; Ray itself would try for minutes."""

_ADDRESS = re.compile(r"local|auto|(?P<host>[\w.-]+):(?P<port>\d{1,5})")


class RaySimulation:
    """Runs a ServerApp in this process, and its ClientApps in Ray actors.

    Attributes:
        devices: Where the server's model lives: the CPU.
        testers: How many threads may test it.
    """

    def __init__(
        self,
        address: str = LOCAL,
        num_cpus: float = 1,
        num_gpus: float = 0,
        threads: int = 1,
        workers: int | None = None,
    ) -> None:
        """Make the runtime.

        Args:
            address: ``local`` for a Ray of its own on this machine, which ends with the run; else a
                cluster's ``HOST:PORT``, or ``auto`` for the one that this machine belongs to.
            num_cpus: Processor cores of an actor, greater than 0.
            num_gpus: GPUs of an actor, at least 0; a part of one is shared. With any, models and
                samples are on it.
            threads: That torch may use in each process, at least 1; see
                `fedlearn.runtimes.inprocess.InProcess`.
            workers: The most actors, at least 1; None for as many as there is room for.

        Raises:
            ValueError: A value is out of range, Ray is not installed, or nobody answers at
                `address`.
        """
        where = _ADDRESS.fullmatch(address)
        if where is None:
            raise ValueError(f"runtime.address={address}: must be local, auto or HOST:PORT")
        if not num_cpus > 0:
            raise ValueError(f"runtime.num_cpus={num_cpus}: must be greater than 0")
        if not num_gpus >= 0:
            raise ValueError(f"runtime.num_gpus={num_gpus}: must be at least 0")
        if num_gpus > 1 and num_gpus != int(num_gpus):
            raise ValueError(f"runtime.num_gpus={num_gpus}: must be whole where it is above 1")
        if threads < 1:
            raise ValueError(f"runtime.threads={threads}: must be at least 1")
        if workers is not None and workers < 1:
            raise ValueError(f"runtime.workers={workers}: must be at least 1, or null")
        if importlib.util.find_spec("ray") is None:
            raise ValueError("runtime=ray: Ray is not installed; pip install 'flwr[simulation]'")
        if address == LOCAL:
            most = {"num_cpus": float(num_cores()), "num_gpus": float(torch.cuda.device_count())}
            for key, value in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
                if value > most[key]:
                    raise ValueError(f"runtime.{key}={value}: this machine has {most[key]:g}")
        elif where["host"]:
            _knock(address, where["host"], int(where["port"]))
        self.devices = [torch.device("cpu")]
        self._address = address
        self._resources = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self.testers = max(1, num_cores() // threads)
        self._threads = threads
        self._workers = workers

    def check(self, continual: ContinualStrategy, build_model: Callable[[], nn.Module]) -> None:
        """Do nothing: any client runs in an actor."""

    @contextmanager
    def open(self, client: Client) -> Iterator[InProcessGrid]:
        """Connect to Ray and make a grid of a scenario's clients; end the actors afterwards.

        Args:
            client: What they share.

        Raises:
            ConfigError: There is no such cluster, or it has no room for an actor.
        """
        from fedlearn.runtimes.ray_pool import RayPool
        from fedlearn.runtimes.ray_worker import TurnTakers

        keep_memory()
        samples = client.scenario.shares.sizes().sum(1).double().numpy()
        make = TurnTakers(client, self._threads, self._resources["num_gpus"] > 0)
        most = min(self._workers or client.scenario.num_clients, client.scenario.num_clients)
        with connected(self._address):
            try:
                pool = RayPool(make, self._resources, most)
            except ValueError as error:
                raise ConfigError(self._no_room()) from error
            app = make_client_app(client)
            executor = Process(app, client.scenario.num_clients, pool, samples.item, "ray")
            try:
                yield InProcessGrid(executor)
            finally:
                executor.close()

    def run(self, server_app: ServerApp, grid: InProcessGrid) -> None:
        """Run `server_app` to its end on a grid that is open."""
        serve(server_app, grid, self._threads)

    def _no_room(self) -> str:
        import ray

        there = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = self._resources["num_gpus"]
        key = "num_gpus" if gpus > there.get("GPU", 0) else "num_cpus"
        has = f"{there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs"
        return f"runtime.{key}={self._resources[key]}: no machine has so much; Ray has {has} in all"


def _knock(address: str, host: str, port: int) -> None:
    """Check that something answers at a cluster's address.

    Raises:
        ValueError: Nothing does.
    """
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise ValueError(_nobody(address)) from error


def _nobody(address: str) -> str:
    return (
        f"runtime.address={address}: there is no Ray cluster; start one (ray start --head), "
        f"or take {LOCAL}"
    )


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to Ray, to a new one that ends with it or to a cluster.

    Raises:
        ConfigError: There is no such cluster.
    """
    # Read when Ray is imported or started. Nothing is sent to its makers; a client without a GPU
    # sees none, as Ray will do by itself from its next major version on; and what a job raised is
    # told once, by its answer, and not for each of the three objects that Ray makes of it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    import ray

    settings: dict[str, Any] = {"address": address, "logging_level": logging.ERROR}
    if address == LOCAL:  # its processes import what this one can
        paths = os.pathsep.join(filter(None, sys.path))
        settings |= {
            "include_dashboard": False,
            "runtime_env": {"env_vars": {"PYTHONPATH": paths}},
        }
    try:
        ray.init(**settings)
    except (ConnectionError, TimeoutError) as error:
        raise ConfigError(_nobody(address)) from error
    try:
        yield
    finally:
        ray.shutdown()
