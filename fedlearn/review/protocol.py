"""A protocol on one page: who holds how much of what and when, in words, numbers and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fedlearn.heterogeneity import Heterogeneity, client_labels, measure
from fedlearn.review.clock import draw_clock
from fedlearn.review.partition import class_labels, draw_partition
from fedlearn.review.samples import draw_samples, drawable
from fedlearn.schedule import Schedule
from fedlearn.tracking.words import counted, percent
from fedlearn.types import Scenario

MOST_CLIENTS = 20
"""Of more, the table has the first and the last few, and quantiles."""

_FEW = 6  # places of those first and last, one of them for the gap
_QUANTILES = {
    "smallest": 0.0,
    "lower 25 %": 0.25,
    "median": 0.5,
    "upper 25 %": 0.75,
    "largest": 1.0,
}
_OTHER_COLUMNS = 42  # characters that the columns take which are no experience
_GAP = "..."


def write_pictures(scenario: Scenario, schedule: Schedule, folder: Path) -> list[Path]:
    """Draw the protocol into `folder`; return the paths of the pictures.

    ``partition.png`` and ``clock.png``, and ``samples.png`` where inputs are images.
    """
    paths = [
        draw_partition(scenario, folder / "partition.png"),
        draw_clock(scenario, schedule, folder / "clock.png"),
    ]
    if drawable(scenario):
        paths.append(draw_samples(scenario, folder / "samples.png"))
    return paths


def headline(scenario: Scenario, schedule: Schedule, manifest: Mapping[str, Any]) -> str:
    """Return what the protocol is in one line, with the start of its `manifest`'s hash."""
    num_classes, num_topics = scenario.num_classes, len(scenario.topics)
    outputs = counted(num_classes, "output") if scenario.train.regression else _classes(num_classes)
    experiences = counted(scenario.num_experiences, "experience")
    if num_topics != scenario.num_experiences:
        experiences += f" (of {counted(num_topics, 'topic')})"
    facts = [
        f"{manifest['dataset']['name']} with {counted(len(scenario.train), 'training sample')}",
        outputs,
        counted(scenario.num_clients, "client"),
        experiences,
        counted(schedule.num_rounds, "round"),
        f"seed {manifest['seed']}",
        f"hash {manifest['hash'][:12]}",
    ]
    return f"{scenario.name}: {', '.join(facts)}"


def sizes_table(scenario: Scenario, width: int) -> Table:
    """Return the samples of each client: in each experience, in all, set aside; and its classes.

    Args:
        scenario: Of more than `MOST_CLIENTS` clients, the first and the last few are named, and
            quantiles say how the others are, column by column.
        width: Columns of the terminal; where there is no room for all experiences, the middle ones
            are left out.
    """
    sizes = scenario.shares.sizes().numpy()
    aside = scenario.held_out.sizes().sum(1, keepdim=True).numpy()
    titles, numbers = ["all", "set aside"], [sizes.sum(1, keepdims=True), aside]
    if not scenario.train.regression:
        held = client_labels(scenario.shares, *class_labels(scenario)) > 0
        titles.append("classes")
        numbers.append(held.sum(1, keepdim=True).numpy())
    cell = max(len(f"{sizes.max():,}"), len(_GAP)) + 2
    shown = _ends(scenario.num_experiences, max((width - _OTHER_COLUMNS) // cell, 3))

    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption="samples to train on in experience 0, 1, ...; in all; set aside for tests",
        caption_justify="left",
    )
    table.add_column("client", no_wrap=True)
    for index in shown:
        table.add_column(_GAP if index is None else str(index), justify="right", no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)

    def add(name: str, row: NDArray[np.int64] | NDArray[np.float64]) -> None:
        values = [f"{value:,.0f}" for value in row]
        cells = [_GAP if index is None else values[index] for index in shown]
        table.add_row(name, *cells, *values[scenario.num_experiences :])

    columns = np.hstack([sizes, *numbers])
    many = scenario.num_clients > MOST_CLIENTS
    for client_id in _ends(scenario.num_clients, _FEW if many else MOST_CLIENTS):
        if client_id is None:
            table.add_row(_GAP)
        else:
            add(str(client_id), columns[client_id])
    if many:
        table.add_section()
        for name, share in _QUANTILES.items():
            add(name, np.quantile(columns, share, axis=0, method="nearest"))
    return table


def numbers_table(scenario: Scenario) -> Table:
    """Return how different clients are, and experiences; see `fedlearn.heterogeneity`."""
    labels, num_classes = class_labels(scenario)
    found = measure(scenario.shares, None if scenario.train.regression else labels, num_classes)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for name, divergence, meaning in (
        ("between clients", found.between_clients, "divergence of two clients' labels, mean"),
        ("from all", found.from_all, "divergence of a client's labels from those of all, mean"),
        ("over time", found.over_time, "divergence between consecutive experiences, mean"),
    ):
        if divergence is not None:
            table.add_row(name, f"{divergence:.3f}", meaning)
    if found.classes is not None:
        mean, fewest, most = found.classes
        table.add_row("classes held", f"{mean:.1f}", f"mean, of {fewest} to {most}")
    table.add_row(
        "imbalance",
        f"{found.gini:.3f}",
        f"Gini coefficient of samples a client; {_range(found)}",
    )
    table.add_row("empty", percent(found.empty), "of all (client, experience) pairs")
    return table


def _range(found: Heterogeneity) -> str:
    smallest, largest = found.smallest, found.largest
    if smallest == largest:
        return f"{largest:,} each"
    times = f", {largest / smallest:.1f} times" if smallest else ""
    return f"{smallest:,} to {largest:,}{times}"


def _classes(count: int) -> str:
    return "1 class" if count == 1 else f"{count} classes"


def _ends(length: int, most: int) -> list[int | None]:
    """Return the numbers 0..length-1; of more than `most`, both ends, and None for the middle."""
    if length <= most:
        return list(range(length))
    first, last = most // 2, most - most // 2 - 1
    return [*range(first), None, *range(length - last, length)]
