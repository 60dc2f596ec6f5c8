"""Who holds what: a picture of the samples of each client, class and experience."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedlearn.heterogeneity import pair_labels
from fedlearn.review.canvas import GREY, INK, Canvas, palette
from fedlearn.review.holdings import draw_holdings
from fedlearn.review.topics import draw_legend, in_step, topic_names
from fedlearn.types import Scenario, Shares

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLIENTS = 40
"""Of more clients, and of more columns, the picture is a summary."""
MOST_COLUMNS = 110

_GAP = 0.14  # inches between two experiences


def draw_partition(scenario: Scenario, path: Path) -> Path:
    """Draw how many samples of which classes each client trains on in each experience.

    Few clients: a bubble for each (client, experience, class), its area in proportion to the
    samples, its colour that of the topic. Where all experiences hold the same samples, one panel
    stands for them all. Many clients, or many columns of bubbles: see `draw_holdings`.
    """
    labels, num_classes = class_labels(scenario)
    if scenario.num_clients <= MOST_CLIENTS:
        counts = pair_labels(scenario.shares, labels, num_classes).numpy()
        if _repeats(scenario.shares):
            counts = counts[:, :1]
        columns = [np.flatnonzero(held) for held in counts.sum(0)]
        if sum(max(len(classes), 1) for classes in columns) <= MOST_COLUMNS:
            return _draw_bubbles(scenario, counts, columns, path)
    return draw_holdings(scenario, labels, num_classes, path)


def _repeats(shares: Shares) -> bool:
    """Return whether every client has the same rows in each of its experiences."""
    return all(
        torch.equal(shares[client_id, 0], shares[client_id, index])
        for client_id in range(shares.num_clients)
        for index in range(1, shares.num_experiences)
    )


def class_labels(scenario: Scenario) -> tuple[torch.Tensor, int]:
    """Return the training labels and their number; a regression is taken for a single class."""
    if scenario.train.regression:
        return torch.zeros(len(scenario.train), dtype=torch.int64), 1
    return scenario.train.y.cpu(), scenario.num_classes


def _draw_bubbles(
    scenario: Scenario, counts: NDArray[np.int64], columns: list[NDArray[np.int64]], path: Path
) -> Path:
    """Draw a panel for each experience.

    Args:
        scenario: Whose.
        counts: (K, panels, C) samples.
        columns: The classes to show in each panel.
        path: Where to.
    """
    num_clients, num_panels, _ = counts.shape
    widths = [max(len(classes), 1) for classes in columns]
    cell = float(np.clip(min(10 / sum(widths), 8 / num_clients), 0.12, 0.32))
    height = num_clients * cell
    canvas = Canvas(sum(widths) * cell + _GAP * num_panels + 0.4, height)
    colours = palette(len(scenario.topics))
    collapsed = num_panels < scenario.num_experiences
    held = [counts[:, index][:, classes] for index, classes in enumerate(columns)]
    diameter = min(_diameter(each) for each in held)
    left = 0.0
    for index, classes in enumerate(columns):
        axes = canvas.axes(left, 0, widths[index] * cell, height)
        topics = scenario.orders[:, index].tolist()
        inks = [INK if collapsed else colours[topic] for topic in topics]
        _add_bubbles(axes, held[index], inks, diameter)
        _frame(axes, num_clients, widths[index], cell)
        _name_classes(axes, classes, cell, scenario.train.regression)
        if index:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("client", fontsize=9, color=INK)
        if not collapsed:
            axes.set_title(str(index), fontsize=9, color=INK, pad=4)
        left += widths[index] * cell + _GAP
    _name_sizes(canvas, counts.sum((1, 2)).tolist(), left + 0.32, cell)
    if not scenario.train.regression:
        canvas.text((left - _GAP) / 2, height + 0.22, "class", fontsize=9, ha="center", va="top")
    shared = f"the same samples in each of {scenario.num_experiences} experiences"
    canvas.text(0, -0.25, shared if collapsed else "experience", fontsize=9, va="bottom")
    title = f"what each client trains on; the largest bubble is {counts.max():,} samples"
    canvas.text(0, -0.45, f"{scenario.name}: {title}", fontsize=10, va="bottom")
    if not collapsed and not in_step(scenario):
        draw_legend(canvas, topic_names(scenario), left + 0.5, 0)
    return canvas.save(path)


def _diameter(counts: NDArray[np.int64]) -> float:
    """Return how many cells wide the bubble of one sample may be, so that no two bubbles touch.

    Args:
        counts: (K, columns) samples; a bubble's area is in proportion, and no bubble is wider than
            1.25 cells, which the gap between two panels has room for.
    """
    widths = np.sqrt(np.pad(counts, 1))
    neighbours = (
        (widths[:, :-1] + widths[:, 1:], 1.0),
        (widths[:-1] + widths[1:], 1.0),
        (widths[:-1, :-1] + widths[1:, 1:], math.sqrt(2)),
        (widths[1:, :-1] + widths[:-1, 1:], math.sqrt(2)),
    )
    room = [2 * apart / max(sums.max(), 1) for sums, apart in neighbours]
    return float(min(0.96 * min(room), 1.25 / max(widths.max(), 1)))


def _add_bubbles(axes: "Axes", counts: NDArray[np.int64], inks: list[Any], diameter: float) -> None:
    """Draw a bubble for each of `counts` (K, columns), that of one sample `diameter` cells wide."""
    from matplotlib.collections import EllipseCollection

    clients, places = counts.nonzero()
    diameters = diameter * np.sqrt(counts[clients, places])
    axes.add_collection(
        EllipseCollection(
            diameters,
            diameters,
            np.zeros_like(diameters),
            units="xy",
            offsets=np.stack([places, clients], axis=1),
            offset_transform=axes.transData,
            facecolors=[inks[client] for client in clients],
            linewidths=0,
            clip_on=False,
            zorder=3,
        )
    )


def _name_sizes(canvas: Canvas, sizes: list[int], right: float, cell: float) -> None:
    """Write each client's number of samples beside its row, ending at `right` inches."""
    canvas.text(right, -0.06, "samples", fontsize=7, color=GREY, ha="right", va="bottom")
    for row, size in enumerate(sizes):
        at = (row + 0.5) * cell
        canvas.text(right, at, f"{size:,}", fontsize=7, ha="right", va="center")


def _frame(axes: "Axes", num_clients: int, num_columns: int, cell: float) -> None:
    axes.set_xlim(-0.5, num_columns - 0.5)
    axes.set_ylim(num_clients - 0.5, -0.5)
    step = 1 if cell > 0.16 else 5
    axes.set_yticks(range(0, num_clients, step))
    axes.set_yticks(np.arange(num_clients + 1) - 0.5, minor=True)
    axes.grid(which="minor", axis="y", color="#EFEFEF", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#CFCFCF")
    axes.spines[:].set_visible(True)


def _name_classes(axes: "Axes", classes: NDArray[np.int64], cell: float, regression: bool) -> None:
    """Name the classes of a panel: all where they fit, else the first and the last."""
    if regression or not len(classes):
        axes.set_xticks([])
        return
    digits = len(str(classes.max()))
    every = cell > 0.07 * digits + 0.05
    places = range(len(classes)) if every else sorted({0, len(classes) - 1})
    axes.set_xticks(list(places), [str(classes[place]) for place in places], fontsize=7)
