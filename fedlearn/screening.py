"""What the server accepts from clients: nothing that could spoil the global model gets through."""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedlearn.columns import ClientColumns
from fedlearn.records import (
    ACCURACY,
    ARRAYS,
    BUFFERS,
    CORRECT,
    DIVERGED,
    IDLE,
    METRICS,
    NUM_EXAMPLES,
    REPLAYED,
    STATE_BYTES,
    STEPS,
    TRAIN_LOSS,
    Tensors,
    metrics_of,
    of_kind,
    reason_of,
    to_tensors,
    wire_bytes,
)
from fedlearn.stacked import Replies


@dataclass
class Screened:
    """A round's replies, sorted by what the server may do with them.

    Attributes:
        accepted: Fit for aggregation, by client id, ascending; parameters only.
        buffers: Each accepted client's buffers.
        idle: Clients that had nothing to train on.
        dropped: Clients whose reply was left unread: see `fedlearn.faults`.
        diverged: Clients whose loss was lost, and how: they count as little as idle ones.
        quarantined: Clients whose reply must not be used, and why.
        failed: Clients that raised, and what.
        up_bytes: Bytes of arrays received, of every reply.
    """

    accepted: Mapping[int, Message] = field(default_factory=dict)
    buffers: dict[int, Tensors] = field(default_factory=dict)
    idle: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    diverged: dict[int, str] = field(default_factory=dict)
    quarantined: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    up_bytes: int = 0

    @property
    def replies(self) -> Sequence[Message]:
        """What the aggregation gets: the accepted replies, in the order of client ids."""
        return list(self.accepted.values())

    def told(self) -> "Told":
        """Return what the accepted clients tell of their turns."""
        clients = {client_id: _client(reply) for client_id, reply in self.accepted.items()}
        losses = {client_id: each["loss"] for client_id, each in clients.items()}
        return Told(
            clients={str(client_id): each for client_id, each in clients.items()},
            losses={client_id: loss for client_id, loss in losses.items() if loss is not None},
            state_bytes={client_id: each["state_bytes"] for client_id, each in clients.items()},
            steps=sum(int(each["steps"]) for each in clients.values()),
            replayed=sum(int(each["replayed"]) for each in clients.values()),
        )

    def mean_buffers(self) -> Tensors:
        """Return the mean of the accepted clients' buffers, weighted by their samples."""
        weights = {
            client_id: float(cast(float, metrics_of(reply)[NUM_EXAMPLES]))
            for client_id, reply in self.accepted.items()
        }
        return average_buffers(self.buffers, weights)


@dataclass(frozen=True)
class Told:
    """What clients tell of their turns.

    Attributes:
        clients: What the round's event says of each, by client id.
        losses: Training losses, by client id, of those who report one.
        state_bytes: What each keeps for its next turn, by client id.
        steps: Optimiser steps of all.
        replayed: Samples from memory of all.
    """

    clients: Mapping[str, Mapping[str, Any]]
    losses: dict[int, float]
    state_bytes: dict[int, float]
    steps: int
    replayed: int


_EVENT = {
    TRAIN_LOSS: "loss",
    NUM_EXAMPLES: "num_examples",
    STEPS: "steps",
    REPLAYED: "replayed",
    STATE_BYTES: "state_bytes",
}
"""What a round's event calls a client's metrics; others keep their names, with underscores."""


def _client(reply: Message) -> dict[str, Any]:
    metrics = dict(metrics_of(reply))
    own: dict[str, Any] = {
        name: metrics.pop(key, None if key == TRAIN_LOSS else 0) for key, name in _EVENT.items()
    }
    return own | {name.replace("-", "_"): value for name, value in metrics.items()}


class ScreenedStack(Screened):
    """The replies of a cohort that stayed stacked. They come from this program's own executor."""

    def __init__(self, replies: Replies, cohort: Sequence[int], dropped: Collection[int]) -> None:
        """Sort them.

        Args:
            replies: The cohort's.
            cohort: Client ids, in the order of the instructions, ascending.
            dropped: Clients of the cohort whose replies were not read.
        """
        self._stack = replies
        self._client_ids = [cohort[place] for place in replies.places.tolist()]
        super().__init__(
            accepted=_Accepted(self._client_ids, replies),
            idle=[cohort[place] for place in replies.idle],
            dropped=sorted(dropped),
            diverged={cohort[place]: reason for place, reason in replies.diverged.items()},
            failed={cohort[place]: reason for place, reason in replies.failed.items()},
            up_bytes=replies.up_bytes,
        )

    @property
    def replies(self) -> Sequence[Message]:
        """What the aggregation gets: the stack."""
        return self._stack

    def told(self) -> Told:
        """Return what the accepted clients tell of their turns."""
        told = self._stack.metrics
        columns = {
            name: told[key].tolist() if key in told else [0] * len(self._client_ids)
            for key, name in _EVENT.items()
        }
        others = {key.replace("-", "_"): told[key].tolist() for key in told if key not in _EVENT}
        return Told(
            clients=ClientColumns(self._client_ids, columns | others),
            losses=dict(zip(self._client_ids, columns["loss"], strict=True)),
            state_bytes=dict(zip(self._client_ids, columns["state_bytes"], strict=True)),
            steps=sum(columns["steps"]),
            replayed=sum(columns["replayed"]),
        )

    def mean_buffers(self) -> Tensors:
        """Return the mean of the accepted clients' buffers."""
        return self._stack.buffers


class _Accepted(Mapping[int, Message]):
    """The replies of a stack by client id, each made when it is asked for."""

    def __init__(self, client_ids: Sequence[int], replies: Replies) -> None:
        self._client_ids, self._replies = client_ids, replies

    def __getitem__(self, client_id: int) -> Message:
        at = bisect_left(self._client_ids, client_id)
        if at == len(self._client_ids) or self._client_ids[at] != client_id:
            raise KeyError(client_id)
        return self._replies[at]

    def __iter__(self) -> Iterator[int]:
        return iter(self._client_ids)

    def __len__(self) -> int:
        return len(self._client_ids)


def screen(
    replies: Iterable[Message],
    client_of: Mapping[int, int],
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    max_examples: Callable[[int], int],
    dropped: Collection[int] = (),
) -> Screened:
    """Sort a round's replies into those to use, those to leave out, and why.

    Args:
        replies: In any order.
        client_of: Flower's node id to client id, for the round's cohort.
        parameters: The global parameters: names, shapes and dtypes that a reply must have.
        buffers: The global buffers, likewise.
        max_examples: The most samples that a client can honestly report.
        dropped: Clients of the cohort whose replies are to be lost.
    """
    screened = Screened(dropped=sorted(dropped))
    accepted: dict[int, Message] = {}
    for message in replies:
        client_id = client_of.get(message.metadata.src_node_id)
        if client_id is None:
            continue  # not of this cohort: a late reply, which was never asked for in this round
        if client_id in dropped:
            continue
        if message.has_error():
            screened.failed[client_id] = " ".join(str(message.error.reason).split())
            continue
        screened.up_bytes += wire_bytes(message.content)
        if client_id in accepted:
            continue  # counted once a round, however often it is delivered
        metrics = metrics_of(message)
        if metrics.get(IDLE) == 1:
            screened.idle.append(client_id)
            continue
        if metrics.get(DIVERGED) == 1:
            screened.diverged[client_id] = reason_of(message)
            continue
        try:
            sent = of_kind(message.content, ArrayRecord)
            own_buffers = to_tensors(sent.pop(BUFFERS, ArrayRecord()))
            if len(sent) != 1:
                raise ValueError(f"carries {len(sent)} array records instead of 1")
            if BUFFERS in message.content:
                del message.content[BUFFERS]
            (arrays,) = sent.values()
            _check_examples(metrics.get(NUM_EXAMPLES), max_examples(client_id))
            _check_tensors(to_tensors(arrays), parameters)
            _check_tensors(own_buffers, buffers)
            for name in (TRAIN_LOSS, STEPS, REPLAYED, STATE_BYTES):
                told = metrics.get(name, 0)
                if not _is_number(told) or (told < 0 and name != TRAIN_LOSS):
                    raise ValueError(f"{name} is {told}")
        except ValueError as error:
            screened.quarantined[client_id] = str(error)
            continue
        accepted[client_id] = message
        screened.buffers[client_id] = own_buffers
    common = _common_metrics(list(accepted.values()))
    screened.accepted = {
        client_id: _with_metrics(accepted[client_id], common) for client_id in sorted(accepted)
    }
    screened.idle.sort()
    return screened


def check_evaluation(message: Message, num_experiences: int, lowest: float = 0.0) -> None:
    """Check that a client's answer to an evaluation is what `Client.evaluate` sends.

    Args:
        message: The answer.
        num_experiences: T; an accuracy is NaN where the client has no sample to test on.
        lowest: The least accuracy there is: 0, or minus infinity for a regression.

    Raises:
        ValueError: It is not; the message says why.
    """
    metrics = metrics_of(message)
    total, correct = metrics.get(NUM_EXAMPLES), metrics.get(CORRECT)
    if not (_is_number(total) and _is_number(correct) and lowest * total <= correct <= total):
        raise ValueError(f"{correct} correct of {total}")
    accuracy = metrics.get(ACCURACY)
    if not isinstance(accuracy, list) or len(accuracy) != num_experiences:
        raise ValueError(f"{ACCURACY} must be a list of {num_experiences} numbers")
    if not all(
        _is_number(value) and lowest <= value <= 1 for value in accuracy if not _is_nan(value)
    ):
        raise ValueError(f"{ACCURACY} holds {accuracy}")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _check_examples(value: Any, limit: int) -> None:
    if not _is_number(value):
        raise ValueError(f"{NUM_EXAMPLES} is {value}")
    if not 0 < value <= limit:
        raise ValueError(f"{NUM_EXAMPLES} is {value:g}, must be in 1..{limit}")


def _check_tensors(tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
    missing, extra = reference.keys() - tensors.keys(), tensors.keys() - reference.keys()
    if missing or extra:
        raise ValueError(f"arrays: missing {sorted(missing)}, unexpected {sorted(extra)}")
    for name, expected in reference.items():
        tensor = tensors[name]
        if tensor.shape != expected.shape:
            raise ValueError(
                f"array {name!r} has shape {list(tensor.shape)}, must be {list(expected.shape)}"
            )
        if tensor.dtype != expected.dtype:
            raise ValueError(f"array {name!r} has dtype {tensor.dtype}, must be {expected.dtype}")
        if not is_finite(tensor):
            raise ValueError(f"array {name!r} holds NaN or infinity")


def is_finite(tensor: Tensor) -> bool:
    """Whether every element is finite.

    One pass without a temporary: a sum is finite only if every term is. Large finite terms can
    overflow it, so a sum that is not finite is looked at again, element by element.
    """
    if not tensor.is_floating_point():
        return True
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _common_metrics(messages: Sequence[Message]) -> set[str]:
    """Return the names under which every message has a number: Flower can average no others."""
    names = [
        {name for name, value in metrics_of(message).items() if _is_number(value)}
        for message in messages
    ]
    return set.intersection(*names) if names else set()


def _with_metrics(message: Message, names: set[str]) -> Message:
    """Keep exactly one metric record, holding `names` only."""
    metrics = metrics_of(message)
    kept = MetricRecord({name: metrics[name] for name in metrics if name in names})
    (arrays,) = of_kind(message.content, ArrayRecord).values()
    message.content = RecordDict({ARRAYS: arrays, METRICS: kept})
    return message


def average_buffers(buffers: Mapping[int, Tensors], weights: Mapping[int, float]) -> Tensors:
    """Return the weighted mean of the clients' buffers; integers stay integers (rounded).

    Args:
        buffers: Buffers by client id; the same names, shapes and dtypes for each.
        weights: Each client's weight, positive.
    """
    total = sum(weights[client_id] for client_id in sorted(buffers))
    averaged: Tensors = {}
    for name, like in next(iter(buffers.values()), {}).items():
        mean = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        for client_id in sorted(buffers):
            mean += buffers[client_id][name].double() * (weights[client_id] / total)
        averaged[name] = (mean if like.is_floating_point() else mean.round()).to(like.dtype)
    return averaged
