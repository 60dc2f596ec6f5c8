"""Layouts: what streams are recipes for.

Given a dataset, the number of clients and a seed, a stream lays out the *topics* (what an
experience can be about: its classes and its domain), which samples go to which of them, and which
topics make up each client's stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fedlearn.heads import head_table
from fedlearn.types import Kind, Transform
from scenarios.dataset import Dataset


@dataclass(frozen=True)
class Layout:
    """What a stream makes of a dataset.

    Samples fall into *groups*: their classes, or what a tag says of them. A topic's weights say
    how much of each group it takes.

    Attributes:
        kind: What an experience brings.
        classes: The classes of each topic, M tuples.
        weights: (M, G) float64, at least 0: how much of group g goes to topic m.
        recipe: The stream's name, its parameters and all that was drawn, as plain JSON values.
        transforms: The domain of each topic; None for the inputs as they are, in all of them.
        dealt: Whether a client's samples of a group are dealt out among its experiences, in
            proportion to their weights, each sample to one; else each experience that takes of a
            group (weight above 0) has all of the client's samples of it.
        orders: (K, T) int64, the topics of each client's stream; None for all of them in order.
        labels: The label that samples of each class of the dataset get, from 0 without gaps; None
            for the classes themselves.
        groups: The tag that says which group a sample is in; None for its class.
        test_rows: The test samples of each topic; None for all those of its classes.
    """

    kind: Kind
    classes: tuple[tuple[int, ...], ...]
    weights: Tensor
    recipe: Mapping[str, Any]
    transforms: tuple[Transform | None, ...] | None = None
    dealt: bool = False
    orders: Tensor | None = None
    labels: tuple[int, ...] | None = None
    groups: str | None = None
    test_rows: tuple[Tensor, ...] | None = None


class Stream(Protocol):
    """A recipe for the sequences of experiences."""

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout over a dataset; a pure function of the arguments.

        Raises:
            ValueError: If the stream cannot be made from such a dataset.
        """
        ...


def of_classes(
    stream: Any, dataset: Dataset, classes: Sequence[tuple[int, ...]], **drawn: Any
) -> Layout:
    """Return a layout whose topics have all samples of their classes.

    Args:
        stream: A dataclass, whose fields go into the recipe.
        dataset: Must have labels.
        classes: Of each topic.
        drawn: What else the recipe says.
    """
    needs_labels(stream, dataset)
    return Layout(
        stream.kind,
        tuple(classes),
        head_table(classes, dataset.num_classes).double(),
        {"name": type(stream).__name__, **asdict(stream), **drawn},
    )


def of_domains(
    stream: Any,
    dataset: Dataset,
    transforms: Sequence[Transform | None],
    *,
    dealt: bool = False,
    **drawn: Any,
) -> Layout:
    """Return a layout whose topics are about all classes, each in a domain of its own.

    Args:
        stream: A dataclass, whose fields go into the recipe.
        dataset: May be a regression.
        transforms: The domains.
        dealt: Whether each sample comes in one of them only.
        drawn: What else the recipe says.
    """
    num_groups = 1 if dataset.regression else dataset.num_classes
    return Layout(
        "domain",
        (tuple(range(dataset.num_classes)),) * len(transforms),
        torch.ones(len(transforms), num_groups, dtype=torch.float64),
        {"name": type(stream).__name__, **asdict(stream), **drawn},
        transforms=tuple(transforms),
        dealt=dealt,
    )


def needs_labels(stream: Any, dataset: Dataset) -> None:
    """Raise ``ValueError`` if the dataset is a regression."""
    if dataset.regression:
        raise ValueError(
            f"scenario {type(stream).__name__} goes by labels, and dataset {dataset.name} is a "
            "regression"
        )


def check_num_experiences(num_experiences: int) -> None:
    """Raise ``ValueError`` unless there is an experience."""
    if num_experiences < 1:
        raise ValueError(f"scenario.num_experiences={num_experiences}: must be at least 1")


def check_classes_per_experience(size: int, dataset: Dataset | None = None) -> None:
    """Raise ``ValueError`` unless an experience has a class, and the dataset so many."""
    if size < 1:
        raise ValueError(f"scenario.classes_per_experience={size}: must be at least 1")
    if dataset is not None and size > dataset.num_classes:
        raise ValueError(
            f"scenario.classes_per_experience={size}: more than the dataset's "
            f"{dataset.num_classes} classes"
        )
