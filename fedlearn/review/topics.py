"""Topics in pictures: what they are called, and which colour stands for which."""

from collections.abc import Sequence

import torch

from fedlearn.review.canvas import INK, Canvas, palette
from fedlearn.types import Scenario

MOST_NAMES = 12
"""Of more colours, a legend names the ends of the scale and its middle only."""

_MOST_CLASSES = 6  # of more, a name gives the number
_SQUARE = "\N{BLACK SQUARE}"


def in_step(scenario: Scenario) -> bool:
    """Return whether experience i is about topic i for every client."""
    orders = scenario.orders
    return bool((orders == torch.arange(orders.shape[1])).all())


def topic_names(scenario: Scenario) -> list[str]:
    """Return what to call each topic: by its classes, where those differ between topics."""
    if len(set(scenario.classes)) == 1:
        return [f"topic {index}" for index in range(len(scenario.topics))]
    return [f"topic {index}: {_listed(c)}" for index, c in enumerate(scenario.classes)]


def _listed(classes: tuple[int, ...]) -> str:
    if len(classes) > _MOST_CLASSES:
        return f"{len(classes)} classes, {classes[0]} to {classes[-1]}"
    return f"class{'es' if len(classes) > 1 else ''} {', '.join(map(str, classes))}"


def draw_legend(canvas: Canvas, names: Sequence[str], left: float, top: float) -> float:
    """Name the colours of a palette, one below the other.

    Args:
        canvas: Where to.
        names: Of all colours; of many, three are shown.
        left: Inches from the left.
        top: Inches from the top.

    Returns:
        Where the legend ends, in inches from the top.
    """
    coloured = list(zip(palette(len(names)), names, strict=True))
    if len(names) > MOST_NAMES:
        coloured = [coloured[0], coloured[len(names) // 2], coloured[-1]]
    for colour, name in coloured:
        canvas.text(left, top + 0.1, _SQUARE, fontsize=11, color=colour, va="center")
        canvas.text(left + 0.17, top + 0.1, name, fontsize=8, color=INK, va="center")
        top += 0.19
    return top
