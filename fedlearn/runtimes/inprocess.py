"""The in-process runtime: Flower's `Grid` without a SuperLink, with all ClientApps on this machine.

Two private parts of Flower are touched: `TaskIdentity` (see `fedlearn.runtimes.task`) and, here and
nowhere else, a message's id, which a SuperLink would set.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import nn

from fedlearn.client import Client, make_client_app
from fedlearn.client_state import UsedTurn
from fedlearn.runtimes.cohort_worker import CohortWorker, trainer_of
from fedlearn.runtimes.device_names import resolve
from fedlearn.runtimes.devices import on_devices
from fedlearn.runtimes.process import Process, TurnTaker
from fedlearn.runtimes.serial import RUN_ID, Executor, Serial
from fedlearn.runtimes.task import SERVER_NODE, task_identity
from fedlearn.runtimes.vectorized import Vectorized
from fedlearn.runtimes.worker import keep_memory
from fedlearn.runtimes.workers import Start, Workers, needs_spawn
from fedlearn.stacked import Instructions
from fedlearn.turns import FORMULATIONS, Formulation
from fedlearn.types import ContinualStrategy


class InProcessGrid(Grid):
    """A grid whose nodes are the clients 0..K-1 of an executor."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._ids = itertools.count(1)
        self._replies: dict[str, Message] = {}

    @property
    def description(self) -> dict[str, Any]:
        """What runs the clients, as JSON values (see `fedlearn.runtimes.serial.Executor`)."""
        return self.executor.description

    def set_run(self, run: Any) -> None:
        """Do nothing: the grid serves the one run that it was made for."""

    @property
    def run(self) -> Any:
        """Not available: there is no SuperLink that could describe a run."""
        raise AttributeError("the in-process grid belongs to no SuperLink run")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to one client (the API of `Grid`)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def nodes_of_clients(self) -> dict[int, int]:
        """Return each client's node id, by client id."""
        return {node_id - 1: node_id for node_id in self.get_node_ids()}

    def get_node_ids(self) -> list[int]:
        """Return every client's node id, ascending."""
        return list(range(1, self.executor.num_clients + 1))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Execute the messages now; return the ids under which the replies wait."""
        batch = list(messages)
        pushed = [_identify(message, next(self._ids)) for message in batch]
        for message_id, reply in zip(pushed, self.executor.execute(batch), strict=True):
            _identify(reply, next(self._ids))
            self._replies[message_id] = reply
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to the messages of these ids, each once."""
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Sequence[Message]:
        """Execute the messages and return their replies.

        Args:
            messages: To any clients, in any order.
            timeout: Ignored: a turn on this machine cannot be abandoned half-way.
        """
        if isinstance(messages, Instructions) and isinstance(self.executor, Vectorized):
            return self.executor.answer(messages)
        return self.pull_messages(self.push_messages(messages))

    def context(self, node_id: int) -> Context:
        """Return the context that holds a client's state."""
        return self.executor.context(node_id)

    def restore(self, node_id: int, turn: UsedTurn) -> None:
        """Let a client that has taken no turn here go on from this one."""
        self.executor.restore(node_id, turn)


def _identify(message: Message, number: int) -> str:
    message_id = f"m{number}"
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use so many threads, and as many as before on the way out."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def serve(server_app: ServerApp, grid: InProcessGrid, threads: int) -> None:
    """Run `server_app` to its end, here, on a grid that is open.

    Args:
        server_app: The server.
        grid: Its clients.
        threads: That torch may use.
    """
    context = Context(
        run_id=RUN_ID, node_id=SERVER_NODE, node_config={}, state=RecordDict(), run_config={}
    )
    with task_identity(), torch_threads(threads):
        server_app(grid, context)


class InProcess:
    """Runs a ServerApp in this process, and its ClientApps here or in worker processes.

    Attributes:
        devices: Where samples and models live; the server's model is on the first one.
        formulation: How cohorts are trained as one program, or ``"auto"``.
        testers: How many threads may test the server's model; as many as there are workers.
    """

    def __init__(
        self,
        executor: Literal["serial", "process", "vectorized"] = "serial",
        devices: str | Sequence[str] = "auto",
        threads: int = 1,
        workers: int | None = None,
        start: Start | None = None,
        state_dir: str | None = None,
        formulation: Formulation = "auto",
    ) -> None:
        """Make the runtime.

        Args:
            executor: How the clients of a cohort are executed: ``serial``, one after another in
                this process; ``process``, in worker processes, to the same result; or
                ``vectorized``, as batched programs, to the same result but for rounding: in worker
                processes on a CPU, in this process on CUDA devices.
            devices: ``auto``, or names as a list or parted by commas: ``cpu``, or CUDA devices
                (``cuda:0``); ``vectorized`` takes several. ``auto`` takes what CUDA devices there
                are, ``vectorized`` all of them and others the first, and the CPU where there is
                none.
            threads: Threads that torch may use in each process, at least 1. The last bits of a sum
                depend on how many share it, so equal numbers give equal results on any machine.
            workers: Worker processes, at least 1; None for what the processor cores that this
                process may use have room for. ``serial`` has none.
            start: How workers are made: ``fork``, or ``spawn``, which takes longer, where CUDA is
                in use or `threads` is more than 1; None for whichever fits.
            state_dir: Folder where workers keep clients' states in files without names, which go
                with the run; None for in memory.
            formulation: How ``vectorized`` trains a cohort, one of `FORMULATIONS`.

        Raises:
            ValueError: A value is unknown or out of range, or `executor` has no use for it.
        """
        if executor not in ("serial", "process", "vectorized"):
            raise ValueError(
                f"runtime.executor={executor}: unknown; choices: serial, process, vectorized"
            )
        self.devices = resolve(devices, executor, several=executor == "vectorized")
        if threads < 1:
            raise ValueError(f"runtime.threads={threads}: must be at least 1")
        if workers is not None and workers < 1:
            raise ValueError(f"runtime.workers={workers}: must be at least 1, or null")
        if start not in ("fork", "spawn", None):
            raise ValueError(f"runtime.start={start}: unknown; choices: fork, spawn, null")
        if start == "fork" and threads > 1:
            raise ValueError(
                f"runtime.start=fork: is for runtime.threads=1, and it is {threads}; take spawn"
            )
        self._on_cuda = executor == "vectorized" and self.devices[0].type == "cuda"
        if executor == "serial" or self._on_cuda:
            where = f" on {self.devices[0]}" if self._on_cuda else ""
            way_out = "remove it" if self._on_cuda else "use process or vectorized"
            several = None if workers == 1 else workers
            given = (("workers", several), ("start", start), ("state_dir", state_dir))
            for key, value in given:
                if value is not None:
                    raise ValueError(
                        f"runtime.{key}={value}: is for worker processes, and "
                        f"runtime.executor={executor} has none{where}; {way_out}"
                    )
        if formulation not in FORMULATIONS:
            raise ValueError(
                f"runtime.formulation={formulation}: unknown; choices: {', '.join(FORMULATIONS)}"
            )
        if formulation != "auto" and executor != "vectorized":
            raise ValueError(
                f"runtime.formulation={formulation}: is for runtime.executor=vectorized, and it is "
                f"{executor}"
            )
        self._executor = executor
        self._threads = threads
        self._workers = workers or max(1, num_cores() // threads)
        on_cpu = executor != "serial" and self.devices[0].type == "cpu"
        self.testers = self._workers if on_cpu else 1
        self._start = start
        self._state_dir = state_dir
        self.formulation = formulation

    def check(self, continual: ContinualStrategy, build_model: Callable[[], nn.Module]) -> None:
        """Check that the executor can train clients of such a model by such a strategy.

        Raises:
            ValueError: It cannot.
        """
        if self._executor == "vectorized":
            trainer_of(continual, build_model(), self.formulation)

    @contextmanager
    def open(self, client: Client) -> Iterator[InProcessGrid]:
        """Make a grid of a scenario's clients; end its workers afterwards.

        Worker processes are forked here, so this comes before the process has threads. From now on
        this process keeps the memory that it frees, as workers do.

        Args:
            client: What they share.

        Raises:
            ValueError: `runtime.start` is ``fork``, and CUDA is in use.
        """
        keep_memory()
        executor = self._make_executor(client)
        try:
            yield InProcessGrid(executor)
        finally:
            executor.close()

    def run(self, server_app: ServerApp, grid: InProcessGrid) -> None:
        """Run `server_app` to its end on a grid that is open."""
        serve(server_app, grid, self._threads)

    def _make_executor(self, client: Client) -> Executor:
        app, num_clients = make_client_app(client), client.scenario.num_clients
        if self._executor == "serial":
            return Serial(app, num_clients)
        if self._on_cuda:
            return on_devices(client, self.devices, self.formulation)
        spawn = needs_spawn(self._threads)
        if self._start == "fork" and spawn:
            raise ValueError("runtime.start=fork: does not work where CUDA is in use; take spawn")
        start = self._start or ("spawn" if spawn else "fork")
        workers = min(self._workers, num_clients)
        folder = None if self._state_dir is None else Path(self._state_dir)
        if self._executor == "process":
            samples = client.scenario.shares.sizes().sum(1).double().numpy()
            pool = Workers(TurnTaker(app), workers, start, self._threads, folder)
            return Process(app, num_clients, pool, samples.item)
        handle = CohortWorker(client, self.formulation)
        pool = Workers(handle, workers, start, self._threads, folder)
        return Vectorized(client, pool, workers, self.formulation)


def num_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
