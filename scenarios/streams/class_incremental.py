"""Class-incremental streams, and their siblings with heads of their own or one shared head."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np

from fedlearn.seeding import numpy_generator
from fedlearn.types import Kind
from scenarios.dataset import Dataset
from scenarios.streams.layout import Layout, check_num_experiences, needs_labels, of_classes


@dataclass(frozen=True)
class ClassIncremental:
    """Every experience brings classes that no other experience holds, under one head.

    The classes are dealt out in equal numbers; where they do not divide evenly, the first
    experiences hold one more each, so that none is dropped. Or in the numbers that `sizes` says.

    Attributes:
        num_experiences: T, from 1 to the number of classes.
        shuffle_classes: Whether to draw the order of the classes from the run's seed.
        class_order: The order to deal the classes in; by default 0, 1, 2, ...
        sizes: How many classes each experience brings, T numbers from 1, which may leave the last
            classes out: nobody learns those, or is tested on them. None for equal ones.
    """

    num_experiences: int = 5
    shuffle_classes: bool = False
    class_order: tuple[int, ...] | None = None
    sizes: tuple[int, ...] | None = None

    kind: ClassVar[Kind] = "class"

    def __post_init__(self) -> None:
        check_num_experiences(self.num_experiences)
        for key in ("class_order", "sizes"):
            if getattr(self, key) is not None:
                object.__setattr__(self, key, tuple(getattr(self, key)))
        if self.class_order is not None and self.shuffle_classes:
            raise ValueError(
                "scenario.shuffle_classes=true: cannot be combined with scenario.class_order"
            )
        if self.sizes is not None and (len(self.sizes) != self._num_groups or min(self.sizes) < 1):
            raise ValueError(
                f"scenario.sizes={list(self.sizes)}: must be {self._num_groups} numbers from 1, as "
                "scenario.num_experiences has it"
            )

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: disjoint classes, inputs as they are."""
        needs_labels(self, dataset)
        order = self._order(dataset.num_classes, seed)
        ends = np.cumsum([0, *self._sizes(dataset.num_classes)]).tolist()
        classes = [order[start:end] for start, end in pairwise(ends)]
        sizes = None if self.sizes is None else list(self.sizes)  # as JSON has it
        return of_classes(self, dataset, classes, class_order=list(order), sizes=sizes)

    @property
    def _num_groups(self) -> int:
        """How many groups of classes there are: one an experience."""
        return self.num_experiences

    def _sizes(self, num_classes: int) -> Sequence[int]:
        if self._num_groups > num_classes:
            raise ValueError(
                f"scenario.num_experiences={self.num_experiences}: more than the dataset's "
                f"{num_classes} classes"
            )
        if self.sizes is None:
            size, remainder = divmod(num_classes, self._num_groups)
            return [size + (index < remainder) for index in range(self._num_groups)]
        if sum(self.sizes) > num_classes:
            raise ValueError(
                f"scenario.sizes={list(self.sizes)}: add up to {sum(self.sizes)}, more than the "
                f"dataset's {num_classes} classes"
            )
        return self.sizes

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

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: disjoint classes, labelled by their place in their experience."""
        layout = super().lay_out(dataset, num_clients, seed)
        places = {label: place for classes in layout.classes for place, label in enumerate(classes)}
        # Classes that are left out need a label too, though nobody sees it.
        labels = tuple(places.get(label, 0) for label in range(dataset.num_classes))
        return replace(layout, labels=labels)
