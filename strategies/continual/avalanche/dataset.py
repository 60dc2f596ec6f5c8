"""A client's experiences as Avalanche sees them: data sets whose samples keep their identity.

Every sample carries the attributes ``origin`` (the experience that it belongs to) and ``row`` (its
row in that experience's store). Subsets and concatenations keep them, so whatever a buffer holds
can be named by int64 pairs and gathered again as one tensor.
"""

from typing import Any

import torch
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TaskLabels
from avalanche.benchmarks.utils.classification_dataset import (
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.flat_data import FlatData
from torch import Tensor
from torch.utils.data import Dataset

from fedlearn.types import Experience
from strategies.continual.rows import Stream as Stream
from strategies.continual.rows import gather as gather
from strategies.continual.rows import pairs_of as pairs_of

IDENTITY = ("targets", "targets_task_labels", "origin", "row")
"""The attributes that `dataset_of` sets; any other one was added by a strategy."""


class NamedSamples(Dataset[tuple[Tensor, int | Tensor]]):
    """Samples named by (experience, row), gathered when the first one is read."""

    def __init__(self, stream: Stream, pairs: Tensor) -> None:
        self._stream = stream
        self._pairs = pairs
        self._gathered: tuple[Tensor, list[int] | Tensor] | None = None

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, position: int) -> tuple[Tensor, int | Tensor]:
        if self._gathered is None:
            x, y, _ = gather(self._stream, self._pairs)
            self._gathered = x, (y if y.is_floating_point() else y.tolist())
        x, labels = self._gathered
        return x[position], labels[position]


def dataset_of(stream: Stream, pairs: Tensor, extra: list[DataAttribute] | None = None) -> Any:
    """Return an Avalanche data set of the samples `pairs` (n, 2), with `extra` attributes."""
    if not len(pairs):
        return AvalancheDataset([])
    y = stream(int(pairs[0, 0])).samples.y
    labels = torch.empty(len(pairs), *y.shape[1:], dtype=y.dtype)
    tasks = torch.empty(len(pairs), dtype=torch.int64)
    for index in sorted(set(pairs[:, 0].tolist())):
        experience, at = stream(index), pairs[:, 0] == index
        labels[at] = experience.samples.targets(pairs[at, 1]).cpu()
        tasks[at] = experience.task_label
    dataset = TaskAwareSupervisedClassificationDataset(
        [NamedSamples(stream, pairs)],
        data_attributes=[
            DataAttribute(labels.tolist(), "targets"),
            TaskLabels(tasks.tolist()),
            DataAttribute(pairs[:, 0].tolist(), "origin"),
            DataAttribute(pairs[:, 1].tolist(), "row"),
            *(extra or []),
        ],
    )
    dataset.pairs = pairs
    return dataset


def attribute_of(name: str, rows: Tensor) -> DataAttribute:
    """Return `rows` (n, ...) as an attribute `name` of n samples, one row with each of them."""
    flat = FlatData([list(rows)], discard_elements_not_in_indices=True)
    return DataAttribute(flat, name=name, use_in_getitem=True)


def identity(dataset: Any) -> Tensor:
    """Return (n, 2) int64: experience and row of every sample of an Avalanche data set.

    Raises:
        TypeError: Where a strategy made samples that no client holds.
    """
    if not len(dataset):
        return torch.empty(0, 2, dtype=torch.int64)
    known: Tensor | None = getattr(dataset, "pairs", None)
    if known is not None:
        return known
    if not (hasattr(dataset, "origin") and hasattr(dataset, "row")):
        raise TypeError("samples that are not rows of the client's experiences cannot be kept")
    return torch.tensor([list(dataset.origin), list(dataset.row)], dtype=torch.int64).T.contiguous()


class ClientExperience(DatasetExperience):  # type: ignore[misc]
    """An experience for Avalanche; its data set is built only if somebody asks for it."""

    def __init__(self, experience: Experience, stream: Stream, task_aware: bool) -> None:
        """Wrap `experience`.

        Args:
            experience: What it holds.
            stream: The client's experience of a given index.
            task_aware: Whether Avalanche may know the task label.
        """
        super().__init__(dataset=None, current_experience=experience.index)
        self._dataset: Any = None
        self.origin = experience
        self.classes_in_this_experience = set(experience.classes)
        if task_aware:
            self.task_label = experience.task_label
            self.task_labels = [experience.task_label]
        self._stream = stream

    @property
    def dataset(self) -> Any:
        """The experience's samples as an Avalanche data set."""
        if self._dataset is None:
            self._dataset = dataset_of(self._stream, pairs_of(self.origin))
        return self._dataset

    def tensors(self, device: torch.device) -> list[Tensor]:
        """Return inputs (n, *input_shape), labels (n,) and task labels (n,), on `device`."""
        x, y = (tensor.to(device) for tensor in self.origin.gather())
        tasks = torch.full((len(y),), self.origin.task_label, device=device)
        return [x, y, tasks]
