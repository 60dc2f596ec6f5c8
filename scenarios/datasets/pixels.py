"""Labelled images on their way from files to a `Dataset`: joined, checked, padded, normalised."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset

Bytes = NDArray[np.uint8]

Images = tuple[Bytes, Bytes]
"""Images (n, channels, height, width), or (n, height, width) of one channel, and labels (n,)."""

Numbers = float | Sequence[float]
"""One number, or one a channel."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to images before they are used: settings that every image data set has.

    Attributes:
        channels: Of the images.
        mean: Subtracted from every pixel, after padding and scaling to [0, 1].
        std: What every pixel is then divided by, greater than 0.
        padding: Black pixels added on each side, from 0.

    Raises:
        ValueError: If a setting is out of bounds; nothing needs to be read to find out.
    """

    channels: int
    mean: Numbers = 0.0
    std: Numbers = 1.0
    padding: int = 0

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"dataset.padding={self.padding}: must be at least 0")
        for key, given in (("mean", self.mean), ("std", self.std)):
            numbers = _tuple(given)
            if len(numbers) not in (1, self.channels):
                either = f"one number or {self.channels}" if self.channels > 1 else "one number"
                raise ValueError(f"dataset.{key}={given}: must be {either}, not {len(numbers)}")
            if not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"dataset.{key}={given}: must be finite")
            if key == "std" and min(numbers) <= 0:
                raise ValueError(f"dataset.std={given}: must be greater than 0")

    @property
    def changes_pixels(self) -> bool:
        """Whether the images are used otherwise than on the scale of 0 to 1."""
        return self.padding > 0 or any(_tuple(self.mean)) or set(_tuple(self.std)) != {1.0}

    def dataset(self, name: str, train: Images, test: Images, num_classes: int) -> Dataset:
        """Return the images as bytes, with what is to be done to them.

        The digest is that of the arrays given, and of the settings where they change anything.
        """
        content = [torch.from_numpy(array) for array in (*train, *test)]
        if self.changes_pixels:
            mean, std = (self._by_channel(each) for each in (self.mean, self.std))
            content.append(torch.tensor([self.padding, *mean, *std]))
        stores = self._samples(*train), self._samples(*test)
        return Dataset(name, stores[0], stores[1], num_classes, digest(*content))

    def _by_channel(self, numbers: Numbers) -> tuple[float, ...]:
        given = _tuple(numbers)
        return given * (self.channels // len(given))

    def _samples(self, images: Bytes, labels: Bytes) -> Samples:
        x = torch.from_numpy(images).view(len(images), self.channels, *images.shape[-2:])
        if self.padding:
            x = F.pad(x, (self.padding,) * 4)
        y = torch.from_numpy(labels.astype(np.int64))
        return Samples(x, y, _tuple(self.mean), _tuple(self.std))


def check_labels(path: Path, labels: NDArray[np.integer], allowed: range) -> None:
    """Check that the labels that `path` holds, (n,), lie in `allowed`.

    Raises:
        ValueError: One does not; the message names the file and the row.
    """
    wrong = np.flatnonzero((labels < allowed[0]) | (labels > allowed[-1]))
    if len(wrong):
        raise ValueError(
            f"{path}: label {labels[wrong[0]]} in row {wrong[0]}, "
            f"must be in {allowed[0]}..{allowed[-1]}"
        )


def joined(parts: Iterable[Images]) -> Images:
    """Join images of 3x32x32 as they are read: room for them and one part more is enough."""
    images, labels = np.empty((0, 3, 32, 32), np.uint8), np.empty(0, np.uint8)
    for more_images, more_labels in parts:
        begin = len(images)
        # grows where it stands: nobody else holds a view of it
        images.resize((begin + len(more_images), 3, 32, 32), refcheck=False)
        images[begin:] = more_images
        labels = np.concatenate([labels, more_labels])
    return images, labels


def _tuple(numbers: Numbers) -> tuple[float, ...]:
    return tuple(map(float, numbers if isinstance(numbers, Sequence) else (numbers,)))
