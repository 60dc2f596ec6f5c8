"""What inputs look like: a picture of a few of each topic, and of how clients see them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedlearn.review.canvas import Canvas
from fedlearn.review.topics import topic_names
from fedlearn.types import Samples, Scenario

COLUMNS, MOST_TOPICS, MOST_CLIENTS = 10, 8, 6

_CELL, _GAP = 0.5, 0.45  # inches
_MOST_PIXELS = 96  # of a side; of more, every second, third, ... is shown


def drawable(scenario: Scenario) -> bool:
    """Return whether inputs are images: of one channel, or of red, green and blue."""
    shape = scenario.input_shape
    return len(shape) == 3 and shape[0] in (1, 3) and scenario.train.x.dtype != torch.int64


def draw_samples(scenario: Scenario, path: Path) -> Path:
    """Draw test images of each topic, a row a topic; below them, how clients see the first row.

    Topics that are tested on the same images show the same, each in its own domain. Of more than
    `MOST_TOPICS` topics and `MOST_CLIENTS` clients, evenly spaced ones are shown. The clients' rows
    are there where they have views of their own, and show those without a domain.

    Args:
        scenario: Must be `drawable`.
        path: Where to.
    """
    tests, names = scenario.test_stream(), topic_names(scenario)
    shown = _spaced(len(tests), MOST_TOPICS)
    chosen = [_choose(scenario.test, tests[index].rows) for index in shown]
    blocks = [
        (
            f"{scenario.name}: test samples of each topic",
            [names[index] for index in shown],
            [tests[index].gather(rows)[0] for index, rows in zip(shown, chosen, strict=True)],
        )
    ]
    if scenario.views is not None:
        clients = _spaced(scenario.num_clients, MOST_CLIENTS)
        plain = scenario.test.inputs(chosen[0])
        seen = [plain if (view := scenario.views[k]) is None else view(plain) for k in clients]
        blocks.append(("the first row as clients see it", [f"client {k}" for k in clients], seen))

    scale, shift = _brightness(scenario.test, torch.cat(chosen))
    width = COLUMNS * _CELL * scenario.input_shape[2] / scenario.input_shape[1]
    canvas = Canvas(width, _CELL * sum(len(images) for _, _, images in blocks))
    top = 0.0
    for title, labels, images in blocks:
        height = _CELL * len(images)
        axes = canvas.axes(0, top, width, height)
        mosaic = _mosaic([(x * scale + shift).clamp(0, 1) for x in images])
        axes.imshow(mosaic.numpy(), aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        canvas.text(0, top - 0.06, title, fontsize=10, va="bottom")
        for row, label in enumerate(labels):
            at = top + (row + 0.5) * _CELL
            canvas.text(-0.08, at, label, fontsize=8, ha="right", va="center")
        top += height + _GAP
    return canvas.save(path)


def _spaced(count: int, most: int) -> list[int]:
    """Return up to `most` of the numbers 0..count-1, evenly spaced."""
    spaced: list[int] = torch.linspace(0, count - 1, min(count, most)).round().long().tolist()
    return spaced


def _choose(samples: Samples, rows: Tensor) -> Tensor:
    """Return up to `COLUMNS` of `rows`: as many of one class as of another, class by class."""
    if samples.regression:
        return rows[:COLUMNS]
    labels = samples.y[rows]
    order = labels.argsort(stable=True)
    _, counts = torch.unique_consecutive(labels[order], return_counts=True)
    place = torch.cat([torch.arange(count) for count in counts.tolist()])
    return rows[order[place.argsort(stable=True)[:COLUMNS].sort().values]]


def _brightness(samples: Samples, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (channels or 1, 1, 1), that bring inputs of a model into [0, 1].

    Of images that are kept as bytes, as they were; else black is the least of `rows`, white the
    most.
    """
    if samples.x.dtype == torch.uint8:
        scale, shift = torch.tensor(samples.std), torch.tensor(samples.mean)
    else:
        low, high = torch.aminmax(samples.inputs(rows))
        scale = 1 / (high - low).clamp(min=1e-12).view(1)
        shift = -low * scale
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


def _mosaic(images: Sequence[Tensor]) -> Tensor:
    """Return rows of images (n, channels, height, width) in [0, 1] as one: (y, x, 3)."""
    step = -(-max(images[0].shape[2:]) // _MOST_PIXELS)
    tiles = [row[:, :, ::step, ::step].expand(-1, 3, -1, -1) for row in images]
    height, width = tiles[0].shape[2:]
    gap = max(1, height // 16)
    mosaic = torch.ones(len(tiles), COLUMNS, 3, height + gap, width + gap)
    for row, tile in enumerate(tiles):
        mosaic[row, : len(tile), :, :height, :width] = tile
    return mosaic.permute(0, 3, 1, 4, 2).reshape(
        len(tiles) * (height + gap), COLUMNS * (width + gap), 3
    )
