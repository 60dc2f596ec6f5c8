"""Builds a scenario where dataset, stream, partition, clock and skew meet."""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from fedlearn.heads import head_table
from fedlearn.seeding import generator
from fedlearn.types import Samples, Scenario, Shares, Topic
from scenarios.clocks import Clock
from scenarios.dataset import Dataset
from scenarios.partitions import Partition
from scenarios.skews import Skew
from scenarios.streams.layout import Layout, Stream


def build_scenario(
    name: str,
    dataset: Dataset,
    stream: Stream,
    partition: Partition,
    num_clients: int,
    held_out: float,
    seed: int,
    clock: Clock | None = None,
    skew: Skew | None = None,
    rounds_per_experience: int | None = None,
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
        clock: In which order each client meets the experiences; None for all in step.
        skew: What is different about each client's samples; None for nothing.
        rounds_per_experience: For the record only: with the clock, when who is in which experience.

    Raises:
        ValueError: If an argument is out of range, or the parts do not fit together.
    """
    if not 0 <= held_out <= 0.5:
        raise ValueError(f"scenario.held_out={held_out}: must be between 0 and 0.5")
    clock, skew = clock or Clock(), skew or Skew()
    layout = stream.lay_out(dataset, num_clients, seed)
    groups = _groups(dataset, layout)
    elsewhere = getattr(partition, "elsewhere", False)
    if elsewhere and not len(dataset.test):
        raise ValueError(f"dataset {dataset.name}: the server needs test samples")
    owned = partition.split(dataset, num_clients, seed)
    orders = clock.orders(_orders(layout, num_clients), seed)
    shares, set_aside = _share_out(owned, groups, layout, orders, held_out, seed)
    labels = layout.labels or tuple(range(dataset.num_classes))
    if skew.label_noise and layout.kind == "task":
        raise ValueError(
            f"skew.label_noise={skew.label_noise:g}: a wrong label may be of another task, "
            "which has a head of its own; choose a class- or domain-incremental scenario"
        )
    right = _labelled(dataset.train, layout.labels)
    transforms = layout.transforms or (None,) * len(layout.classes)
    return Scenario(
        name=name,
        kind=layout.kind,
        train=skew.labels(right, owned, max(labels) + 1, seed),
        test=_labelled(dataset.test, layout.labels),
        shares=shares,
        held_out=set_aside,
        topics=tuple(
            Topic(tuple(dict.fromkeys(labels[label] for label in classes)), rows, transform)
            for classes, rows, transform in zip(
                layout.classes, _test_rows(dataset, layout), transforms, strict=True
            )
        ),
        orders=orders,
        num_classes=max(labels) + 1,
        views=skew.views(num_clients, dataset.input_shape, seed),
        elsewhere=elsewhere,
        recipe={
            "dataset": {"name": dataset.name, "digest": dataset.digest},
            "stream": dict(layout.recipe),
            "partition": _named(partition),
            "clock": _named(clock),
            "rounds_per_experience": rounds_per_experience,
            "skew": _named(skew),
            "held_out": float(held_out),
            "seed": seed,
        },
    )


def _named(part: Any) -> dict[str, Any]:
    """Return the name of a part and those of its fields that define the protocol."""
    hidden = [each.name for each in fields(part) if not each.metadata.get("protocol", True)]
    told = {key: value for key, value in asdict(part).items() if key not in hidden}
    return {"name": type(part).__name__, **told}


def _groups(dataset: Dataset, layout: Layout) -> Tensor:
    """Return the group of each training sample."""
    if layout.groups is not None:
        return dataset.tags[layout.groups][0]
    if dataset.regression:
        return torch.zeros(len(dataset.train), dtype=torch.int64)
    return dataset.train.y


def _orders(layout: Layout, num_clients: int) -> Tensor:
    """Return (K, T): the topics of each client's stream, one row for all where they agree."""
    if layout.orders is not None:
        return layout.orders
    return torch.arange(len(layout.classes)).expand(num_clients, -1)


def _test_rows(dataset: Dataset, layout: Layout) -> Sequence[Tensor]:
    """Return the test samples of each topic: without any, nothing could be said of it."""
    rows = layout.test_rows or _of_classes(dataset, layout.classes)
    if not len(dataset.test):  # somebody else tests
        return rows
    for topic, (classes, tested) in enumerate(zip(layout.classes, rows, strict=True)):
        if not len(tested):
            raise ValueError(
                f"scenario: no test sample of dataset {dataset.name} has the classes of experience "
                f"{topic}, {', '.join(map(str, classes))}; lower scenario.num_experiences"
            )
    return rows


def _of_classes(dataset: Dataset, topics: Sequence[tuple[int, ...]]) -> Sequence[Tensor]:
    """Return the test samples of each topic's classes; of a regression, all."""
    if dataset.regression:
        return [torch.arange(len(dataset.test))] * len(topics)
    found: dict[tuple[int, ...], Tensor] = {}  # topics about the same have the same tensor
    for classes in topics:
        if classes not in found:
            members = head_table([classes], dataset.num_classes)[0][dataset.test.y]
            found[classes] = members.nonzero().flatten()
    return [found[classes] for classes in topics]


def _labelled(samples: Samples, labels: tuple[int, ...] | None) -> Samples:
    """Return `samples` under the `labels` of their classes, inputs not copied."""
    return samples if labels is None else replace(samples, y=torch.tensor(labels)[samples.y])


def _share_out(
    owned: Sequence[Tensor],
    groups: Tensor,
    layout: Layout,
    orders: Tensor,
    held_out: float,
    seed: int,
) -> tuple[Shares, Shares]:
    """Return what each (client, experience) trains on, and what it sets aside; rows ascending.

    A client's samples fall into *lots*: where they are dealt out, one for each of its experiences;
    else one for each set of groups that some topic takes, which experiences about the same share.
    Every row has one random rank, and a lot sets aside its rows of lowest rank, so that lots that
    hold the same rows set the same ones aside.
    """
    num_samples = len(groups)
    rows = torch.cat(list(owned))
    clients = torch.arange(len(owned)).repeat_interleave(torch.tensor([len(r) for r in owned]))
    times = rows.bincount(minlength=num_samples)
    if len(rows) and int(times.max()) > 1:
        raise ValueError(f"partition: row {int(times.argmax())} goes to more than one client")
    ranks = torch.randperm(num_samples, generator=generator(seed, "held-out"))

    if layout.dealt:
        luck = generator(seed, "deal")
        places, lots = _dealt(layout.weights, orders, clients, groups[rows], luck)
        num_lots = orders.shape[1]
        lot_of = torch.arange(num_lots).expand(orders.shape)
    else:
        kinds, kind_of = torch.unique(layout.weights > 0, dim=0, return_inverse=True)
        lots, places = kinds[:, groups[rows]].nonzero(as_tuple=True)
        num_lots = len(kinds)
        lot_of = kind_of[orders]

    rows, at = rows[places], clients[places] * num_lots + lots
    order = (at * num_samples + rows).argsort()
    rows, at = rows[order], at[order]
    sizes = at.bincount(minlength=len(owned) * num_lots)
    quotas = (sizes.double() * held_out).round().long()
    by_rank = (at * num_samples + ranks[rows]).argsort()
    position = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[at]
    aside = torch.empty(len(rows), dtype=torch.bool)
    aside[by_rank] = position < quotas[at]
    pairs = torch.arange(len(owned))[:, None] * num_lots + lot_of

    def chosen(mask: Tensor) -> Shares:
        sizes = at[mask].bincount(minlength=len(owned) * num_lots)
        ends = sizes.cumsum(0).int()
        return Shares(rows[mask], (ends - sizes.int())[pairs], ends[pairs])

    return chosen(~aside), chosen(aside)


def _dealt(
    weights: Tensor, orders: Tensor, clients: Tensor, groups: Tensor, luck: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the samples' places and experiences, one for each; some fit none and are left out.

    A client's samples of a group, in random order, go to its experiences in turn, to each its share
    of them. Where that is no whole number it is rounded up or down at random, in proportion: else
    all clients with few samples would have them in the same experiences.

    Args:
        weights: (M, G).
        orders: (K, T).
        clients: (n,) whose each sample is.
        groups: (n,) likewise.
        luck: Of all draws.
    """
    parts = clients * int(weights.shape[1]) + groups
    order = torch.randperm(len(parts), generator=luck)
    order = order[parts[order].argsort(stable=True)]
    _, at, sizes = torch.unique_consecutive(parts[order], return_inverse=True, return_counts=True)
    place = torch.arange(len(order)) - (sizes.cumsum(0) - sizes)[at]
    start = torch.rand(len(sizes), generator=luck).double()  # float32 numbers: 1 is out of reach
    share = (place + start[at]) / sizes[at]  # in [0, 1): how far into its client's group one is

    whose, group = clients[order], groups[order]
    total = torch.zeros(len(order), dtype=torch.float64)
    for topics in orders.unbind(1):
        total += weights[topics[whose], group]
    reached = torch.zeros_like(total)
    experience = torch.zeros(len(order), dtype=torch.int64)
    for topics in orders.unbind(1):
        reached += weights[topics[whose], group]
        experience += reached <= share * total  # not this one yet
    fits = total > 0
    return order[fits], experience[fits]
