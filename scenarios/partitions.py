"""Partitions: how the samples are split across clients.

Every partition is disjoint and complete (but for what a file declares unused), and a pure function
of (dataset, num_clients, seed).
"""

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.seeding import numpy_generator
from scenarios.dataset import Dataset

DRAWS = 100
"""How often a partition is drawn before a client that stays too small is reported."""

Integers = NDArray[np.int64]


class Partition(Protocol):
    """Splits samples across clients; a dataclass, whose fields go into the manifest."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def split(self, dataset: Dataset, num_clients: int, seed: int) -> list[Tensor]:
        """Return the rows of each client, ascending: `num_clients` tensors (n_k,) int64.

        Args:
            dataset: Whose training samples to split, n of them.
            num_clients: K, from 1 to n.
            seed: The run's seed.

        Raises:
            ValueError: If there is no such partition of these samples.
        """
        ...


@dataclass(frozen=True)
class _Drawn(ABC):
    """A partition that is drawn again, up to `DRAWS` times, while a client has too few samples.

    Attributes:
        min_samples: The least number of samples of any client, over its whole stream; 0 lets
            clients stay empty.
    """

    min_samples: int = field(default=1, kw_only=True)

    remedy: ClassVar[str] = "lower num_clients"
    by_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.min_samples < 0:
            raise ValueError(f"partition.min_samples={self.min_samples}: must be at least 0")

    def split(self, dataset: Dataset, num_clients: int, seed: int) -> list[Tensor]:
        """Return the rows of each client, ascending; see `Partition.split`."""
        if self.by_labels and dataset.regression:
            raise ValueError(
                f"partition {type(self).__name__} goes by labels, and dataset {dataset.name} is a "
                "regression"
            )
        size = len(dataset.train)
        check_num_clients(num_clients, size)
        if num_clients * self.min_samples > size:
            raise ValueError(
                f"partition.min_samples={self.min_samples}: {num_clients} clients would need "
                f"{num_clients * self.min_samples} samples, there are {size}"
            )
        num_classes = dataset.num_classes
        array = dataset.train.y.cpu().numpy()
        for draw in range(DRAWS):
            owners = self._owners(
                array, num_clients, num_classes, numpy_generator(seed, "partition", draw)
            )
            sizes = np.bincount(owners, minlength=num_clients)
            if sizes.min() >= self.min_samples:
                return _rows_of(owners, num_clients)
        raise ValueError(
            f"partition.min_samples={self.min_samples}: {(sizes < self.min_samples).sum()} of "
            f"{num_clients} clients hold fewer in each of {DRAWS} draws; {self.remedy}, or set "
            "partition.min_samples=0 to let clients stay empty"
        )

    @abstractmethod
    def _owners(
        self, labels: Integers, num_clients: int, num_classes: int, rng: Generator
    ) -> Integers:
        """Return the client of each sample, (n,) in [0, num_clients): one draw."""


@dataclass(frozen=True)
class Iid(_Drawn):
    """Every client holds a uniform random share; sizes differ by at most one."""

    def _owners(
        self, labels: Integers, num_clients: int, num_classes: int, rng: Generator
    ) -> Integers:
        return _dealt(rng.permutation(len(labels)), _even(len(labels), num_clients))


@dataclass(frozen=True)
class Dirichlet(_Drawn):
    """Each class is spread over the clients in proportions drawn from Dir(alpha, ..., alpha).

    Yurochkin et al. 2019 ("Bayesian Nonparametric Federated Learning of Neural Networks", section
    4): p_c ~ Dir_K(alpha), and client k gets the share p_{c,k} of class c. Client sizes are not
    balanced. (Hsu et al. 2019 draw a distribution over classes for each client instead.) Shares are
    rounded on the cumulative sum over the clients, which are taken in an order drawn for each
    class, so that no client is favoured where a share is less than one sample.

    Attributes:
        alpha: Concentration, greater than 0: the smaller, the fewer clients share a class; as it
            grows, every client approaches the global distribution of labels.
    """

    alpha: float = 0.5

    remedy: ClassVar[str] = "raise partition.alpha, lower num_clients"
    by_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"partition.alpha={self.alpha}: must be greater than 0 and finite")
        object.__setattr__(self, "alpha", float(self.alpha))  # 1 and 1.0 are one protocol

    def _owners(
        self, labels: Integers, num_clients: int, num_classes: int, rng: Generator
    ) -> Integers:
        rows = _by_class(labels, rng)
        totals = np.bincount(labels, minlength=num_classes)
        shares = rng.dirichlet(np.full(num_clients, self.alpha), size=num_classes)
        counts = _rounded(shares, totals)
        clients = rng.permuted(np.tile(np.arange(num_clients), (num_classes, 1)), axis=1)
        return _dealt(rows, np.repeat(clients.ravel(), counts.ravel()))


@dataclass(frozen=True)
class Pathological(_Drawn):
    """Every client holds samples of `classes_per_client` classes only.

    After McMahan et al. 2017, who cut the samples, sorted by label, into equal shards. Here each
    class is cut by itself, into one shard for each client that holds it, so no client has more than
    `classes_per_client` classes. Clients hold as many classes as each other, classes are held by as
    many clients as each other (give or take one), and the shards of a class are equal (likewise).

    Attributes:
        classes_per_client: k, from 1 to the number of classes; num_clients * k must cover them all.
    """

    classes_per_client: int = 2

    remedy: ClassVar[str] = "raise partition.classes_per_client, lower num_clients"
    by_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes_per_client < 1:
            raise ValueError(
                f"partition.classes_per_client={self.classes_per_client}: must be at least 1"
            )

    def split(self, dataset: Dataset, num_clients: int, seed: int) -> list[Tensor]:
        """Return the rows of each client, ascending; see `Partition.split`."""
        k, num_classes = self.classes_per_client, dataset.num_classes
        if k > num_classes:
            raise ValueError(
                f"partition.classes_per_client={k}: more than the dataset's {num_classes} classes"
            )
        if num_clients * k < num_classes:
            raise ValueError(
                f"partition.classes_per_client={k}: {num_clients} clients would cover at most "
                f"{num_clients * k} of the {num_classes} classes; set it to at least "
                f"{-(-num_classes // num_clients)}, or num_clients to at least "
                f"{-(-num_classes // k)}"
            )
        return super().split(dataset, num_clients, seed)

    def _owners(
        self, labels: Integers, num_clients: int, num_classes: int, rng: Generator
    ) -> Integers:
        held = self._held(num_clients, num_classes, rng)
        # Client ids sorted by the class they hold, in random order within it: a class's holders.
        pairs = rng.permutation(num_clients * self.classes_per_client)
        pairs = pairs[held.ravel()[pairs].argsort(kind="stable")]
        holders = pairs // self.classes_per_client
        num_holders = np.bincount(held.ravel(), minlength=num_classes)
        totals = np.bincount(labels, minlength=num_classes)
        starts = num_holders.cumsum() - num_holders
        owners = [
            holders[start + _even(total, count)]
            for start, total, count in zip(starts, totals, num_holders, strict=True)
        ]
        return _dealt(_by_class(labels, rng), np.concatenate(owners))

    def _held(self, num_clients: int, num_classes: int, rng: Generator) -> Integers:
        """Return the classes of each client, (num_clients, k), distinct in each row.

        Each client takes the classes that the fewest clients before it took, ties broken at random:
        so all classes are taken equally often, give or take one.
        """
        taken = np.zeros(num_classes)
        held = np.empty((num_clients, self.classes_per_client), dtype=np.int64)
        for client_id, tie_break in enumerate(rng.random((num_clients, num_classes))):
            held[client_id] = (taken + tie_break).argsort()[: self.classes_per_client]
            taken[held[client_id]] += 1
        return held


@dataclass(frozen=True)
class Quantity(_Drawn):
    """Client sizes follow a power law; labels are independent and identically distributed.

    Each client gets `min_samples`, and the rest is shared out in proportion to rank^-exponent, the
    clients' ranks 1..K being drawn at random.

    Attributes:
        exponent: At least 0: 0 makes equal sizes, 1 is Zipf's law.
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.exponent < math.inf:
            raise ValueError(f"partition.exponent={self.exponent}: must be at least 0 and finite")
        object.__setattr__(self, "exponent", float(self.exponent))  # 1 and 1.0 are one protocol

    def _owners(
        self, labels: Integers, num_clients: int, num_classes: int, rng: Generator
    ) -> Integers:
        weights = np.arange(1, num_clients + 1, dtype=np.float64) ** -self.exponent
        rest = np.array([len(labels) - num_clients * self.min_samples])
        sizes = self.min_samples + _rounded(weights[None] / weights.sum(), rest)[0]
        owners = np.repeat(rng.permutation(num_clients), sizes)
        return _dealt(rng.permutation(len(labels)), owners)


@dataclass(frozen=True)
class LogNormal(_Drawn):
    """Client sizes follow a log-normal law; labels are independent and identically distributed.

    Each client gets `min_samples`, and the rest is shared out in proportion to exp(sigma * z), z
    standard normal (as LEAF's synthetic data, Caldas et al. 2018, has the sizes of its users).

    Attributes:
        sigma: At least 0: 0 makes equal sizes, 2 makes a few clients hold most.
    """

    sigma: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"partition.sigma={self.sigma}: must be at least 0 and finite")
        object.__setattr__(self, "sigma", float(self.sigma))  # 1 and 1.0 are one protocol

    def _owners(
        self, labels: Integers, num_clients: int, num_classes: int, rng: Generator
    ) -> Integers:
        drawn = self.sigma * rng.standard_normal(num_clients)
        weights = np.exp(drawn - drawn.max())  # relative to the largest: no overflow
        rest = np.array([len(labels) - num_clients * self.min_samples])
        sizes = self.min_samples + _rounded(weights[None] / weights.sum(), rest)[0]
        return _dealt(rng.permutation(len(labels)), np.repeat(np.arange(num_clients), sizes))


@dataclass(frozen=True)
class Natural:
    """Every client holds all samples of some values of a tag: of some writers, users, hospitals.

    The values are dealt out in an order drawn from the run's seed; clients hold as many as each
    other, give or take one.

    Attributes:
        by: The tag.
    """

    by: str = "writer"

    def split(self, dataset: Dataset, num_clients: int, seed: int) -> list[Tensor]:
        """Return the rows of each client, ascending; see `Partition.split`."""
        tag = dataset.tag(self.by, "partition.by")[0]
        values = torch.unique(tag)
        if num_clients > len(values):
            raise ValueError(
                f"num_clients={num_clients}: more than the {len(values)} values of "
                f"partition.by={self.by}"
            )
        check_num_clients(num_clients, len(tag))
        order = numpy_generator(seed, "partition").permutation(len(values))
        client_of = np.empty(len(values), dtype=np.int64)
        client_of[order] = _even(len(values), num_clients)
        owners = client_of[torch.searchsorted(values, tag.contiguous()).numpy()]
        return _rows_of(owners, num_clients)


@dataclass(frozen=True)
class FromFile:
    """Every client holds the rows that a file says.

    Attributes:
        path: A JSON file: a list with one list of row numbers, from 0, for each client. No row
            may come twice, and none that is there is left out silently: rows in no list must be
            named in one more list, under the key ``"unused"`` of an object whose key ``"clients"``
            has the lists. Where it lies is no part of the protocol; what it says is.
    """

    path: str = field(metadata={"protocol": False})

    def split(self, dataset: Dataset, num_clients: int, seed: int) -> list[Tensor]:
        """Return the rows of each client, ascending; see `Partition.split`."""
        held, unused = self._read()
        if len(held) != num_clients:
            raise ValueError(
                f"num_clients={num_clients}: partition.path={self.path} has {len(held)} clients"
            )
        size = len(dataset.train)
        times = np.zeros(size, dtype=np.int64)
        for rows in (*held, unused):
            wrong = rows[(rows < 0) | (rows >= size)]
            if len(wrong):
                raise ValueError(f"{self.path}: row {wrong[0]}: must be in 0..{size - 1}")
            np.add.at(times, rows, 1)
        for found, problem in ((times > 1, "comes twice"), (times == 0, "is in no list")):
            if found.any():
                raise ValueError(f"{self.path}: row {int(found.argmax())} {problem}")
        return [torch.from_numpy(np.sort(rows)) for rows in held]

    def _read(self) -> tuple[list[Integers], Integers]:
        try:
            content = json.loads(Path(self.path).expanduser().read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"partition.path={self.path}: cannot be read: {error}") from error
        named = content if isinstance(content, dict) else {"clients": content}
        clients = named.get("clients")
        lists = [*clients, named.get("unused", [])] if isinstance(clients, list) else [None]
        if not all(
            isinstance(rows, list) and all(type(row) is int and abs(row) < 2**63 for row in rows)
            for rows in lists
        ):
            raise ValueError(f"{self.path}: must be a list of lists of whole numbers")
        *held, unused = (np.array(rows, dtype=np.int64) for rows in lists)
        return held, unused


def check_num_clients(num_clients: int, num_samples: int) -> None:
    """Raise ``ValueError`` unless there is a client, and a sample for each."""
    if num_clients < 1:
        raise ValueError(f"num_clients={num_clients}: must be at least 1")
    if num_clients > num_samples:
        raise ValueError(f"num_clients={num_clients}: more than the {num_samples} training samples")


def _by_class(labels: Integers, rng: Generator) -> Integers:
    """Return all rows, class after class, shuffled within each."""
    rows = rng.permutation(len(labels))
    return rows[labels[rows].argsort(kind="stable")]


def _even(num_samples: int, num_parts: int) -> Integers:
    """Return the part of each of `num_samples` in turn; part sizes differ by at most one."""
    return np.arange(num_samples) * num_parts // max(num_samples, 1)


def _rounded(shares: NDArray[np.float64], totals: Integers) -> Integers:
    """Return whole counts (m, K) near ``shares * totals[:, None]``, each row adding up exactly.

    The shares of each row add up to 1, but for an error far too small to move a rounded end.
    """
    ends = np.rint(shares.cumsum(axis=1) * totals[:, None]).astype(np.int64)
    return np.diff(ends, axis=1, prepend=0)


def _rows_of(owners: Integers, num_clients: int) -> list[Tensor]:
    """Return the rows of each client, ascending, given the owner of each row."""
    sizes = np.bincount(owners, minlength=num_clients)
    return list(torch.split(torch.from_numpy(owners.argsort(kind="stable")), sizes.tolist()))


def _dealt(rows: Integers, owners: Integers) -> Integers:
    """Return the owners (n,) of rows 0, 1, 2, ..., where ``owners[j]`` gets ``rows[j]``."""
    dealt = np.empty_like(owners)
    dealt[rows] = owners
    return dealt


@dataclass(frozen=True)
class OnSite:
    """Every client's samples are what its own machine holds.

    Nobody splits anything: a node's whole training store is its client's, and the server, which is
    nobody's machine, holds test samples only. So machines must agree beforehand on what the classes
    are: data sets say so by being `Dataset.partial`.

    Attributes:
        client: Whose machine this is; None for the server. Filled in by each machine.
    """

    client: int | None = field(default=None, metadata={"protocol": False})

    @property
    def elsewhere(self) -> bool:
        """Whether the training samples are on other machines."""
        return self.client is None

    def split(self, dataset: Dataset, num_clients: int, seed: int) -> list[Tensor]:
        """Return the rows of each client; see `Partition.split`."""
        if not dataset.partial:
            raise ValueError(
                f"partition=on_site: dataset {dataset.name} takes its classes from what it finds, "
                "and machines may find different ones; set dataset.num_classes of "
                "dataset=arrays, or name a loader whose Dataset is partial"
            )
        rows = torch.arange(len(dataset.train))
        return [rows if client == self.client else rows[:0] for client in range(num_clients)]
