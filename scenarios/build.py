"""Builds a scenario where dataset, stream and partition meet."""

from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlearn.heads import head_table
from fedlearn.seeding import generator
from fedlearn.types import Samples, Scenario, Shares
from scenarios.dataset import Dataset
from scenarios.partitions import Partition
from scenarios.streams import Stream


def build_scenario(
    name: str,
    dataset: Dataset,
    stream: Stream,
    partition: Partition,
    num_clients: int,
    held_out: float,
    seed: int,
) -> Scenario:
    """Return the protocol: the stream's experiences, each shared out over the clients.

    The samples are split across the clients first, over all classes; a client's share of an
    experience is then what it holds of that experience's classes, which may be nothing. So in a
    domain-incremental stream a client holds the same samples in every experience.

    Args:
        name: What to call the scenario.
        dataset: What to learn; its stores become the scenario's, without a copy of the inputs.
        stream: How the dataset unfolds over time.
        partition: How the training samples are split across clients.
        num_clients: K, from 1 to the number of training samples.
        held_out: Share of each (client, experience)'s n samples that it sets aside to test itself
            on, in [0, 0.5]: round(held_out * n) of them, halves to even, so never all. In a
            domain-incremental stream the same samples are set aside in every experience.
        seed: The run's seed.

    Raises:
        ValueError: If an argument is out of range, or the parts do not fit together.
    """
    if not 0 <= held_out <= 0.5:
        raise ValueError(f"scenario.held_out={held_out}: must be between 0 and 0.5")
    if dataset.regression:
        _check_needs_no_labels(dataset, stream, partition)
    trained, tested, num_groups = _groups(dataset)
    layout = stream.lay_out(num_groups, dataset.input_shape, seed)
    owned = partition.split(trained, num_clients, num_groups, seed)
    holds = head_table(layout.classes, num_groups)
    shares, set_aside = _share_out(owned, trained, holds, held_out, seed)
    labels = layout.labels or tuple(range(num_groups))
    return Scenario(
        name=name,
        kind=layout.kind,
        train=_labelled(dataset.train, layout.labels),
        test=_labelled(dataset.test, layout.labels),
        shares=shares,
        held_out=set_aside,
        test_rows=tuple(member.nonzero().flatten() for member in holds[:, tested]),
        classes=tuple(
            tuple(dict.fromkeys(labels[label] for label in classes)) for classes in layout.classes
        ),
        transforms=layout.transforms,
        num_classes=dataset.num_classes if dataset.regression else max(labels) + 1,
        recipe={
            "dataset": {"name": dataset.name, "digest": dataset.digest},
            "stream": dict(layout.recipe),
            "partition": {"name": type(partition).__name__, **asdict(partition)},
            "held_out": float(held_out),
            "seed": seed,
        },
    )


def _groups(dataset: Dataset) -> tuple[Tensor, Tensor, int]:
    """Return the class of each training and test sample, and how many there are: one if none."""
    train, test = dataset.train, dataset.test
    if not dataset.regression:
        return train.y, test.y, dataset.num_classes
    return torch.zeros(len(train)).long(), torch.zeros(len(test)).long(), 1


def _check_needs_no_labels(dataset: Dataset, stream: Stream, partition: Partition) -> None:
    for part, made in (("scenario", stream), ("partition", partition)):
        if getattr(made, "needs_labels", False):
            raise ValueError(
                f"{part} {type(made).__name__} goes by labels, and dataset {dataset.name} is a "
                "regression"
            )


def _labelled(samples: Samples, labels: tuple[int, ...] | None) -> Samples:
    """Return `samples` under the `labels` of their classes, inputs not copied."""
    return samples if labels is None else replace(samples, y=torch.tensor(labels)[samples.y])


def _share_out(
    owned: Sequence[Tensor], labels: Tensor, holds: Tensor, held_out: float, seed: int
) -> tuple[Shares, Shares]:
    """Return what each (client, experience) trains on, and what it sets aside; rows ascending.

    A pair is the number client * T + experience. Every row has one random rank, and a pair sets
    aside its rows of lowest rank: so pairs that hold the same rows set the same ones aside.

    Args:
        owned: The rows of each client.
        labels: (n,) int64, of all training samples.
        holds: (T, num_classes) bool: whether an experience holds a class.
        held_out: In [0, 0.5].
        seed: The run's seed.
    """
    num_pairs = len(owned) * len(holds)
    rows = torch.cat(list(owned))
    clients = torch.arange(len(owned)).repeat_interleave(torch.tensor([len(r) for r in owned]))
    times = rows.bincount(minlength=len(labels))
    if int(times.max()) > 1:
        raise ValueError(f"partition: row {int(times.argmax())} goes to more than one client")

    experiences, places = holds[:, labels[rows]].nonzero(as_tuple=True)
    rows, pairs = rows[places], clients[places] * len(holds) + experiences
    order = (pairs * len(labels) + rows).argsort()
    rows, pairs = rows[order], pairs[order]

    sizes = pairs.bincount(minlength=num_pairs)
    quotas = (sizes.double() * held_out).round().long()
    ranks = torch.randperm(len(labels), generator=generator(seed, "held-out"))
    by_rank = (pairs * len(labels) + ranks[rows]).argsort()
    position = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[pairs]
    aside = torch.empty(len(rows), dtype=torch.bool)
    aside[by_rank] = position < quotas[pairs]

    def chosen(mask: Tensor) -> Shares:
        lengths = pairs[mask].bincount(minlength=num_pairs)
        return Shares(rows[mask], F.pad(lengths.cumsum(0), (1, 0)), len(holds))

    return chosen(~aside), chosen(aside)
