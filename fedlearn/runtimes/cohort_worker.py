"""What a worker of the vectorized executor does: the turns of some clients of a cohort, at once."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from threading import Event
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedlearn import records
from fedlearn.client import Client
from fedlearn.deferred import Deferred
from fedlearn.screening import is_finite
from fedlearn.spans import span
from fedlearn.turns import CohortReport, CohortStrategy, CohortTrainer, Integers, Turns
from fedlearn.types import ContinualStrategy, State

_log = logging.getLogger(__name__)

PARTIAL = 64
"""Clients; the sum of so many models is taken in their own precision."""

Received = tuple[dict[str, Tensor], dict[str, Tensor]]
"""The parameters and the buffers that the cohort was sent."""


@dataclass(frozen=True)
class Job:
    """Some clients' turns.

    Attributes:
        places: (n,) where they stand in the cohort.
        cost: How long it takes, in any unit.
        columns: Their `Turns`, but for the scenario.
        states: What each client kept, packed; None for nothing. Empty where nobody keeps anything.
        weights: (n,) float64: of each client's model in the sum that is asked for; None to get the
            models themselves.
    """

    places: Integers
    cost: float
    columns: dict[str, Any]
    states: Sequence[Any]
    weights: Any


@dataclass
class Done:
    """What came of a job; all by position in it.

    Attributes:
        metrics: (n,) by name, but for the number of samples.
        states: What each client leaves, packed; empty where nobody keeps anything.
        models: The weighted sum of the models in their own precision, of integers in float64; or
            all of them, (n, *shape).
        buffers: The weighted sum of the buffers, likewise; empty where they stay as they were.
        diverged: Why a turn must not count.
        failed: What was raised.
    """

    metrics: dict[str, Any]
    states: list[Any]
    models: dict[str, Tensor]
    buffers: dict[str, Tensor]
    diverged: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    @classmethod
    def lost(cls, job: Job, reason: str) -> "Done":
        """Return what came of a job that its worker did not survive."""
        return cls({}, [], {}, {}, failed=dict.fromkeys(range(len(job.places)), reason))


class CohortWorker:
    """Does jobs; there is one a process, or one a device."""

    def __init__(self, client: Client, formulation: str, stopping: Event | None = None) -> None:
        """Make a worker.

        Args:
            client: What the clients share, where they are to be trained.
            formulation: ``"auto"``, or how cohorts are to be trained.
            stopping: Once it is set, jobs raise `KeyboardInterrupt` before their next chunk.
        """
        self._client = client
        self._formulation = formulation
        self._stopping = stopping
        self._trainer: CohortTrainer | None = None

    def __call__(self, job: Job, shared: Received, keeper: Any) -> Done:
        """Train the clients of a job.

        Args:
            job: Which.
            shared: The received parameters and buffers.
            keeper: Packs states, and opens them.
        """
        trainer = self.trainer()
        with span("job"):
            return self._do(job, shared, keeper, trainer)

    def trainer(self) -> CohortTrainer:
        """Return what trains the clients, made when first asked for.

        While it is made no other thread may run a model: tracing one changes torch's modules.
        """
        if self._trainer is None:
            client = self._client
            self._trainer = trainer_of(client.continual, client.model, self._formulation)
        return self._trainer

    def _do(self, job: Job, shared: Received, keeper: Any, trainer: CohortTrainer) -> Done:
        turns = Turns(scenario=self._client.scenario, **job.columns)
        opened = [_opened(each, keeper) for each in job.states]
        collected = _Collected(len(turns), job.weights, trainer.keeps_state)
        for start, stop in _chunks(len(turns), trainer.chunk):
            places = slice(start, stop)
            part, states = turns.select(places), opened[places]
            if self._stopping is not None and self._stopping.is_set():
                raise KeyboardInterrupt
            try:
                with span("turns"):
                    report = trainer.train(*shared, part, states)
            except Exception as error:  # one client's fault: each is tried by itself
                collected.take_singly(start, part, states, trainer, shared, error)
            else:
                collected.take(start, report)
        return collected.done(keeper)


def _opened(state: Any, keeper: Any) -> State:
    """Return a client's state: packed, as a checkpoint has brought it back, or none yet."""
    if state is None or isinstance(state, State):
        return state or State()
    return cast(State, keeper.open(state))


def _chunks(clients: int, largest: int) -> Iterator[tuple[int, int]]:
    """Return from which to which client each chunk goes: as few as can be, of equal size."""
    count = -(-clients // largest)
    ends = [clients * number // count for number in range(count + 1)]
    return pairwise(ends)


class _Collected:
    """Collects the reports of a job's chunks."""

    def __init__(self, size: int, weights: Any, keeps_state: bool) -> None:
        self._weights = weights
        self._losses = np.zeros(size)
        self._steps, self._replayed, self._state_bytes = np.zeros((3, size), dtype=np.int64)
        self._metrics: dict[str, Any] = {}
        self._states: list[Any] = [None] * size if keeps_state else []
        self._models: dict[str, Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._sums = _Sums(), _Sums()
        self._diverged: dict[int, str] = {}
        self._failed: dict[int, str] = {}

    def take_singly(
        self,
        start: int,
        turns: Turns,
        states: Sequence[State],
        trainer: CohortTrainer,
        shared: Received,
        error: Exception,
    ) -> None:
        """Train the clients of a chunk one by one, because together they raised `error`."""
        for at in range(len(turns)):
            if len(turns) > 1:
                try:
                    alone = trainer.train(*shared, turns.select(slice(at, at + 1)), states[at:][:1])
                except Exception as own:
                    error = own
                else:
                    self.take(start + at, alone)
                    continue
            _log.warning("client %d raised", turns.client_ids[at], exc_info=error)
            self._failed[start + at] = f"{type(error).__name__}: {error}"

    def take(self, start: int, report: CohortReport) -> None:
        """Take in a chunk's report; its clients begin at position `start`."""
        size = len(report.losses)
        here = slice(start, start + size)
        self._losses[here], self._steps[here] = report.losses, report.steps
        self._replayed[here] = report.replayed
        for name, values in report.metrics.items():
            column = self._metrics.setdefault(name, np.full(len(self._losses), np.nan))
            column[here] = values
        diverged = dict(report.diverged)
        for at in np.flatnonzero(~np.isfinite(report.losses)).tolist():
            diverged.setdefault(at, f"the loss is {report.losses[at]}")
        with span("collect"):
            if self._weights is None:
                self._stack(start, report, diverged)
            else:
                self._sum(start, report, diverged)
        self._diverged.update({start + at: reason for at, reason in diverged.items()})
        for at, state in enumerate(report.states):
            self._states[start + at] = state
            self._state_bytes[start + at] = state.num_bytes

    def _sum(self, start: int, report: CohortReport, diverged: dict[int, str]) -> None:
        size = len(report.losses)
        weights = torch.from_numpy(self._weights[start : start + size])
        found = _weighted(report.parameters, weights, diverged)
        if not all(is_finite(each) for each in found.values()):
            diverged |= _not_finite(report.parameters, diverged)
            found = _weighted(report.parameters, weights, diverged)
        models, buffers = self._sums
        models.add(found, size)
        buffers.add(_weighted(report.buffers, weights, diverged), size)

    def _stack(self, start: int, report: CohortReport, diverged: dict[int, str]) -> None:
        size, total = len(report.losses), len(self._losses)
        diverged |= _not_finite(report.parameters, diverged)
        for stacks, tensors in (
            (self._models, report.parameters),
            (self._buffers, report.buffers),
        ):
            for name, stacked in tensors.items():
                like = stacked.start if isinstance(stacked, Deferred) else stacked[0]
                if name not in stacks:
                    stacks[name] = like.new_empty((total, *like.shape))
                here = stacks[name][start : start + size]
                if isinstance(stacked, Deferred):
                    stacked.stack(here)
                else:
                    here.copy_(stacked)

    def done(self, keeper: Any) -> Done:
        """Return what came of the job."""
        columns = {
            records.TRAIN_LOSS: self._losses,
            records.STEPS: self._steps,
            records.REPLAYED: self._replayed,
            records.STATE_BYTES: self._state_bytes,
            **self._metrics,
        }
        with span("pack"):
            packed = [
                None
                if state is None or at in self._diverged or at in self._failed
                else keeper.pack(state)
                for at, state in enumerate(self._states)
            ]
        models, buffers = self._models, self._buffers
        if self._weights is not None:
            models, buffers = (each.totals() for each in self._sums)
        return Done(columns, packed, models, buffers, self._diverged, self._failed)


class _Sums:
    """Sums of tensors by name.

    Those of few clients are taken in the tensors' own precision, which loses next to nothing, and
    only those sums are added in float64: for a large model, that alone is four times the traffic.
    """

    def __init__(self) -> None:
        self._few: dict[str, Tensor] = {}
        self._all: dict[str, Tensor] = {}
        self._clients = 0

    def add(self, sums: dict[str, Tensor], clients: int) -> None:
        """Add the sums, which become this object's, of some clients."""
        if self._clients and self._clients + clients > PARTIAL:
            self._take(self._all, {name: each.double() for name, each in self._few.items()})
            self._few, self._clients = {}, 0
        self._take(self._few, sums)
        self._clients += clients

    def totals(self) -> dict[str, Tensor]:
        """Return the sums of all clients, in the precision of what was added."""
        if not self._all:
            return self._few
        return {
            name: each.add_(self._few[name]).to(self._few[name]) for name, each in self._all.items()
        }

    def _take(self, totals: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
        for name, each in sums.items():
            if name in totals:
                totals[name].add_(each)
            else:
                totals[name] = each


def _weighted(
    stacks: Mapping[str, Tensor | Deferred], weights: Tensor, left_out: Mapping[int, str]
) -> dict[str, Tensor]:
    """Return the weighted sums of stacked tensors, without those clients that are left out."""
    good = [at for at in range(len(weights)) if at not in left_out]
    sums = {}
    for name, stacked in stacks.items():
        if isinstance(stacked, Deferred):
            kept = stacked if len(good) == len(weights) else stacked.only(good)
            sums[name] = kept.weighted_sum(weights[good].to(stacked.start))
            continue
        own = weights.to(stacked.device)
        if len(good) < len(weights):
            stacked, own = stacked[good], own[good]
        flat = stacked.reshape(len(own), math.prod(stacked.shape[1:]))
        if not stacked.is_floating_point():
            flat = flat.double()
        total = flat[0] * own[0] if len(own) == 1 else torch.mv(flat.t(), own.to(flat.dtype))
        sums[name] = total.view(stacked.shape[1:])
    return sums


def _not_finite(
    stacks: Mapping[str, Tensor | Deferred], known: Mapping[int, str]
) -> dict[int, str]:
    """Return which further clients have weights that are not finite, and why."""
    found: dict[int, str] = {}
    for name, each in stacks.items():
        stacked = each.stack() if isinstance(each, Deferred) else each
        sums = stacked.flatten(1).sum(1)
        for at in (~sums.isfinite()).nonzero().flatten().tolist():
            if at not in known and at not in found and not is_finite(stacked[at]):
                found[at] = f"{name} holds NaN or infinity"
    return found


def trainer_of(continual: ContinualStrategy, model: nn.Module, formulation: str) -> CohortTrainer:
    """Return what trains cohorts of clients of a model.

    Args:
        continual: How they learn.
        model: What they train.
        formulation: ``"auto"``, or how cohorts are to be trained.

    Raises:
        ValueError: Nothing can.
    """
    if not hasattr(continual, "cohort_trainer"):
        raise ValueError(
            "runtime.executor=vectorized: needs engine=functional; the Avalanche engine trains "
            "client by client: use runtime.executor=process"
        )
    device = next(model.parameters()).device
    return cast(CohortStrategy, continual).cohort_trainer(model, device, formulation)
