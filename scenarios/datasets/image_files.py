"""Image files in folders: listed in a fixed order, decoded into one tensor of bytes.

Nothing is skipped in silence: whatever lies among the images and is neither an image nor hidden
(its name begins with a dot) is an error that names the path.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenarios.dataset import Dataset
from scenarios.datasets.pixels import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What is decoded. Not all that Pillow can read: for EPS it would start another program."""

_MODES = {1: "L", 3: "RGB"}
_EIGHT_BITS = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "CMYK", "YCbCr")
_CHUNK = 64  # files that a thread decodes at a time


def folders(place: Path, hint: str = "") -> list[Path]:
    """Return the folders in `place`, by name.

    Raises:
        ValueError: There are none, or there is a file among them; the message ends with `hint`.
    """
    return _members(place, Path.is_dir, "folder", "file", hint)


def files(place: Path, hint: str = "") -> list[Path]:
    """Return the files in `place`, by name.

    Raises:
        ValueError: There are none, or there is a folder among them; the message ends with `hint`.
    """
    return _members(place, Path.is_file, "file", "folder", hint)


def _members(
    place: Path, is_right: Callable[[Path], bool], right: str, wrong: str, hint: str
) -> list[Path]:
    hint = hint and f"; {hint}"
    try:
        found = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{place}: cannot be listed: {error.strerror}{hint}") from error
    for path in found:
        if not is_right(path):
            raise ValueError(f"{path}: is a {wrong} where {right}s are expected{hint}")
    if not found:
        raise ValueError(f"{place}: is empty, must hold {right}s{hint}")
    return found


@dataclass(frozen=True)
class Listing:
    """Images that are not read yet: where they lie, and what is known of them.

    Attributes:
        paths: The files, n of them.
        labels: The class of each.
        tags: What else is known of each, by name; see `Dataset`.
    """

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    tags: dict[str, list[int]] = field(default_factory=dict)

    def add(self, paths: Sequence[Path], label: int, tags: Mapping[str, int]) -> None:
        """Append images of one class, with the same tags (and always tags of the same names)."""
        self.paths.extend(paths)
        self.labels.extend([label] * len(paths))
        for name, value in tags.items():
            self.tags.setdefault(name, []).extend([value] * len(paths))

    def chosen(self, rows: Sequence[int]) -> "Listing":
        """Return the images of `rows` alone, in this order."""
        return Listing(
            [self.paths[row] for row in rows],
            [self.labels[row] for row in rows],
            {name: [values[row] for row in rows] for name, values in self.tags.items()},
        )


def load(
    name: str,
    train: Listing,
    test: Listing,
    num_classes: int,
    preprocessing: Preprocessing,
    side: int | None = None,
    original: int | None = None,
) -> Dataset:
    """Return a data set of images: read as `decode` does, the digest that of pixels and labels.

    Raises:
        ValueError: A file cannot be used; the message begins with its path.
    """
    content = [
        (decode(part.paths, preprocessing.channels, side, original).numpy(), np.array(part.labels))
        for part in (train, test)
    ]
    tags = {
        key: (torch.tensor(values), torch.tensor(test.tags[key]))
        for key, values in train.tags.items()
    }
    return replace(preprocessing.dataset(name, content[0], content[1], num_classes), tags=tags)


def decode(
    paths: Sequence[Path], channels: int, side: int | None = None, original: int | None = None
) -> Tensor:
    """Return the images of `paths` as bytes, (n, channels, height, width), in their order.

    They are decoded by threads straight into the tensor. Transparency is dropped.

    Args:
        paths: At least one.
        channels: 1 for shades of grey, 3 for red, green and blue; colours are converted.
        side: Cut the middle square out of each image and resize it, with Pillow's bilinear filter,
            to so many pixels a side; None keeps images as they are, and all must be of one size.
        original: Refuse images that are not squares of so many pixels a side.

    Raises:
        ValueError: A file is no image or damaged, has more than 8 bits a channel, or is of another
            size. Of several such files, the first is named.
    """
    from PIL import Image

    Image.init()
    width, height = (side, side) if side else _read(paths[0], channels, None, original).size
    images = torch.empty(len(paths), channels, height, width, dtype=torch.uint8)
    pixels: NDArray[np.uint8] = images.numpy()

    def fill(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(paths))):
            image = _read(paths[row], channels, side, original)
            if image.size != (width, height):
                raise ValueError(
                    f"{paths[row]}: is {image.width} x {image.height} pixels, but "
                    f"{paths[0].name} is {width} x {height}: set dataset.side to give all one size"
                )
            content = np.asarray(image)
            pixels[row] = content.transpose(2, 0, 1) if channels == 3 else content

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(fill, range(0, len(paths), _CHUNK)):
            pass  # raises what a thread raised, and then cancels those to come
    return images


def _read(path: Path, channels: int, side: int | None, original: int | None) -> "Picture":
    """Return one image, converted, and resized where a `side` is given."""
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as opened:
            image = opened.convert("RGBA") if "transparency" in opened.info else opened.copy()
    except Exception as error:  # a damaged image can raise anything
        reason = " ".join(str(error).split()).replace(f" '{path}'", "")
        raise ValueError(f"{path}: is no image that can be read: {reason}") from error
    if image.mode not in _EIGHT_BITS:
        raise ValueError(f"{path}: is of Pillow's mode {image.mode}, must have 8 bits a channel")
    if original is not None and image.size != (original, original):
        raise ValueError(
            f"{path}: is {image.width} x {image.height} pixels, must be {original} x {original}"
        )
    converted = image.convert(_MODES[channels])
    if side is None:
        return converted
    edge = min(converted.size)
    left, top = (converted.width - edge) // 2, (converted.height - edge) // 2
    square = converted.crop((left, top, left + edge, top + edge))
    return square.resize((side, side), Image.Resampling.BILINEAR)


def check_side(side: int | None) -> None:
    """Check the setting `side`.

    Raises:
        ValueError: It is less than 1.
    """
    if side is not None and side < 1:
        raise ValueError(f"dataset.side={side}: must be at least 1")
