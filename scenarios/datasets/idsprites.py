"""Infinite dSprites: random closed shapes at every scale, orientation and position.

After Dziadzio, Yıldız, van de Ven, Trzciński, Tuytelaars & Bethge, "Infinite dSprites for
Disentangled Continual Learning: Separating Memory Edits from Generalization" (2024), and their
package idsprites. A class is a shape: 5 to 8 random vertices around a centre, joined by straight
lines or by a periodic cubic spline, its longer axis upright. Each image shows it with four factors,
each of 32 evenly spaced values: scale in [0.5, 1], orientation in [0, 2 pi * 32 / 33], position x
and y in [0, 1] of the middle half of the image. Shapes are white before grey, one half of each is
black so that its orientation can be seen.

Deviations: images have one channel, as theirs are grey in all three; they are drawn by Pillow on a
grid four times as fine and averaged, where theirs are drawn by OpenCV; and shapes come from our own
seeds. So no image equals one of theirs, though all are drawn from the same distribution of shapes
and factors.
"""

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from fedlearn.seeding import numpy_generator
from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset
from scenarios.datasets.image_files import check_side

FACTORS = ("scale", "orientation", "position_x", "position_y")
RESOLUTION = 32
BACKGROUND, LIGHT, DARK = 169, 255, 0
SIZE = 0.45  # of a shape at scale 1, as a share of the image

_FINER = 4  # sub-pixels a side
_POINTS = 1000  # of an outline

Floats = NDArray[np.float64]


def idsprites(
    num_classes: int = 10,
    samples_per_class: int = 200,
    test_samples_per_class: int = 50,
    side: int = 32,
    seed: int = 0,
) -> Dataset:
    """Return images of random shapes; no two of a class have all factors in common.

    Args:
        num_classes: C, at least 2: how many shapes. More of them change nothing about the first.
        samples_per_class: Training samples of each class, at least 1.
        test_samples_per_class: Test samples of each class, at least 1; together no more than there
            are combinations of factors, 32 to the power of 4.
        side: Of the images, in pixels.
        seed: Of shapes and factors; the run's seed does not change the data.

    Returns:
        Inputs (n, 1, side, side), kept as bytes, class by class. The tags ``"scale"``,
        ``"orientation"``, ``"position_x"`` and ``"position_y"`` are the factors, each in 0..31.
    """
    bounds = {
        "num_classes": (num_classes, 2),
        "samples_per_class": (samples_per_class, 1),
        "test_samples_per_class": (test_samples_per_class, 1),
    }
    for key, (value, least) in bounds.items():
        if value < least:
            raise ValueError(f"dataset.{key}={value}: must be at least {least}")
    check_side(side)
    per_class = samples_per_class + test_samples_per_class
    combinations = RESOLUTION ** len(FACTORS)
    if per_class > combinations:
        raise ValueError(
            f"dataset.samples_per_class={samples_per_class}: with {test_samples_per_class} to test "
            f"on these are more than the {combinations} combinations of factors"
        )
    images = np.empty((num_classes, per_class, 1, side, side), dtype=np.uint8)
    factors = np.empty((num_classes, per_class, len(FACTORS)), dtype=np.int64)
    for label in range(num_classes):
        outline = draw_outline(numpy_generator(seed, "idsprites-shape", label))
        rng = numpy_generator(seed, "idsprites-factors", label)
        drawn = rng.choice(combinations, per_class, replace=False)
        factors[label] = np.stack(np.unravel_index(drawn, (RESOLUTION,) * len(FACTORS)), axis=1)
        for place, chosen in enumerate(factors[label].tolist()):
            images[label, place, 0] = render(outline, side, *chosen)
    labels = np.repeat(np.arange(num_classes)[:, None], per_class, axis=1)
    stores, known = [], []
    for part in (slice(samples_per_class), slice(samples_per_class, None)):
        x, y, tags = (
            torch.from_numpy(each[:, part].reshape(-1, *each.shape[2:]))
            for each in (images, labels, factors)
        )
        stores.append(Samples(x, y))
        known.append(tags)
    return Dataset(
        "idsprites",
        stores[0],
        stores[1],
        num_classes,
        digest(*(tensor for store in stores for tensor in (store.x, store.y))),
        {name: (known[0][:, at], known[1][:, at]) for at, name in enumerate(FACTORS)},
    )


def draw_outline(rng: Generator) -> Floats:
    """Return a random closed shape (2, points): x to the right, y down, its box of sides 1.

    Its centre of mass is the origin.
    """
    from scipy.interpolate import splev, splprep  # type: ignore[import-untyped]

    number = int(rng.integers(5, 9))
    sector = np.pi / number
    radii = rng.normal(1.0, 0.4, number).clip(0.1, 1.9)
    angles = rng.normal(0.0, 0.5 * sector, number).clip(-0.999 * sector, 0.999 * sector)
    angles += 2 * sector * np.arange(number)
    vertices = radii * np.stack([np.cos(angles), np.sin(angles)])
    closed = np.column_stack([vertices, vertices[:, 0]])
    spline, _ = splprep(closed, s=0, per=True, k=3 if rng.random() < 0.5 else 1)
    outline: Floats = np.array(splev(np.linspace(0, 1, _POINTS), spline))

    (xx, xy), (_, yy) = np.cov(outline)
    outline = _turn(np.pi / 2 - np.arctan2(2 * xy, xx - yy) / 2) @ outline  # longer axis upright
    outline -= outline.mean(1, keepdims=True)
    outline /= np.ptp(outline, axis=1, keepdims=True)
    finely = 512
    rows, columns = np.nonzero(_filled(SIZE * finely * outline + finely / 2, finely))
    centre = np.array([[columns.mean()], [rows.mean()]]) + 0.5 - finely / 2
    return outline - centre / (SIZE * finely)


def render(
    outline: Floats, side: int, scale: int, orientation: int, position_x: int, position_y: int
) -> NDArray[np.uint8]:
    """Return the image (side, side) of a shape with the factors given, each in 0..31."""
    size, last = side * _FINER, RESOLUTION - 1
    angle = 2 * np.pi * RESOLUTION / (RESOLUTION + 1) * orientation / last
    centre = size * (0.25 + 0.5 * np.array([[position_x / last], [position_y / last]]))
    scaled = SIZE * size * (0.5 + 0.5 * scale / last) * outline
    inside = _filled(_turn(angle) @ scaled + centre, size)
    at = np.arange(size) + 0.5
    across = (at - centre[0]) * np.cos(angle) + (at[:, None] - centre[1]) * np.sin(angle)
    fine = np.where(inside, np.where(across > 0, DARK, LIGHT), BACKGROUND)
    image: Floats = fine.reshape(side, _FINER, side, _FINER).mean((1, 3))
    return image.round().astype(np.uint8)


def _turn(angle: float) -> Floats:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _filled(outline: Floats, size: int) -> NDArray[np.bool_]:
    """Return which pixels (size, size) lie in an outline (2, points)."""
    from PIL import Image, ImageDraw

    picture = Image.new("1", (size, size))
    ImageDraw.Draw(picture).polygon(outline.T.ravel().tolist(), fill=1)
    return np.asarray(picture)
