"""A worker: takes jobs one after another, and answers each."""

import contextlib
import ctypes
import pickle
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from fedlearn.runtimes.arenas import Arena, Extent, Ref, Shelf
from fedlearn.runtimes.keeper import Keeper
from fedlearn.runtimes.shared import Keeping, Parcel, dumps, loads
from fedlearn.spans import Span, drain, span

Handle = Callable[[Any, Any, Keeping], Any]
"""Does a job in a worker, given the job, what all jobs share, and the worker's keeper."""

LARGEST_MESSAGE = 1 << 15
"""Bytes; more goes through an arena, so that nobody waits for the other to empty a pipe."""


@dataclass(frozen=True)
class Raised:
    """What stands for the result of a job whose handle raised.

    Attributes:
        reason: The exception, as one line.
        traceback: Its traceback.
    """

    reason: str
    traceback: str

    @classmethod
    def by(cls, error: BaseException) -> "Raised":
        """Return what stands for an exception."""
        told = "".join(traceback.format_exception(error))
        return cls(" ".join(f"{type(error).__name__}: {error}".split()), told)


class Order(NamedTuple):
    """What a worker is told.

    Attributes:
        job: The number of the job.
        blob: The job.
        round: Changes with each call of `Workers.map`.
        shared: Where what all jobs share is pickled in the main process's arena.
        unused: Extents of the worker's spaces that nobody needs any more.
        live: To a worker that takes another's place: what is still used in its spaces.
    """

    job: int
    blob: bytes
    round: int
    shared: tuple[int, int]
    unused: Sequence[Extent]
    live: Sequence[Extent] = ()


class Answer(NamedTuple):
    """What a worker answers.

    Attributes:
        job: The number of the job.
        blob: The result.
        seconds: How long the job took.
        spans: What the worker has recorded since it last answered; see `fedlearn.spans`.
    """

    job: int
    blob: bytes
    seconds: float
    spans: Sequence[Span]


class Channel:
    """One end of the connection between the main process and a worker."""

    def __init__(self, connection: socket.socket, own: Arena, theirs: Arena) -> None:
        """Make an end.

        Args:
            connection: Taken over.
            own: This process's arena.
            theirs: The other's.
        """
        self._connection = Connection(connection.detach())
        self._own = own
        self._theirs = theirs

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._connection.fileno()

    def send(self, message: tuple[Any, ...]) -> None:
        """Send a tuple of plain values.

        Raises:
            OSError: The other end is closed.
        """
        data = pickle.dumps(tuple(message), 5)
        if len(data) > LARGEST_MESSAGE:
            data = pickle.dumps((self._own.put_bytes(data), len(data)), 5)
        self._connection.send_bytes(data)

    def receive(self) -> tuple[tuple[Any, ...], Extent | None]:
        """Return the next message, and where in the other's arena it was, if it was there.

        Raises:
            EOFError: The other end is closed.
            OSError: Likewise.
        """
        message = pickle.loads(self._connection.recv_bytes())
        if not isinstance(message[0], Extent):
            return message, None
        extent, length = message
        return pickle.loads(self._theirs.bytes_at(extent.offset, length)), extent

    def close(self) -> None:
        """Close this end."""
        self._connection.close()


class Worker:
    """A worker's side of the pool."""

    def __init__(
        self, handle: Handle, arenas: Sequence[Arena], shelves: Sequence[Shelf], threads: int
    ) -> None:
        """Make a worker; the same object serves every worker that is forked from its process.

        Args:
            handle: Does the jobs.
            arenas: The main process's, then each worker's.
            shelves: Each worker's, where parcels lie in files; else empty.
            threads: That torch may use.
        """
        self._handle = handle
        self._arenas = arenas
        self._shelves = shelves
        self._threads = threads

    def __call__(self, connection: socket.socket, place: int, serial: int) -> None:
        """Work until the main process closes the connection.

        Args:
            connection: To the main process.
            place: Which of the workers this is, from 0.
            serial: Distinguishes it from all others that there were.
        """
        torch.set_num_threads(self._threads)
        keep_memory()
        with contextlib.suppress(AttributeError):  # standard output may be anything
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        own, main = self._arenas[place + 1], self._arenas[0]
        spaces: list[Arena | Shelf] = [*self._arenas, *self._shelves]  # by their numbers
        mine = [space for space in spaces if space.number in spaces_of(place, len(self._arenas))]
        keeper = Keeper(mine[-1], spaces, serial)
        channel = Channel(connection, own, main)
        current, shared = 0, None
        while True:
            try:
                with span("wait"):
                    message, _ = channel.receive()
            except (EOFError, OSError):
                return
            order = Order(*message)
            for space in mine if order.live else ():
                space.adopt(each[1:] for each in order.live if each.arena == space.number)
            for extent in order.unused:
                spaces[extent.arena].free(extent.offset, extent.size)
            started = time.perf_counter()
            sent: list[Parcel] = []
            placed: list[Extent] = []

            def place_result(tensor: torch.Tensor, placed: list[Extent] = placed) -> Ref:
                ref = own.put(tensor)
                placed.append(ref.extent)
                return ref

            try:
                if order.round != current:
                    keeper.begin_round()
                    shared = loads(main.bytes_at(*order.shared), main.view)
                    current = order.round
                with span("read"):
                    job = loads(order.blob, main.view)
                result = self._handle(job, shared, keeper)
                with span("answer"):
                    blob = dumps(result, place_result, sent.append)
                del result  # its tensors may be large, and the next job may take long to come
            except BaseException as error:
                sent.clear()
                for extent in placed:
                    own.free(extent.offset, extent.size)
                blob = dumps(Raised.by(error), own.put)
            keeper.end_job(sent)
            seconds = time.perf_counter() - started
            with contextlib.suppress(OSError):
                channel.send(Answer(order.job, blob, seconds, drain()))


def spaces_of(place: int, num_arenas: int) -> tuple[int, int]:
    """Return the numbers of the arena and the shelf, if any, that a worker owns."""
    return place + 1, place + num_arenas


def keep_memory() -> None:
    """Have the C library keep freed memory, where it is glibc.

    By default it returns large blocks to the kernel at once and gets them back page by page, which
    costs up to a third of a convolution's time.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 1 << 25)  # the largest that it takes
