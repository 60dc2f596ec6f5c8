"""Partitioners of Flower Datasets, with stand-ins that keep to their protocol.

The package's pins exclude ours, so it cannot be installed beside the tests.
"""

import sys
import types
from abc import ABC, abstractmethod
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from fedlearn.config.composition import compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import build, prepare
from fedlearn.types import Samples
from scenarios.build import build_scenario
from scenarios.dataset import Dataset
from scenarios.datasets.digits import digits
from scenarios.flower_partition import FlowerPartition
from scenarios.streams.class_incremental import ClassIncremental


class Partitioner(ABC):
    """The protocol: as flwr_datasets.partitioner.Partitioner, which its data set is given once."""

    def __init__(self) -> None:
        self._dataset: datasets.Dataset | None = None

    @property
    def dataset(self) -> datasets.Dataset:
        if self._dataset is None:
            raise AttributeError("The dataset field should be set before using it.")
        return self._dataset

    @dataset.setter
    def dataset(self, value: datasets.Dataset) -> None:
        assert isinstance(value, datasets.Dataset)
        if self._dataset is not None:
            raise RuntimeError("The dataset should be assigned only once to the partitioner.")
        self._dataset = value

    @abstractmethod
    def load_partition(self, partition_id: int) -> datasets.Dataset:
        """Return one partition."""

    @property
    @abstractmethod
    def num_partitions(self) -> int:
        """Return how many there are."""


class DirichletPartitioner(Partitioner):
    """Draws each class's shares; takes the arguments that conf/partition/flower.yaml gives."""

    def __init__(
        self,
        num_partitions: int,
        partition_by: str,
        alpha: float,
        min_partition_size: int = 10,
        self_balancing: bool = False,
        shuffle: bool = True,
        seed: int | None = 42,
    ) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError("Alpha values should be\nstrictly greater than zero.")
        self._count, self._by, self._alpha = num_partitions, partition_by, alpha
        self._rng = np.random.default_rng(seed)
        self._owners: Any = None

    @property
    def num_partitions(self) -> int:
        if self._owners is None:
            values = np.array(self.dataset[self._by])
            self._owners = np.empty(len(values), int)
            for value in self.dataset.unique(self._by):
                rows = self._rng.permutation(np.flatnonzero(values == value))
                shares = self._rng.dirichlet([self._alpha] * self._count)
                ends = (shares.cumsum()[:-1] * len(rows)).astype(int)
                for owner, part in enumerate(np.split(rows, ends)):
                    self._owners[part] = owner
        return self._count

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        rows = np.flatnonzero(self._owners == partition_id)
        return self.dataset.select(self._rng.permutation(rows))


class NaturalIdPartitioner(Partitioner):
    """Gives each value of a column a partition."""

    def __init__(self, partition_by: str) -> None:
        super().__init__()
        self._by = partition_by

    @property
    def num_partitions(self) -> int:
        return len(self.dataset.unique(self._by))

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        value = sorted(self.dataset.unique(self._by))[partition_id]
        return self.dataset.select(np.flatnonzero(np.array(self.dataset[self._by]) == value))


class GlobalPartitioner(NaturalIdPartitioner):
    """Draws from NumPy's global generator."""

    num_partitions = 2  # type: ignore[assignment]

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        if not partition_id:
            self._drawn = np.random.rand(len(self.dataset)) < 0.5
        return self.dataset.select(np.flatnonzero(self._drawn == bool(partition_id)))


class ColumnPartitioner(NaturalIdPartitioner):
    """Splits columns, not rows: not what federated clients of one model can learn from."""

    def load_partition(self, partition_id: int) -> datasets.Dataset:
        return self.dataset.select_columns(["label"])


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Put the stand-ins where the package would be."""
    partitioner = types.ModuleType("flwr_datasets.partitioner")
    for kind in (
        DirichletPartitioner,
        NaturalIdPartitioner,
        GlobalPartitioner,
        ColumnPartitioner,
    ):
        setattr(partitioner, kind.__name__, kind)
    partitioner.no_class = print  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flwr_datasets", types.ModuleType("flwr_datasets"))
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", partitioner)
    return partitioner


def named(name: str, **arguments: Any) -> FlowerPartition:
    return FlowerPartition({"_target_": f"flwr_datasets.partitioner.{name}", **arguments})


def written(writers: list[int], *, regression: bool = False) -> Dataset:
    """Two classes in turn, or targets, and a tag."""
    size = len(writers)
    y = torch.arange(size) % 2
    if regression:
        y = torch.linspace(-1, 1, size)[:, None]
        y /= y.std(0, correction=0)
    samples = Samples(torch.zeros(size, 1), y)
    tag = torch.tensor(writers)
    return Dataset("toy", samples, samples, 1 if regression else 2, "", {"writer": (tag, tag)})


def test_each_client_holds_one_partition() -> None:
    parts = named("NaturalIdPartitioner", partition_by="writer").split(
        written([3, 0, 3, 5, 0, 3]), 3, seed=0
    )
    assert [part.tolist() for part in parts] == [[1, 4], [0, 2, 5], [3]]
    by_label = named("NaturalIdPartitioner", partition_by="label")
    assert [part.tolist() for part in by_label.split(written([0] * 4), 2, 0)] == [[0, 2], [1, 3]]


def test_targets_of_a_regression_can_be_gone_by() -> None:
    data = written([0, 1, 2], regression=True)
    parts = named("NaturalIdPartitioner", partition_by="label").split(data, 3, seed=0)
    assert [part.tolist() for part in parts] == [[0], [1], [2]]


def test_it_is_a_partition_disjoint_complete_ascending_and_seeded() -> None:
    data = digits()
    arguments = {"num_partitions": 5, "partition_by": "label", "alpha": 0.3}
    made = named("DirichletPartitioner", **arguments)
    parts = made.split(data, 5, seed=0)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(data.train)))
    assert all((part.diff() > 0).all() for part in parts)
    again = made.split(data, 5, seed=0)  # a partitioner takes one data set only, so a new one
    assert all(map(torch.equal, parts, again))
    other = named("DirichletPartitioner", **arguments, seed=1).split(data, 5, seed=0)
    assert not torch.equal(parts[0], other[0])


def test_the_global_generators_are_left_alone_and_follow_the_runs_seed() -> None:
    made, data = named("GlobalPartitioner", partition_by="label"), written([0] * 50)
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    first, again, other = (made.split(data, 2, seed=seed) for seed in (0, 0, 1))
    assert np.random.rand() == expected
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_a_scenarios_manifest_names_the_partitioner() -> None:
    made = named("NaturalIdPartitioner", partition_by="label")
    scenario = build_scenario(
        name="mine",
        dataset=digits(),
        stream=ClassIncremental(num_experiences=5),
        partition=made,
        num_clients=10,
        held_out=0.1,
        seed=0,
    )
    assert scenario.manifest()["partition"] == {
        "name": "FlowerPartition",
        "partitioner": {
            "_target_": "flwr_datasets.partitioner.NaturalIdPartitioner",
            "partition_by": "label",
        },
    }


@pytest.mark.parametrize(
    ("partition", "complaint"),
    [
        (
            named("NaturalIdPartitioner", partition_by="writer"),
            "^num_clients=2: NaturalIdPartitioner makes 3 partitions of dataset toy; set num_cl",
        ),
        (
            named("NaturalIdPartitioner", partition_by="site"),
            "^partition.partitioner: NaturalIdPartitioner: .*site",
        ),
        (
            named("NaturalIdPartitioner", by="site"),
            "^partition.partitioner: NaturalIdPartitioner: .*unexpected keyword argument 'by'",
        ),
        (
            named("DirichletPartitioner", num_partitions=2, partition_by="label", alpha=0.0),
            "^partition.partitioner: DirichletPartitioner: Alpha values should be strictly greater",
        ),
        (
            named("ColumnPartitioner", partition_by="label"),
            "^partition.partitioner: ColumnPartitioner: .*row",
        ),
        (named("Missing"), "^partition.partitioner._target_=.*Missing: is no class with dataset"),
        (named("no_class"), "^partition.partitioner._target_=.*no_class: is no class with dataset"),
        (FlowerPartition({"_target_": "nowhere.At"}), "_target_=nowhere.At: .* no module nowhere$"),
        (FlowerPartition({}), "^partition.partitioner._target_=None: there is no module None"),
    ],
)
def test_what_does_not_work_is_refused_in_one_line(
    partition: FlowerPartition, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        partition.split(written([0, 1, 2, 0]), 2, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_clients", [0, 5])
def test_more_clients_than_samples_are_refused(num_clients: int) -> None:
    with pytest.raises(ValueError, match=f"^num_clients={num_clients}: "):
        named("NaturalIdPartitioner", partition_by="writer").split(written([0] * 4), num_clients, 0)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flwr_datasets.partitioner")
    monkeypatch.delitem(sys.modules, "flwr_datasets")
    made = named("NaturalIdPartitioner", partition_by="writer")
    with pytest.raises(ValueError, match=r"no module flwr_datasets; pip install flwr-datasets$"):
        made.split(written([0] * 4), 1, 0)
    with pytest.raises(ConfigError, match=r"^partition.partitioner._target_=flwr_datasets.*there "):
        prepare(compose(["partition=flower", "tracker=none"]))


def test_the_yaml_builds_a_run() -> None:
    overrides = ["partition=flower", "num_clients=4", "continual=naive", "tracker=none"]
    scenario = build(prepare(compose(overrides))).scenario
    assert scenario.num_clients == 4
    partition = scenario.manifest()["partition"]["partitioner"]
    assert (partition["num_partitions"], partition["seed"]) == (4, 0)
    name = "flwr_datasets.partitioner.NaturalIdPartitioner"
    with pytest.raises(ConfigError, match=r"^partition.partitioner.num_partitions=4: unknown key"):
        prepare(compose([*overrides, f"partition.partitioner._target_={name}"]))
    another = f"+partition.partitioner={{_target_:{name},partition_by:label}}"
    overrides = [*overrides, "~partition.partitioner", another, "num_clients=10"]
    assert build(prepare(compose(overrides))).scenario.manifest()["partition"]["partitioner"] == {
        "_target_": name,
        "partition_by": "label",
    }
