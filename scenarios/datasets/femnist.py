"""FEMNIST: 62 digits and letters of 28x28 pixels, each with its writer, from LEAF's files."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.dataset import Dataset
from scenarios.datasets.leaf import leaf_dataset

NUM_CLASSES = 62
SIDE = 28


def femnist(root: str = "data", max_writers: int | None = None) -> Dataset:
    """Return FEMNIST of Caldas et al. 2018, "LEAF: A Benchmark for Federated Settings".

    Classes 0-9 are digits, 10-35 capital and 36-61 small letters. A few writers need not have drawn
    all of them, so a class may have no samples. Pixels are as LEAF writes them.

    Args:
        root: Folder that holds LEAF's ``train`` and ``test``: in ``femnist/data``, ``data`` or
            directly.
        max_writers: Take the first so many writers only, at least 1; null for all. See
            `leaf_dataset`.

    Returns:
        Inputs (n, 1, 28, 28), bytes; labels in 0..61; tag ``writer``, the writer's place among the
        names, sorted. The digest is that of pixels, labels and tags.

    Raises:
        ValueError: There are no such files, or one is damaged.
    """
    return leaf_dataset("femnist", root, _encode, NUM_CLASSES, "writer", "max_writers", max_writers)


def _encode(images: list[Any], labels: list[Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return images (n, 1, 28, 28) of n lists of 784 numbers k / 255, and labels (n,)."""
    for row, image in enumerate(images):
        if not isinstance(image, list) or len(image) != SIDE * SIDE:
            raise ValueError(f"sample {row}: is no list of {SIDE * SIDE} numbers")
    given = np.array(images)
    if given.dtype.kind not in "if" or given.ndim != 2:
        raise ValueError("a pixel is no number")
    exact = given * 255.0
    pixels = np.rint(exact)
    wrong = ~((pixels >= 0) & (pixels <= 255) & (np.abs(exact - pixels) < 1e-3))
    if wrong.any():
        row, place = np.argwhere(wrong)[0]
        raise ValueError(
            f"sample {row}: pixel {place} is {given[row, place]}, must be one of 0, 1/255, ..., 1"
        )
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < NUM_CLASSES:
            raise ValueError(f"sample {row}: label {label!r} must be in 0..{NUM_CLASSES - 1}")
    return pixels.astype(np.uint8).reshape(-1, 1, SIDE, SIDE), np.array(labels, np.int64)
