"""A pool of worker processes that share memory with the main process.

    def handle(job, shared, keeper):  # runs in a worker
        ...

    with Workers(handle, count=2) as workers:
        results = workers.map(jobs, shared=weights)

What crosses between processes is pickled without its tensors; these are copied once into memory
that all map. `shared` is written once a call, whatever the number of jobs; a result's tensors are
views of its worker's memory and stay what they are for as long as someone holds them. What is to
outlive a call inside the pool is packed into a parcel (see `fedlearn.runtimes.keeper`).

A worker that dies is replaced and its job tried once more, so jobs must be pure: the same result
whoever does them and how often.
"""

import os
import select
import signal
from collections import Counter, deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fedlearn.runtimes.arenas import Arena, Extent, Ref, Shelf, make_arenas
from fedlearn.runtimes.keeper import Keeper
from fedlearn.runtimes.shared import Parcel, dumps, loads
from fedlearn.runtimes.worker import Answer, Channel, Handle, Order, Raised, Worker, spaces_of
from fedlearn.runtimes.zygote import Zygote
from fedlearn.spans import absorb

__all__ = ["Crashed", "Handle", "Keeper", "Parcel", "Raised", "Workers"]

TRIES = 2
"""How often a job is given to a worker before it is taken for what kills them."""

SHORT_JOB = 5e-3
"""Seconds; a worker whose jobs take less gets the next one before it has answered the last."""

Start = Literal["fork", "spawn"]


def needs_spawn(threads: int) -> bool:
    """Whether workers with so many threads each must be spawned, as this process is now."""
    return threads > 1 or torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


class Crashed:
    """What stands for the result of a job that ended its worker, twice.

    Attributes:
        reason: The signal or the exit status, as one line.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"Crashed({self.reason!r})"


class _Seat:
    """A worker as the main process sees it.

    Attributes:
        channel: To it.
        pid: Its process.
        given: The jobs that it has and has not answered, in order.
        unused: Extents of its spaces that it may use again.
        live: What it has to take over, until it is told.
        job_s: Seconds that its last job took.
    """

    def __init__(self, channel: Channel, pid: int, live: Sequence[Extent]) -> None:
        self.channel = channel
        self.pid = pid
        self.given: deque[int] = deque()
        self.unused: list[Extent] = []
        self.live = live
        self.job_s = 1.0


class Workers:
    """A pool of worker processes.

    Attributes:
        count: Of workers.
        busy: Seconds that each worker has spent on jobs.
        crashes: How often a worker died.
    """

    def __init__(
        self,
        handle: Handle,
        count: int,
        start: Start = "fork",
        threads: int = 1,
        parcel_dir: Path | None = None,
    ) -> None:
        """Start workers; best before this process has threads.

        Args:
            handle: Does the jobs.
            count: Of workers, at least 1.
            start: ``fork``: workers inherit everything that this process has now; ``spawn``: they
                are new Python processes that get a copy of `handle`. CUDA, and torch's pool of
                threads once it has been used, do not survive a fork.
            threads: That torch may use in each worker, at least 1.
            parcel_dir: Where parcels' tensors lie in files; None for in memory.

        Raises:
            ValueError: `start` is ``fork``, and CUDA is in use or `threads` more than 1.
        """
        if start == "fork" and needs_spawn(threads):
            raise ValueError("start=fork: CUDA, or several threads, do not survive it; use spawn")
        self.count = count
        self.busy = [0.0] * count
        self.crashes = 0
        self._arenas = make_arenas(count + 1)
        shelves: list[Shelf] = []
        if parcel_dir is not None:
            parcel_dir.mkdir(parents=True, exist_ok=True)
            shelves = [Shelf(count + 1 + place, parcel_dir) for place in range(count)]
        self._spaces: list[Arena | Shelf] = [*self._arenas, *shelves]
        self._uses: Counter[Extent] = Counter()
        self._held: set[int] = set()
        self._released: deque[Extent] = deque()  # filled whenever a tensor dies, in any thread
        self._placed: dict[tuple[Any, ...], tuple[Ref, Tensor]] = {}
        self._round = 0
        self._serial = 0
        self._closed = False
        if start == "fork":
            self._zygote = Zygote.fork(Worker(handle, self._arenas, shelves, threads))
        else:
            from fedlearn.runtimes.spawned import spawn_zygote

            self._zygote = spawn_zygote(handle, self._arenas, shelves, threads)
        self._poll = select.poll()
        self._seats: list[_Seat] = []
        self._places: dict[int, int] = {}
        try:
            for place in range(count):
                self._seats.append(self._start(place, ()))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def map(
        self, jobs: Sequence[Any], shared: Any = None, costs: Sequence[float] | None = None
    ) -> list[Any]:
        """Do the jobs and return their results, in the order of the jobs.

        Args:
            jobs: Anything that pickles.
            shared: What every job gets too.
            costs: How long each job takes, in any unit: the longest is begun first.

        Returns:
            What `handle` returned, or `Raised` or `Crashed` where it did not.

        Raises:
            RuntimeError: The pool is closed, or cannot start workers any more.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        try:
            return self._map(jobs, shared, costs)
        except BaseException:  # some workers are in the middle of something
            self.close()
            raise

    def drop(self, parcel: Parcel) -> None:
        """Free what only this parcel holds; nobody may open it any more.

        Raises:
            ValueError: It has been dropped before.
        """
        if parcel.number not in self._held:
            raise ValueError(f"parcel {parcel.number}: is none of this pool's, or was dropped")
        self._held.discard(parcel.number)
        self._released.extend(parcel.extents)

    def open(self, parcel: Parcel) -> Any:
        """Return what is in a parcel, here; its tensors stay what they are, even once dropped."""
        return loads(parcel.blob, self._take)

    @property
    def kept_bytes(self) -> int:
        """Bytes that parcels, and results that someone holds, take."""
        self._release()
        return sum(extent.size for extent in self._uses)

    def close(self) -> None:
        """End all workers; may be called twice. Results and parcels can still be read."""
        if self._closed:
            return
        self._closed = True
        for seat in self._seats:
            seat.channel.close()
        self._zygote.close()
        self._release()
        for space in self._spaces:
            space.adopt(each[1:] for each in self._uses if each.arena == space.number)

    def _map(self, jobs: Sequence[Any], shared: Any, costs: Sequence[float] | None) -> list[Any]:
        main = self._arenas[0]
        main.reset()
        self._placed.clear()
        self._round += 1
        blob = dumps(shared, self._place)
        where = main.put_bytes(blob).offset, len(blob)
        order = range(len(jobs))
        queue = deque(order if costs is None else sorted(order, key=lambda i: -costs[i]))
        tries = [0] * len(jobs)
        results: list[Any] = [None] * len(jobs)
        left = len(jobs)
        blobs: dict[int, bytes] = {}  # of the next jobs

        def give(seat: _Seat) -> None:
            # What waits for one worker cannot be done by another: only where jobs are short.
            depth = 2 if seat.job_s < SHORT_JOB and len(queue) > self.count else 1
            while queue and len(seat.given) < depth:
                job = queue.popleft()
                seat.given.append(job)
                blob = blobs.pop(job, None) or dumps(jobs[job], self._place)
                unused, seat.unused = seat.unused, []
                live, seat.live = seat.live, ()
                try:
                    seat.channel.send(Order(job, blob, self._round, where, unused, live))
                except OSError:  # it has died, as its end of the connection will tell
                    return

        self._release()
        for seat in self._seats:
            give(seat)
        while left:
            for job in islice(queue, self.count):  # while all are busy
                if job not in blobs:
                    blobs[job] = dumps(jobs[job], self._place)
            for fd, _ in self._poll.poll():
                place = self._places[fd]
                seat = self._seats[place]
                try:
                    message, extent = seat.channel.receive()
                except (EOFError, OSError):
                    reason = self._bury(place)
                    if seat.given:  # the others have only waited
                        tries[seat.given[0]] += 1
                        if tries[seat.given[0]] == TRIES:
                            results[seat.given.popleft()] = Crashed(reason)
                            left -= 1
                    queue.extendleft(reversed(seat.given))
                    give(self._seats[place])
                else:
                    answer = Answer(*message)
                    seat.given.popleft()
                    seat.job_s = answer.seconds
                    if extent is not None:
                        seat.unused.append(extent)
                    give(seat)  # first of all: it is idle
                    results[answer.job] = loads(answer.blob, self._take, self._hold)
                    left -= 1
                    self.busy[place] += answer.seconds
                    absorb(answer.spans)
        self._placed.clear()
        return results

    def _start(self, place: int, live: Sequence[Extent]) -> _Seat:
        self._serial += 1
        connection, pid = self._zygote.start(place, self._serial)
        channel = Channel(connection, self._arenas[0], self._arenas[place + 1])
        self._places[channel.fileno()] = place
        self._poll.register(channel.fileno(), select.POLLIN)
        return _Seat(channel, pid, live)

    def _bury(self, place: int) -> str:
        """Replace a worker that has died; return why it did."""
        seat = self._seats[place]
        self.crashes += 1
        self._poll.unregister(seat.channel.fileno())
        del self._places[seat.channel.fileno()]
        seat.channel.close()
        status = os.waitstatus_to_exitcode(self._zygote.bury(seat.pid))
        self._release()
        mine = spaces_of(place, len(self._arenas))
        live = [extent for extent in self._uses if extent.arena in mine]
        self._seats[place] = self._start(place, live)
        if status >= 0:
            return f"the worker exited with status {status}"
        return f"the worker was ended by {signal.Signals(-status).name}"

    def _place(self, tensor: Tensor) -> Ref:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in self._placed:  # kept for the round, or its address could be another's
            self._placed[key] = self._arenas[0].put(tensor), tensor
        return self._placed[key][0]

    def _take(self, ref: Ref) -> Tensor:
        space = self._spaces[ref.extent.arena]
        if isinstance(space, Shelf):
            return space.view(ref)
        self._uses[ref.extent] += 1
        return space.view(ref, self._released.append)

    def _hold(self, parcel: Parcel) -> None:
        if parcel.number not in self._held:
            self._held.add(parcel.number)
            self._uses.update(parcel.extents)

    def _release(self) -> None:
        """Note what nobody needs any more, for its owners to be told with their next jobs."""
        while self._released:
            extent = self._released.popleft()
            self._uses[extent] -= 1
            if not self._uses[extent]:
                del self._uses[extent]
                if not self._closed:
                    self._seats[(extent.arena - 1) % self.count].unused.append(extent)
