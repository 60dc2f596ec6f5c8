"""A cohort's instructions and replies as one record each.

A Flower message with its records costs some 20 microseconds; a small model trains in less. So the
messages of a cohort stay stacked, from the aggregation's instructions to its replies, wherever
aggregation and executor both can: single messages are made only when somebody iterates.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, overload

import numpy as np
import torch
from flwr.app import Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedlearn import records
from fedlearn.records import Instruction, Tensors

Integers = NDArray[np.int64]
Column = NDArray[Any]


@dataclass(frozen=True)
class Instructions(Sequence[Message]):
    """The same instruction to many clients, who differ only in what the server last used of them.

    Attributes:
        content: What all of them get: global arrays and configuration. Not modified.
        node_ids: Flower's ids of the clients.
        message_type: ``"train"`` or ``"evaluate"``.
        weighted_by: The metric by which the aggregation weighs models, if their mean is all that
            it reads of them; None if it reads them one by one.
        acknowledged: By node: the last round whose reply the server used; 0 for none.
        unread: Nodes whose reply the server will not read: their models are in no mean.
    """

    content: RecordDict
    node_ids: Sequence[int]
    message_type: str
    weighted_by: str | None = None
    acknowledged: Sequence[int] = ()
    unread: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.node_ids)

    @overload
    def __getitem__(self, at: int) -> Message: ...
    @overload
    def __getitem__(self, at: slice) -> "Instructions": ...
    def __getitem__(self, at: int | slice) -> "Message | Instructions":
        """Return one client's message."""
        if isinstance(at, slice):
            told = self.acknowledged[at] if self.acknowledged else ()
            return replace(self, node_ids=self.node_ids[at], acknowledged=told)
        message = Message(self.content, self.node_ids[at], self.message_type)
        if self.acknowledged:
            records.acknowledge(message, self.acknowledged[at])
        return message

    def addressed(
        self,
        buffers: Tensors,
        server_round: int,
        acknowledged: Sequence[int],
        unread: frozenset[int],
    ) -> "Instructions":
        """Return them with what the engine sends along; see `fedlearn.records.address`."""
        content = records.addressed(self.content, records.to_arrays(buffers), server_round)
        return replace(self, content=content, acknowledged=acknowledged, unread=unread)

    @property
    def common(self) -> Instruction:
        """What all of them say; its `acknowledged` means nothing."""
        return records.read_content(self.content)

    @property
    def wire_bytes(self) -> int:
        """Bytes of the arrays of all of them, as Flower would send them."""
        return len(self) * records.wire_bytes(self.content)


class Models(Protocol):
    """The models that n clients trained."""

    def mean(self, weights: Column | None) -> Tensors:
        """Return the weighted mean of the parameters, by name.

        Args:
            weights: (n,) positive; None for those of the metric that the instructions named.
        """
        ...

    def of(self, at: int) -> Tensors:
        """Return the parameters of the client at place `at`, by name."""
        ...


class MeanOnly:
    """Models of which nothing is left but the mean that the instructions asked for."""

    def __init__(self, mean: Tensors) -> None:
        self._mean = mean

    def mean(self, weights: Column | None) -> Tensors:
        """Return the mean; `weights` must be None."""
        if weights is not None:
            raise ValueError("only the mean that the instructions asked for was kept")
        return self._mean

    def of(self, at: int) -> Tensors:
        """Not available."""
        raise ValueError(f"the model of reply {at} was not kept: the mean was all that was asked")


class Stack:
    """Every client's model."""

    def __init__(self, models: Sequence[Tensors]) -> None:
        self._models = models

    def mean(self, weights: Column | None) -> Tensors:
        """Return the mean, summed in float64 in the order of the clients."""
        if weights is None:
            raise ValueError("the mean of single models needs weights")
        return weighted_mean(self._models, weights.tolist())

    def of(self, at: int) -> Tensors:
        """Return one client's parameters."""
        return self._models[at]


def weighted_mean(models: Sequence[Tensors], weights: Sequence[float]) -> Tensors:
    """Return sum_k w_k * theta_k / sum_k w_k for each name, in the dtype of the inputs.

    Args:
        models: One model's named tensors each; the same names, shapes and dtypes.
        weights: One positive weight each.
    """
    total = sum(weights)
    mean: Tensors = {}
    for name, like in models[0].items():
        sums = torch.zeros(like.shape, dtype=torch.float64, device=like.device)
        for model, weight in zip(models, weights, strict=True):
            sums.add_(model[name], alpha=weight / total)  # each element is widened on the way
        mean[name] = sums.to(like.dtype)
    return mean


@dataclass
class Replies(Sequence[Message]):
    """What a cohort answered to `Instructions`; as a sequence, the replies of those that trained.

    Attributes:
        instructions: What they were asked.
        places: (n,) int64: where in the instructions those stand that trained and are read.
        metrics: What each of these reports, (n,) by name.
        models: What each of these trained.
        buffers: The mean of their buffers, or those sent out where training leaves them alone.
        idle: Places of those that had nothing to train on.
        diverged: Why a turn must not count, by place.
        failed: What was raised, by place.
    """

    instructions: Instructions
    places: Integers
    metrics: dict[str, Column]
    models: Models
    buffers: Tensors
    idle: list[int] = field(default_factory=list)
    diverged: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, at: int) -> Message: ...
    @overload
    def __getitem__(self, at: slice) -> list[Message]: ...
    def __getitem__(self, at: int | slice) -> Message | list[Message]:
        """Return one client's reply as aggregations get it: screened, and without buffers."""
        if isinstance(at, slice):
            return [self[each] for each in range(len(self))[at]]
        return self._reply(at, self.instructions[int(self.places[at])])

    def of_all(self, messages: Sequence[Message]) -> list[Message]:
        """Return a reply to every message that the instructions stand for, in their order."""
        replies = {place: records.idle_reply(messages[place]) for place in self.idle}
        for place, reason in self.diverged.items():
            replies[place] = records.diverged_reply(messages[place], reason)
        for place, reason in self.failed.items():
            replies[place] = records.error_reply(messages[place], reason)
        for at, place in enumerate(self.places.tolist()):
            replies[place] = self._reply(at, messages[place])
            if self.buffers:
                replies[place].content[records.BUFFERS] = records.to_arrays(self.buffers)
        return [replies[place] for place in range(len(messages))]

    def _reply(self, at: int, message: Message) -> Message:
        told = {name: column[at].item() for name, column in self.metrics.items()}
        arrays = records.to_arrays(self.models.of(at))
        content = RecordDict({records.ARRAYS: arrays, records.METRICS: MetricRecord(told)})
        return Message(content, reply_to=message)

    @property
    def up_bytes(self) -> int:
        """Bytes of the arrays of those that trained, as Flower would send them."""
        return len(self) * records.wire_bytes(self.instructions.content)

    def mean(self, weighted_by: str) -> tuple[Tensors, dict[str, float]]:
        """Return the mean of the models and that of each other metric.

        Args:
            weighted_by: The metric that weighs them.
        """
        weights = self.metrics[weighted_by].astype(np.float64)
        asked = self.instructions.weighted_by == weighted_by
        shares = weights / weights.sum()
        metrics = {
            name: float(column @ shares)
            for name, column in self.metrics.items()
            if name != weighted_by
        }
        return self.models.mean(None if asked else weights), metrics
