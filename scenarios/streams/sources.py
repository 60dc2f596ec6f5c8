"""Streams that follow a tag: domain by domain, session by session, benchmark by benchmark."""

from dataclasses import asdict, dataclass
from typing import get_args

import torch

from fedlearn.seeding import numpy_generator
from fedlearn.types import Kind
from scenarios.dataset import Dataset
from scenarios.streams.layout import Layout


@dataclass(frozen=True)
class Sources:
    """Every experience brings the samples of one value of a tag, and is tested on the same.

    Where no test sample has the value (CORe50 tests on sessions that nobody trains on), on all test
    samples of the experience's classes.

    Attributes:
        by: The tag: ``"domain"`` (of Digits-Five, CORe50's sessions, a folder's), ``"experience"``
            (of an Avalanche benchmark), ``"writer"``, or a column's name.
        kind: What an experience brings: ``"domain"``, or ``"class"`` or ``"task"`` where each value
            of the tag has classes of its own.
        shuffle: Whether to draw the order of the values from the run's seed.
    """

    by: str = "domain"
    kind: Kind = "domain"
    shuffle: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(
                f"scenario.kind={self.kind}: must be one of {', '.join(get_args(Kind))}"
            )

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: one experience for each value that training samples have."""
        tag, tested = dataset.tag(self.by, "scenario.by")
        values = torch.unique(tag).tolist()
        if self.shuffle:
            values = numpy_generator(seed, "source-order").permutation(values).tolist()
        classes = [self._classes(dataset, tag == value) for value in values]
        size = int(max(tag.max(), tested.max())) + 1
        weights = torch.zeros(len(values), size, dtype=torch.float64)
        weights[torch.arange(len(values)), torch.tensor(values)] = 1
        return Layout(
            self.kind,
            tuple(classes),
            weights,
            {"name": type(self).__name__, **asdict(self), "order": values},
            groups=self.by,
            test_rows=tuple(
                self._tests(dataset, tested == value, own)
                for value, own in zip(values, classes, strict=True)
            ),
        )

    def _tests(
        self, dataset: Dataset, members: torch.Tensor, classes: tuple[int, ...]
    ) -> torch.Tensor:
        if not members.any():
            everything = torch.ones(len(dataset.test), dtype=torch.bool)
            labels = dataset.test.y
            members = (
                everything if dataset.regression else torch.isin(labels, torch.tensor(classes))
            )
        return members.nonzero().flatten()

    def _classes(self, dataset: Dataset, members: torch.Tensor) -> tuple[int, ...]:
        if dataset.regression:
            return tuple(range(dataset.num_classes))
        return tuple(torch.unique(dataset.train.y[members]).tolist())
