"""The vectorized executor: a cohort as a few batched programs instead of a message a client.

The cohort is cut into jobs of several chunks, for worker processes or for this process, where
every job may be bound to a device (`fedlearn.runtimes.devices`). A job's clients are trained
together by the strategy's `fedlearn.turns.CohortTrainer`, and what comes back are columns, and one
sum of models where the aggregation wants no more than their mean.
"""

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from torch import Tensor

from fedlearn import records
from fedlearn.client import Client, make_client_app
from fedlearn.client_state import UsedTurn
from fedlearn.records import Instruction
from fedlearn.runtimes.cohort_states import CohortStates
from fedlearn.runtimes.cohort_worker import CohortWorker, Done, Job, trainer_of
from fedlearn.runtimes.serial import Serial, make_context
from fedlearn.runtimes.worker import Raised
from fedlearn.screening import average_buffers
from fedlearn.spans import span
from fedlearn.stacked import Instructions, MeanOnly, Models, Replies, Stack
from fedlearn.turns import NEVER, Floats, Integers, Turns

_log = logging.getLogger(__name__)


class Pool(Protocol):
    """Runs jobs: worker processes (`fedlearn.runtimes.workers.Workers`), or this one.

    `fedlearn.runtimes.devices.Devices` has a thread of this one for each of several devices.
    """

    def map(self, jobs: Sequence[Any], shared: Any, costs: Sequence[float] | None) -> list[Any]:
        """Return what each job came to, in their order."""
        ...

    def open(self, parcel: Any) -> Any:
        """Return what was packed."""
        ...

    def drop(self, parcel: Any) -> None:
        """Forget what was packed."""
        ...

    def close(self) -> None:
        """End."""
        ...


class Unpacked:
    """What keeps objects as they are, because all that use them are in this process."""

    def pack(self, obj: Any) -> Any:
        """Return the object."""
        return obj

    def open(self, parcel: Any) -> Any:
        """Return the object."""
        return parcel

    def drop(self, parcel: Any) -> None:
        """Do nothing: who held the object lets go of it."""


class ThisProcess(Unpacked):
    """A pool without workers: jobs run here, one after another, and nothing is packed."""

    def __init__(self, handle: CohortWorker) -> None:
        self._handle = handle

    def map(
        self, jobs: Sequence[Job], shared: Any, costs: Sequence[float] | None
    ) -> list[Done | Raised]:
        """Return what each job came to."""
        return [attempt(self._handle, job, shared, self) for job in jobs]

    def close(self) -> None:
        """Do nothing."""


class Vectorized:
    """Trains whole cohorts.

    Attributes:
        num_clients: Of the federation.
        description: See `fedlearn.runtimes.serial.Executor`.
        trainer: What trains a chunk of clients; the workers have their own like it.
        states: What the clients keep.
    """

    def __init__(
        self,
        client: Client,
        pool: Pool,
        workers: int,
        formulation: str,
        placement: Integers | None = None,
    ) -> None:
        """Make the executor.

        Args:
            client: What the clients share.
            pool: Runs jobs with a `CohortWorker`.
            workers: How many jobs run at the same time.
            formulation: ``"auto"``, or how cohorts are to be trained.
            placement: (K,), which worker, from 0, has to train each client: no job holds clients of
                two. None where any worker trains anybody.

        Raises:
            ValueError: Clients cannot be trained together.
        """
        self.num_clients = client.scenario.num_clients
        self._client = client
        self._pool = pool
        self._workers = workers
        self._placement = placement
        self._single = Serial(make_client_app(client), self.num_clients)
        self.trainer = trainer_of(client.continual, client.model, formulation)
        self.states = CohortStates(pool)
        _log.info(
            "cohorts are trained by %s, %d clients at once, in %d workers: %s",
            self.trainer.formulation,
            self.trainer.chunk,
            workers,
            self.trainer.why,
        )
        self.description = {
            "executor": "vectorized",
            "workers": workers,
            "formulation": self.trainer.formulation,
            "why": self.trainer.why,
            "chunk": self.trainer.chunk,
        }

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies to single messages, in their order.

        Those that say the same are executed together.
        """
        alike: dict[Any, list[int]] = {}
        for at, message in enumerate(messages):
            alike.setdefault(_saying(message), []).append(at)
        replies: dict[int, Message] = {}
        for places in alike.values():
            group = sorted((messages[at].metadata.dst_node_id, at) for at in places)
            together = [messages[at] for _, at in group]
            answers = self._answers(together)
            replies |= dict(zip((at for _, at in group), answers, strict=True))
        return [replies[at] for at in range(len(messages))]

    def answer(self, instructions: Instructions) -> Sequence[Message]:
        """Return the replies to a cohort's instructions, stacked where they are for training."""
        ids = np.asarray(instructions.node_ids, dtype=np.int64) - 1
        if instructions.message_type == MessageType.TRAIN:
            return self.train(instructions, ids)
        return self._client.evaluate_cohort(instructions, ids)

    def context(self, node_id: int) -> Context:
        """Return a context with a copy of a client's state."""
        context = make_context(node_id, RecordDict())
        self.states.write(node_id - 1, context.state)
        return context

    def restore(self, node_id: int, turn: UsedTurn) -> None:
        """Let a client go on from this turn."""
        self.states.read(node_id - 1, turn)

    def close(self) -> None:
        """End the workers; contexts can still be asked for."""
        self._pool.close()

    def _answers(self, messages: Sequence[Message]) -> Sequence[Message]:
        """Return the replies to messages that say the same, one to each client, ascending."""
        kind = messages[0].metadata.message_type
        ids = np.array([message.metadata.dst_node_id - 1 for message in messages])
        if kind == MessageType.EVALUATE:
            return self._client.evaluate_cohort(messages, ids)
        if kind != MessageType.TRAIN:
            return self._single.execute(messages)
        stacked = Instructions(
            content=messages[0].content,
            node_ids=[message.metadata.dst_node_id for message in messages],
            message_type=kind,
            acknowledged=[records.read_instruction(each).acknowledged for each in messages],
        )
        return self.train(stacked, ids).of_all(messages)

    def train(self, instructions: Instructions, client_ids: Integers) -> Replies:
        """Have the clients of one instruction take their turns.

        Args:
            instructions: Of type ``"train"``.
            client_ids: (n,) the client behind each node, ascending.
        """
        with span("plan"):
            asked = instructions.common
            experiences = self._client.schedule.experiences(client_ids, asked.server_round)
            sizes = self._sizes(client_ids, experiences)
            busy = np.flatnonzero(sizes)
            ids, experiences, examples = client_ids[busy], experiences[busy], sizes[busy]
            states: Sequence[Any] = ()
            last = np.full(len(ids), NEVER)
            if self.trainer.keeps_state:
                told = np.asarray(instructions.acknowledged, dtype=np.int64)
                all_states, all_last = self.states.settle(client_ids, told)  # of who is idle too
                states, last = [all_states[place] for place in busy.tolist()], all_last[busy]
            turns = self._client.turns(ids, experiences, last, asked.server_round, asked.config)
            read = _read(instructions, busy)
            weights = None
            if instructions.weighted_by == records.NUM_EXAMPLES:
                weights = np.where(read, examples, 0).astype(np.float64)
            jobs = self._jobs(turns, states, weights)
        with span("work"):
            shared = (asked.parameters, asked.buffers)
            results = self._pool.map(jobs, shared, [job.cost for job in jobs])
        with span("gather"):
            done = [
                each if isinstance(each, Done) else Done.lost(job, each.reason)
                for job, each in zip(jobs, results, strict=True)
            ]
            for job, each in zip(jobs, done, strict=True):
                if each.states:
                    at = job.places
                    self.states.stage(ids[at], each.states, asked.server_round, experiences[at])
            good, models, buffers = _models(jobs, done, read, weights, examples, asked)
        diverged, failed = (
            {
                int(busy[job.places[at]]): reason
                for job, each in zip(jobs, done, strict=True)
                for at, reason in getattr(each, kind).items()
                if read[job.places[at]]
            }
            for kind in ("diverged", "failed")
        )
        columns = {records.NUM_EXAMPLES: examples, **_columns(jobs, done, len(ids))}
        idle = np.flatnonzero(sizes == 0)
        return Replies(
            instructions=instructions,
            places=busy[good],
            metrics={name: column[good] for name, column in columns.items()},
            models=models,
            buffers=buffers,
            idle=idle[_read(instructions, idle)].tolist(),
            diverged=diverged,
            failed=failed,
        )

    def _sizes(self, client_ids: Integers, experiences: Integers) -> Integers:
        """Return (n,): the samples that each has to train on, 0 where it is in no experience."""
        shares, at = self._client.scenario.shares, np.maximum(experiences, 0)
        held = shares.ends.numpy()[client_ids, at] - shares.begins.numpy()[client_ids, at]
        found: Integers = np.where(experiences >= 0, held, 0).astype(np.int64)
        return found

    def _jobs(self, turns: Turns, states: Sequence[Any], weights: Floats | None) -> list[Job]:
        """Cut a cohort into jobs of clients that take about as many steps."""
        steps = turns.num_steps()
        order = np.argsort(-steps, kind="stable")
        if self._placement is None:
            portions = _portions(len(turns), self.trainer.chunk, self._workers)
            parts = [order[begin:end] for begin, end in portions]
        else:
            homes = self._placement[turns.client_ids[order]]
            parts = [order[homes == home] for home in np.unique(homes)]
        jobs = []
        for at in parts:
            jobs.append(
                Job(
                    places=at,
                    cost=float(steps[at].sum()),
                    columns=turns.select(at).columns(),
                    states=[states[place] for place in at.tolist()] if states else (),
                    weights=None if weights is None else weights[at],
                )
            )
        return jobs


def attempt(
    handle: Callable[[Job, Any, Any], Done], job: Job, shared: Any, keeper: Any
) -> Done | Raised:
    """Return what a job came to in this process, as `Pool.map` tells it."""
    try:
        return handle(job, shared, keeper)
    except Exception as error:  # costs the job, never the run
        _log.warning("a job raised", exc_info=True)
        return Raised.by(error)


def _saying(message: Message) -> Any:
    """Return what a message says, but for what was acknowledged; arrays by who holds them."""
    said: list[Any] = [message.metadata.message_type]
    for key, record in message.content.items():
        if isinstance(record, ArrayRecord):
            said.append((key, id(record)))
        else:
            told = {name: repr(value) for name, value in record.items()}
            told.pop(records.ACKNOWLEDGED, None)
            said.append((key, tuple(sorted(told.items()))))
    return tuple(said)


def _portions(clients: int, chunk: int, workers: int) -> list[tuple[int, int]]:
    """Return from which to which client each job goes.

    One job a worker takes three quarters of what is left, and so on ("factoring", Hummel et al.
    1992): the last ones are small and even out what the first ones were misjudged by, for cores are
    seldom equally fast. Less than a quarter of a chunk is not worth a job's overhead, nor is a
    chunk that is not full.
    """
    least = max(1, min(chunk // 4, clients // workers))
    ends = [0]
    while (left := clients - ends[-1]) > 0:
        size = left if workers == 1 else max(least, left * 3 // (4 * workers))
        if size > chunk:
            size = round(size / chunk) * chunk
        for _ in range(workers):
            ends.append(min(clients, ends[-1] + size))
    return [(begin, end) for begin, end in pairwise(ends) if begin < end]


def _read(instructions: Instructions, places: Integers) -> Any:
    """Return (n,) bool: whether the server is going to read the replies from `places`."""
    if not instructions.unread:
        return np.ones(len(places), dtype=bool)
    nodes = [instructions.node_ids[place] for place in places.tolist()]
    return np.array([node not in instructions.unread for node in nodes], dtype=bool)


def _columns(jobs: Sequence[Job], done: Sequence[Done], size: int) -> dict[str, Any]:
    """Return the metrics of all jobs, (size,) each, in the order of the cohort."""
    columns: dict[str, Any] = {}
    for job, each in zip(jobs, done, strict=True):
        for name, values in each.metrics.items():
            if name not in columns:
                columns[name] = np.zeros(size, dtype=values.dtype)
            columns[name][job.places] = values
    return columns


def _models(
    jobs: Sequence[Job],
    done: Sequence[Done],
    read: Any,
    weights: Floats | None,
    sizes: Integers,
    asked: Instruction,
) -> tuple[Integers, Models, dict[str, Tensor]]:
    """Return who trained and is read, ascending, their models, and the mean of their buffers."""
    good = read.copy()
    for job, each in zip(jobs, done, strict=True):
        good[job.places[[*each.diverged, *each.failed]]] = False
    places = np.flatnonzero(good)
    if weights is not None:
        total = float(weights[places].sum())
        means = _means([each.models for each in done], total, asked.parameters)
        buffers = _means([each.buffers for each in done], total, asked.buffers)
        return places, MeanOnly(means), buffers
    where = {
        place: (each, at)
        for job, each in zip(jobs, done, strict=True)
        for at, place in enumerate(job.places.tolist())
    }
    models, buffers_of = [], {}
    for place in places.tolist():
        each, at = where[place]
        models.append({name: stacked[at] for name, stacked in each.models.items()})
        if each.buffers:
            buffers_of[place] = {name: stacked[at] for name, stacked in each.buffers.items()}
    examples = {place: float(sizes[place]) for place in buffers_of}
    buffers = average_buffers(buffers_of, examples) if buffers_of else asked.buffers
    return places, Stack(models), buffers


def _means(
    sums: Sequence[dict[str, Tensor]], total: float, received: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the mean of each tensor in its own dtype; what nobody summed is as it was received."""
    means = dict(received)
    for name, like in received.items():
        parts = [each[name] for each in sums if name in each]
        if parts and total:
            mean = parts[0].to(torch.float64, copy=True)
            for part in parts[1:]:
                mean.add_(part)
            mean.div_(total)
            means[name] = (mean if like.is_floating_point() else mean.round_()).to(like)
    return means
