"""Flower Datasets' partitioners (the package flwr-datasets) as partitions."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlearn.seeding import borrowed_global_rng
from fedlearn.seeding import seed as derived
from scenarios.dataset import Dataset
from scenarios.partitions import check_num_clients

TARGET = "_target_"


@dataclass(frozen=True)
class FlowerPartition:
    """Every client holds one partition of any class that keeps to `flwr_datasets`' protocol.

    That is: it is made from its own arguments, gets a ``datasets.Dataset`` as its ``dataset``, and
    has ``num_partitions`` and ``load_partition(partition_id)``, a part of that data set (as of
    flwr-datasets 0.6). The data set has a row a training sample and the columns ``label``, ``row``
    (from 0) and every tag under its name; a tag called like one of the first two is left out. Rows
    that no partition holds are left out of the run.

    What a partitioner draws follows its own ``seed``, and for those without one the run's.

    Attributes:
        partitioner: The class's full name under ``_target_``, and its arguments, as plain values;
            both go into the manifest.
    """

    partitioner: Mapping[str, Any]

    def split(self, dataset: Dataset, num_clients: int, seed: int) -> list[Tensor]:
        """Return the rows of each client, ascending; see `Partition.split`."""
        check_num_clients(num_clients, len(dataset.train))
        arguments = {key: value for key, value in self.partitioner.items() if key != TARGET}
        kind = _located(str(self.partitioner.get(TARGET)))
        rows = _rows(dataset)
        with borrowed_global_rng(derived(seed, "partition")):
            try:
                partitioner = kind(**arguments)
                partitioner.dataset = rows
                count = int(partitioner.num_partitions)
                parts = [list(partitioner.load_partition(each)["row"]) for each in range(count)]
            except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(f"partition.partitioner: {kind.__name__}: {reason}") from error
        if count != num_clients:
            raise ValueError(
                f"num_clients={num_clients}: {kind.__name__} makes {count} partitions of dataset "
                f"{dataset.name}; set num_clients={count}, or its own arguments"
            )
        return [torch.tensor(part, dtype=torch.int64).sort().values for part in parts]


def _located(name: str) -> type[Any]:
    """Return the class of a full name."""
    where = f"partition.partitioner.{TARGET}={name}"
    module, _, leaf = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module or name), leaf, None)
    except ModuleNotFoundError as error:
        hint = "; pip install flwr-datasets" if name.startswith("flwr_datasets.") else ""
        raise ValueError(f"{where}: there is no module {error.name}{hint}") from error
    duties = ("dataset", "num_partitions", "load_partition")
    if not isinstance(found, type) or not all(hasattr(found, duty) for duty in duties):
        raise ValueError(f"{where}: is no class with {', '.join(duties)}")
    return found


def _rows(dataset: Dataset) -> Any:
    """Return the training samples as a `datasets.Dataset` of what is known of each."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            'partition=flower: needs the package datasets: pip install "fedlearn[data]"'
        ) from error
    size, y = len(dataset.train), dataset.train.y
    columns = {name: train.tolist() for name, (train, _) in dataset.tags.items()}
    label = (y.flatten() if y.numel() == size else y).tolist()
    return datasets.Dataset.from_dict({**columns, "label": label, "row": list(range(size))})
