"""Streams in which classes come back."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedlearn.seeding import numpy_generator
from fedlearn.types import Kind
from scenarios.dataset import Dataset
from scenarios.streams.layout import (
    Layout,
    check_classes_per_experience,
    check_num_experiences,
    of_classes,
)


@dataclass(frozen=True)
class Repetition:
    """Every experience brings some classes, drawn anew; so classes come back.

    Class-incremental with repetition (Hemati et al., CoLLAs 2023; Cossu et al. 2022): every class
    comes at least once, at a random place, and the other places are drawn uniformly. The samples of
    a class are dealt out evenly over its occurrences, each sample once.

    Attributes:
        num_experiences: T, at least 1.
        classes_per_experience: From 1 to the number of classes; with num_experiences, enough places
            for all classes.
    """

    num_experiences: int = 10
    classes_per_experience: int = 4

    kind: ClassVar[Kind] = "class"

    def __post_init__(self) -> None:
        check_num_experiences(self.num_experiences)
        check_classes_per_experience(self.classes_per_experience)

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: classes drawn for each experience."""
        size, num_classes = self.classes_per_experience, dataset.num_classes
        check_classes_per_experience(size, dataset)
        if size * self.num_experiences < num_classes:
            raise ValueError(
                f"scenario.classes_per_experience={size}: {self.num_experiences} experiences have "
                f"room for {size * self.num_experiences} of the {num_classes} classes"
            )
        rng = numpy_generator(seed, "class-repetition")
        holds = np.zeros((self.num_experiences, num_classes), dtype=bool)
        places = rng.permutation(self.num_experiences * size) // size  # each class's first one
        for label, experience in enumerate(places[:num_classes]):
            holds[experience, label] = True
        for row in holds:
            others = rng.permutation(np.flatnonzero(~row))
            row[others[: size - row.sum()]] = True
        classes = [tuple(np.flatnonzero(row).tolist()) for row in holds]
        return replace(of_classes(self, dataset, classes), dealt=True)
