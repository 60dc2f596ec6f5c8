"""Streams: how a dataset unfolds over experiences, the same way for every client.

A stream is a recipe. It knows nothing of samples: given the number of classes, the shape of an
input and a seed it lays out which classes each experience holds and in which domain its inputs
appear.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from fedlearn.seeding import numpy_generator
from fedlearn.types import Kind, Transform, digest
from scenarios.domains import PixelPermutation, Rotation


@dataclass(frozen=True)
class Layout:
    """What a stream makes of a dataset.

    Attributes:
        kind: What an experience brings.
        classes: The classes of each experience, T tuples. A sample belongs to every experience
            that holds its class.
        transforms: The domain of each experience, T of them; None for the inputs as they are.
        recipe: The stream's name, its parameters and all that was drawn, as plain JSON values.
        labels: The label that samples of each class of the dataset get, from 0 without gaps; None
            for the classes themselves.
    """

    kind: Kind
    classes: tuple[tuple[int, ...], ...]
    transforms: tuple[Transform | None, ...]
    recipe: Mapping[str, Any]
    labels: tuple[int, ...] | None = None


class Stream(Protocol):
    """A recipe for the sequence of experiences."""

    def lay_out(self, num_classes: int, input_shape: tuple[int, ...], seed: int) -> Layout:
        """Return the layout over a dataset; a pure function of the arguments.

        Raises:
            ValueError: If the stream cannot be made from such a dataset.
        """
        ...


@dataclass(frozen=True)
class ClassIncremental:
    """Every experience brings classes that no other experience holds, under one head.

    The classes are dealt out in equal numbers; where they do not divide evenly, the first
    experiences hold one more each, so that none is dropped.

    Attributes:
        num_experiences: T, from 1 to the number of classes.
        shuffle_classes: Whether to draw the order of the classes from the run's seed.
        class_order: The order to deal the classes in; by default 0, 1, 2, ...
    """

    num_experiences: int = 5
    shuffle_classes: bool = False
    class_order: tuple[int, ...] | None = None

    kind: ClassVar[Kind] = "class"
    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_num_experiences(self.num_experiences)
        if self.class_order is not None:
            object.__setattr__(self, "class_order", tuple(self.class_order))
            if self.shuffle_classes:
                raise ValueError(
                    "scenario.shuffle_classes=true: cannot be combined with scenario.class_order"
                )

    def lay_out(self, num_classes: int, input_shape: tuple[int, ...], seed: int) -> Layout:
        """Return the layout: disjoint classes, inputs as they are."""
        if self.num_experiences > num_classes:
            raise ValueError(
                f"scenario.num_experiences={self.num_experiences}: more than the dataset's "
                f"{num_classes} classes"
            )
        order = self._order(num_classes, seed)
        size, remainder = divmod(num_classes, self.num_experiences)
        starts = [i * size + min(i, remainder) for i in range(self.num_experiences + 1)]
        return Layout(
            self.kind,
            tuple(order[start:end] for start, end in pairwise(starts)),
            (None,) * self.num_experiences,
            {"name": type(self).__name__, **asdict(self), "class_order": list(order)},
        )

    def _order(self, num_classes: int, seed: int) -> tuple[int, ...]:
        if self.shuffle_classes:
            return tuple(numpy_generator(seed, "class-order").permutation(num_classes).tolist())
        if self.class_order is None:
            return tuple(range(num_classes))
        counts = Counter(self.class_order)
        for wrong, problem in (
            (counts.keys() - range(num_classes), "there is no class"),
            ([label for label, count in counts.items() if count > 1], "repeats class"),
            (range(num_classes) - counts.keys(), "lacks class"),
        ):
            if wrong:
                raise ValueError(
                    f"scenario.class_order={list(self.class_order)}: must name each of the "
                    f"dataset's {num_classes} classes once, {problem} {min(wrong)}"
                )
        return self.class_order


@dataclass(frozen=True)
class TaskIncremental(ClassIncremental):
    """As class-incremental, but every experience has a head of its own, which tests may use."""

    kind: ClassVar[Kind] = "task"


@dataclass(frozen=True)
class SharedHead(ClassIncremental):
    """As class-incremental, but a label is a class's place within its experience, 0, 1, ...

    So all experiences use the same few outputs, and what changes is what they mean: domain-
    incremental learning as Hsu et al. (2018) and van de Ven & Tolias (2019) have it on Split-MNIST
    (is it the first or the second digit of its pair?).
    """

    kind: ClassVar[Kind] = "domain"

    def lay_out(self, num_classes: int, input_shape: tuple[int, ...], seed: int) -> Layout:
        """Return the layout: disjoint classes, labelled by their place in their experience."""
        layout = super().lay_out(num_classes, input_shape, seed)
        places = {label: place for classes in layout.classes for place, label in enumerate(classes)}
        return replace(layout, labels=tuple(places[label] for label in range(num_classes)))


@dataclass(frozen=True)
class Permuted:
    """Every experience holds all samples, its pixels in an order of its own.

    Experience 0 shows the inputs as they are (Goodfellow et al. 2013; Kirkpatrick et al. 2017).

    Attributes:
        num_experiences: T, at least 1.
    """

    num_experiences: int = 5

    kind: ClassVar[Kind] = "domain"

    def __post_init__(self) -> None:
        _check_num_experiences(self.num_experiences)

    def lay_out(self, num_classes: int, input_shape: tuple[int, ...], seed: int) -> Layout:
        """Return the layout: all classes, a permutation drawn for each experience but the first."""
        size = int(np.prod(input_shape))
        orders = [
            numpy_generator(seed, "pixel-permutation", index).permutation(size)
            for index in range(1, self.num_experiences)
        ]
        return Layout(
            self.kind,
            (tuple(range(num_classes)),) * self.num_experiences,
            (None, *(PixelPermutation(tuple(order.tolist())) for order in orders)),
            {
                "name": type(self).__name__,
                **asdict(self),
                "permutations": digest(*(torch.from_numpy(order) for order in orders)),
            },
        )


@dataclass(frozen=True)
class Rotated:
    """Every experience holds all samples, rotated by an angle of its own.

    The angles are evenly spaced from 0 to `max_angle`. (Lopez-Paz & Ranzato 2017 draw them at
    random from the same range, 0 to 180 degrees.)

    Attributes:
        num_experiences: T, at least 1; a single one is not rotated.
        max_angle: Degrees counter-clockwise, the last experience's angle; greater than 0 and less
            than 360.
    """

    num_experiences: int = 5
    max_angle: float = 180.0

    kind: ClassVar[Kind] = "domain"

    def __post_init__(self) -> None:
        _check_num_experiences(self.num_experiences)
        if not 0 < self.max_angle < 360:
            raise ValueError(
                f"scenario.max_angle={self.max_angle}: must be greater than 0 and less than 360"
            )
        object.__setattr__(self, "max_angle", float(self.max_angle))  # 90 and 90.0 are one protocol

    def lay_out(self, num_classes: int, input_shape: tuple[int, ...], seed: int) -> Layout:
        """Return the layout: all classes, a rotation for each experience but the first."""
        if len(input_shape) != 3:
            raise ValueError(
                f"dataset inputs of shape {list(input_shape)} cannot be rotated: scenario "
                "Rotated needs images (channels, height, width)"
            )
        steps = max(self.num_experiences - 1, 1)
        angles = [self.max_angle * index / steps for index in range(self.num_experiences)]
        return Layout(
            self.kind,
            (tuple(range(num_classes)),) * self.num_experiences,
            (None, *(Rotation(angle) for angle in angles[1:])),
            {"name": type(self).__name__, **asdict(self), "angles": angles},
        )


def _check_num_experiences(num_experiences: int) -> None:
    if num_experiences < 1:
        raise ValueError(f"scenario.num_experiences={num_experiences}: must be at least 1")
