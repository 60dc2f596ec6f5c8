"""Streams that every client draws for itself."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from fedlearn.seeding import numpy_generator
from fedlearn.types import Kind, digest
from scenarios.dataset import Dataset
from scenarios.streams.layout import (
    Layout,
    check_classes_per_experience,
    check_num_experiences,
    of_classes,
)


@dataclass(frozen=True)
class Independent:
    """Every client's every experience brings classes of its own, drawn independently.

    "Limitless task pool" (LTP) of Wuerkaixi et al. ("Accurate Forgetting for Heterogeneous
    Federated Continual Learning", ICLR 2024), as DCFCL has it: clients share neither tasks nor
    their order, and a class may come back. A client's samples of a class are dealt out evenly over
    the experiences in which it draws that class, each sample once; those of a class that it never
    draws stay unused. Experiences of different clients with the same classes are the same topic.

    Attributes:
        num_experiences: T, at least 1.
        classes_per_experience: From 1 to the number of classes.
        distinct: Whether a client draws no class twice; there must be enough of them.
    """

    num_experiences: int = 5
    classes_per_experience: int = 2
    distinct: bool = False

    kind: ClassVar[Kind] = "class"

    def __post_init__(self) -> None:
        check_num_experiences(self.num_experiences)
        check_classes_per_experience(self.classes_per_experience)

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: a stream of its own for each client."""
        size, num_classes = self.classes_per_experience, dataset.num_classes
        check_classes_per_experience(size, dataset)
        if self.distinct and size * self.num_experiences > num_classes:
            raise ValueError(
                f"scenario.distinct=true: {self.num_experiences} experiences of {size} classes "
                f"need more than the dataset's {num_classes}"
            )
        rng = numpy_generator(seed, "independent-classes")
        draws = num_clients if self.distinct else num_clients * self.num_experiences
        labels = np.arange(num_classes, dtype=np.min_scalar_type(num_classes))  # many draws, small
        shuffled = rng.permuted(np.tile(labels, (draws, 1)), axis=1)
        taken = shuffled[:, : size * self.num_experiences if self.distinct else size]
        chosen = np.sort(taken.reshape(num_clients * self.num_experiences, size), axis=1)
        topics, at = np.unique(chosen, axis=0, return_inverse=True)
        orders = torch.from_numpy(at.reshape(num_clients, self.num_experiences))
        layout = of_classes(
            self, dataset, [tuple(row) for row in topics.tolist()], orders=digest(orders)
        )
        return replace(layout, orders=orders, dealt=True)
