"""A pool of Flower's Ray actors, with the interface of `fedlearn.runtimes.workers.Workers`.

Flower's simulation of 1.41 lets an actor that has died fail two clients in three for the rest of
the run, and sends a client's state with every message. Here its actors, `ClientAppActor` in a
`BasicActorPool`, are given jobs by this module: an actor that dies is replaced and its job is tried
once more; states stay in Ray's object store, whose owner is the main process, so that they outlive
the actor that made them.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import ray
from flwr.simulation.ray_transport.ray_actor import (
    BasicActorPool,
    ClientAppActor,
    pool_size_from_resources,
)
from ray import exceptions

import fedlearn
from fedlearn.runtimes.ray_worker import Answer, App, Box, Given, Packed
from fedlearn.runtimes.shared import Parcel
from fedlearn.runtimes.worker import Handle, Raised
from fedlearn.runtimes.workers import TRIES, Crashed
from fedlearn.spans import absorb, is_recording

_log = logging.getLogger(__name__)

DEATHS = (exceptions.RayActorError, exceptions.WorkerCrashedError, exceptions.OutOfMemoryError)
"""What Ray raises for a job whose actor is gone."""


class RayPool:
    """Does jobs in Ray actors.

    Attributes:
        count: Of actors, at first.
        crashes: How often an actor died.
    """

    def __init__(self, make: Callable[[], Handle], resources: dict[str, float], most: int) -> None:
        """Start the actors, in the Ray cluster that this process is connected to.

        Args:
            make: Called in each of them, makes what it does jobs with; see
                `fedlearn.runtimes.worker.Handle`.
            resources: Of an actor: ``num_cpus`` and ``num_gpus``.
            most: Actors.

        Raises:
            ValueError: The cluster has no room for one.
        """
        self._resources = resources
        self._pool = BasicActorPool(ClientAppActor, resources, {})
        self.count = min(self._pool.actors_capacity, most)
        self.crashes = 0
        self._pool.add_actors_to_pool(self.count)
        self._make = [ray.put(Packed.of_any(make))]
        self._run = uuid4().hex
        self._round = 0
        self._jobs = 0
        self._empty = ray.put(Box())
        self._boxes: dict[int, ray.ObjectRef[Box]] = {}  # by the parcel's number
        self._closed = False

    def map(
        self, jobs: Sequence[Any], shared: Any = None, costs: Sequence[float] | None = None
    ) -> list[Any]:
        """Do the jobs and return their results, in the order of the jobs.

        Args:
            jobs: Anything that pickles, with at most one parcel in each.
            shared: What every job gets too.
            costs: How long each job takes, in any unit: the longest is begun first.

        Returns:
            What the handle returned, or `Raised` or `Crashed` where it did not.

        Raises:
            RuntimeError: The pool is closed, or no actor is left and none can be started.
        """
        if self._closed:
            raise RuntimeError("the pool is closed")
        self._round += 1
        where = [ray.put(Packed.of(shared))]
        app = App(self._run, self._make, self._round, where, fedlearn.__version__, is_recording())
        order = range(len(jobs))
        queue = deque(order if costs is None else sorted(order, key=lambda i: -costs[i]))
        tries = [0] * len(jobs)
        results: list[Any] = [None] * len(jobs)
        running: dict[Any, tuple[int, int, Any]] = {}  # job, number and box, by the answer
        while queue or running:
            while queue and self._pool.is_actor_available():
                job = queue.popleft()
                answer, number, box = self._give(app, jobs[job])
                running[answer] = job, number, box
            (ended,), _ = ray.wait(list(running))
            job, number, box = running.pop(ended)
            try:
                answer = ray.get(ended)
            except DEATHS as error:
                tries[job] += 1
                if tries[job] < TRIES:
                    queue.appendleft(job)
                else:
                    results[job] = Crashed(_told(error))
                self._replace(ended)
            except exceptions.RayError as error:  # before the handle, or on the way back
                results[job] = _raised(error)
                self._pool.add_actor_back_to_pool(ended)
            else:
                self._pool.add_actor_back_to_pool(ended)
                results[job] = self._received(answer, number, box)
        return results

    def drop(self, parcel: Parcel) -> None:
        """Free what only this parcel holds; nobody may open it any more."""
        del self._boxes[parcel.number]

    def open(self, parcel: Parcel) -> Any:
        """Return what is in a parcel, here."""
        return Packed(parcel.blob, ray.get(self._boxes[parcel.number]).buffers).open()

    def close(self) -> None:
        """End the actors, whatever they are doing; may be called twice."""
        if self._closed:
            return
        self._closed = True
        for actor in (*self._pool.pool, *self._pool._future_to_actor.values()):
            ray.kill(actor)  # type: ignore[arg-type]

    def _give(self, app: App, job: Any) -> tuple[Any, int, Any]:
        """Give a job to an idle actor; return where its answer and its box will be."""
        parcels: list[Parcel] = []
        packed = Packed.of(job, parcels.append)
        box = self._boxes[parcels[0].number] if parcels else self._empty
        self._jobs += 1
        given = Given(self._jobs, packed)
        actor = self._pool.pool.pop()
        _, answer, after = actor.run.options(num_returns=3).remote(app, given, "", box)  # type: ignore[attr-defined]
        self._pool._future_to_actor[answer] = actor
        return answer, self._jobs, after

    def _received(self, answer: Answer, number: int, box: Any) -> Any:
        absorb(answer.spans)

        def keep(parcel: Parcel) -> None:
            if parcel.number == number:
                self._boxes[number] = box

        return answer.result.open(keep)

    def _replace(self, ended: Any) -> None:
        """Start another actor for one that died, where the cluster has room."""
        self.crashes += 1
        self._pool._future_to_actor.pop(ended)
        self._pool.num_actors -= 1
        capacity = self._capacity()
        if self._pool.num_actors < capacity:
            self._pool.add_actors_to_pool(1)
        if not self._pool.num_actors:
            raise RuntimeError("no Ray actor is left, and the cluster has no room for another")

    def _capacity(self) -> int:
        """Return how many actors the cluster has room for, once it knows what it has lost."""
        for _ in range(5):
            try:
                return pool_size_from_resources(self._resources)
            except ValueError:
                time.sleep(1)
        return 0


def _raised(error: exceptions.RayError) -> Raised:
    """Return what stands for the result of a job that Ray could not do."""
    if isinstance(error, exceptions.ObjectLostError):
        return Raised("the machine that held the client's state is gone", str(error))
    cause = error.cause if isinstance(error, exceptions.RayTaskError) else None
    return Raised.by(cause or error)


def _told(error: Exception) -> str:
    """Return why an actor died, as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
