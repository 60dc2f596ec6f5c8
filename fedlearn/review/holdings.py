"""Who holds what, summarised: where there is no room for a bubble for each class of each client."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedlearn.heterogeneity import client_labels, experience_labels
from fedlearn.review.canvas import INK, PALE, Canvas
from fedlearn.types import Scenario

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

MOST_ROWS = 200
"""Clients in the heat map; of more, evenly spaced ones."""
_BLUE = "#0072B2"
_WIDTH, _SIDE, _GAP, _TALL, _LOW = 4.2, 2.4, 0.75, 3.6, 1.6  # inches


def draw_holdings(scenario: Scenario, labels: Tensor, num_classes: int, path: Path) -> Path:
    """Draw the margins of (client, experience, class): the classes, the sizes, and their course.

    - Each client's classes over its stream, darker where they are more of its samples: clients
      sorted by the class that they have most of.
    - Beside it the same clients' numbers of samples.
    - Below, each experience's classes, over all clients; not for a regression.
    - Beside it the numbers of samples that clients have in each experience: quantiles.

    Args:
        scenario: Whose.
        labels: (n,) of the training store.
        num_classes: C; 1 for a regression.
        path: Where to.
    """
    held = client_labels(scenario.shares, labels, num_classes)
    rows = _sorted(held)[_spaced(len(held), MOST_ROWS)]
    sizes = scenario.shares.sizes()
    classified = num_classes > 1
    left = _WIDTH + 0.25 if classified else 0.0
    canvas = Canvas(left + _SIDE, _TALL + _GAP + _LOW)
    if classified:
        axes = canvas.axes(0, 0, _WIDTH, _TALL)
        _draw_classes(axes, held[rows], "classes of each client")
        count = f"{len(rows):,}" if len(rows) == len(held) else f"{len(rows):,} of {len(held):,}"
        axes.set_ylabel(f"{count} clients, by their main class", fontsize=9, color=INK)
        axes.set_yticks([])
        axes = canvas.axes(0, _TALL + _GAP, _WIDTH, _LOW)
        counts = experience_labels(scenario.shares, labels, num_classes)
        _draw_classes(axes, counts, "classes of each experience")
        axes.set_ylabel("experience", fontsize=9, color=INK)
        axes.set_xlabel("class", fontsize=9, color=INK)
    axes = canvas.axes(left, 0, _SIDE, _TALL)
    _draw_sizes(axes, sizes.sum(1)[rows])
    axes = canvas.axes(left + 0.35, _TALL + _GAP, _SIDE - 0.35, _LOW)
    _draw_quantiles(axes, sizes)
    canvas.text(0, -0.35, f"{scenario.name}: what clients train on", fontsize=10, va="bottom")
    return canvas.save(path)


def _sorted(held: Tensor) -> Tensor:
    """Return the clients by their main class, of each those with most of it first, empty ones last.

    Args:
        held: (K, C) samples.
    """
    most, main = _shares(held).max(1)
    main[most == 0] = held.shape[1]
    order = most.argsort(descending=True, stable=True)
    return order[main[order].argsort(stable=True)]


def _shares(counts: Tensor) -> Tensor:
    """Return what part of its row each count (n, C) is; 0 in rows without any."""
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def _spaced(count: int, most: int) -> Tensor:
    """Return up to `most` of the numbers 0..count-1, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def _draw_classes(axes: "Axes", counts: Tensor, title: str) -> None:
    """Draw each row's shares (n, C): white for none, the darkest blue for the largest of all."""
    shares = _shares(counts)
    axes.imshow(shares.numpy(), aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
    axes.xaxis.set_major_locator(_whole())
    axes.yaxis.set_major_locator(_whole())
    axes.tick_params(length=0)
    axes.spines[:].set_color(PALE)
    axes.spines[:].set_visible(True)
    _entitle(axes, f"{title} (darkest: {float(shares.max()):.0%})")


def _draw_sizes(axes: "Axes", sizes: Tensor) -> None:
    """Draw the clients' numbers of samples as bars, one a row."""
    axes.barh(np.arange(len(sizes)), sizes.numpy(), height=1.0, color=_BLUE)
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(_whole(5))
    _entitle(axes, "samples of each client")


def _draw_quantiles(axes: "Axes", sizes: Tensor) -> None:
    """Draw how sizes (K, T) are spread in each experience: all, the middle half, the median."""
    at = np.arange(sizes.shape[1])
    low, quarter, median, three, high = np.quantile(sizes, (0, 0.25, 0.5, 0.75, 1), axis=0)
    for bottom, top, strength in ((low, high, 0.25), (quarter, three, 0.55)):
        axes.bar(at, top - bottom, 1.0, bottom, color=_BLUE, alpha=strength, linewidth=0)
    axes.hlines(median, at - 0.5, at + 0.5, color=INK, linewidth=1.5, clip_on=False, zorder=3)
    axes.set_xlim(-0.5, len(at) - 0.5)
    axes.set_ylim(0, max(float(high.max()), 1) * 1.02)
    axes.xaxis.set_major_locator(_whole())
    axes.yaxis.set_major_locator(_whole(5))
    axes.set_xlabel("experience", fontsize=9, color=INK)
    _entitle(axes, "samples of a client:\nall, middle half, median")


def _entitle(axes: "Axes", title: str) -> None:
    axes.set_title(title, fontsize=9, color=INK, loc="left")


def _whole(most: int = 10) -> "MaxNLocator":
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, integer=True)
