"""A Hugging Face data set that was saved on this disk."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scenarios.dataset import Dataset
from scenarios.datasets.arrays import from_arrays
from scenarios.datasets.columns import Column, from_arrow, is_text, numbered

if TYPE_CHECKING:
    import datasets
    from PIL.Image import Image

_BATCH = 1000


def hugging_face(
    path: str | None = None,
    input: str | Sequence[str] = "image",
    label: str = "label",
    train: str = "train",
    test: str = "test",
    side: int | None = None,
    tags: Sequence[str] = (),
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Dataset:
    """Return what ``datasets.DatasetDict.save_to_disk`` wrote; nothing is downloaded.

    Inputs are a column of images, which become bytes, grey if the first of them is and else in
    three colours; or of lists or arrays of numbers of one shape, which `from_arrays` takes; or
    columns of numbers, side by side in float32. Labels of text are numbered in sorted order, whole
    ones must be from 0, and floating ones are the targets of a regression.

    Args:
        path: The folder that ``save_to_disk`` made.
        input: The column of inputs, or a list of columns of numbers.
        label: The column to predict.
        train: The split to train on.
        test: The split to test on.
        side: Resize images to so many pixels each way (bilinear), at least 1; None where all are of
            one size.
        tags: Columns whose distinct values, numbered in sorted order, become tags.
        mean: Of bytes, on the scale of 0 to 1: one number, or one a channel.
        std: Likewise, greater than 0.

    Raises:
        ValueError: There is no such data set, it lacks a split or a column, or a value is missing,
            not finite, or unlike the others; the message names split, column and row, from 0.
    """
    if side is not None and side < 1:
        raise ValueError(f"dataset.side={side}: must be at least 1, or null")
    if path is None:
        raise ValueError("dataset.path=null: name the folder that DatasetDict.save_to_disk made")
    place = Path(path).expanduser()
    inputs = [input] if isinstance(input, str) else list(input)
    splits = _load(place, (train, test), (*inputs, label, *tags))
    x = [_inputs(split, inputs, side) for split in splits]
    y_train, y_test = (split.column(label) for split in splits)
    if is_text(y_train) and is_text(y_test):
        y_train, y_test = (each.numpy() for each in numbered(y_train, y_test))
    try:
        return from_arrays(
            "hugging_face",
            x[0],
            y_train,
            x[1],
            y_test,
            tags={tag: numbered(*(split.column(tag) for split in splits)) for tag in tags},
            mean=mean,
            std=std,
        )
    except ValueError as error:
        if str(error).startswith("dataset."):  # a setting, not the files
            raise
        raise ValueError(f"{place}: {error}") from error


class _Split:
    """The rows of one split, and where they are from, for complaints."""

    def __init__(self, rows: "datasets.Dataset", place: str) -> None:
        self.rows, self.place = rows, place

    def column(self, name: str) -> Column:
        """Return a column of numbers or text."""
        table: Any = self.rows.select_columns([name]).with_format("arrow")[:]
        try:
            return from_arrow(table.column(name), is_coded=True)
        except ValueError as error:
            raise self.complaint(name, str(error)) from error

    def complaint(self, name: str, what: str) -> ValueError:
        return ValueError(f"{self.place}, column {name}: {' '.join(what.split())}")


def _load(place: Path, names: Sequence[str], columns: Sequence[str]) -> list[_Split]:
    """Return the splits of the given names, which have the given columns."""
    try:
        from datasets import DatasetDict, load_from_disk
    except ImportError as error:
        raise ValueError(
            'dataset=hugging_face: needs the package datasets: pip install "fedlearn[data]"'
        ) from error
    if not place.is_dir():  # what it takes for an address it would look for elsewhere
        raise ValueError(f"dataset.path={place}: is no folder")
    try:
        held = load_from_disk(str(place))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{place}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(held, DatasetDict):
        raise ValueError(
            f"{place}: holds one Dataset, not a DatasetDict with the splits {' and '.join(names)} "
            "(Dataset.train_test_split makes one)"
        )
    for name in names:
        if name not in held:
            raise ValueError(f"{place}: has no split {name!r}; it has {', '.join(map(str, held))}")
        for column in columns:
            if column not in held[name].column_names:
                known = ", ".join(held[name].column_names)
                raise ValueError(f"{place}: split {name} has no column {column!r}; it has {known}")
        if not len(held[name]):
            raise ValueError(f"{place}: split {name} holds no rows")
    return [_Split(held[name], f"{place}: split {name}") for name in names]


def _inputs(split: _Split, names: Sequence[str], side: int | None) -> NDArray[Any]:
    """Return images (n, channels, height, width), arrays (n, ...) or numbers (n, columns)."""
    from datasets import Image, Value

    feature = split.rows.features[names[0]] if len(names) == 1 else None
    if isinstance(feature, Image):
        return _images(split, names[0], side)
    if feature is not None and not isinstance(feature, Value):
        return _arrays(split, names[0], feature)
    columns = [split.column(name) for name in names]
    for name, column in zip(names, columns, strict=True):
        if is_text(column):
            raise split.complaint(name, "holds text, inputs must be images or numbers")
    return np.column_stack([column.astype(np.float32) for column in columns])


def _arrays(split: _Split, name: str, feature: Any) -> NDArray[Any]:
    while hasattr(feature, "feature"):  # a list's is that of what it lists
        feature = feature.feature
    try:
        kind = np.dtype(feature.dtype)
        rows = split.rows.select_columns([name]).with_format("numpy", dtype=kind)
        x, begin = np.empty(0, kind), 0
        for batch in rows.iter(_BATCH):
            values = np.asarray(batch[name], kind)
            if not begin:
                x = np.empty((len(split.rows), *values.shape[1:]), kind)
            x[begin : begin + len(values)] = values
            begin += len(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise split.complaint(name, f"is no column of numbers of one shape: {error}") from error
    return x


def _images(split: _Split, name: str, side: int | None) -> NDArray[np.uint8]:
    x: NDArray[np.uint8] = np.empty(0, np.uint8)
    mode = ""
    images = iter(split.rows.select_columns([name]).with_format(None)[name])
    for row in range(len(split.rows)):
        try:
            image: Image | None = next(images)
            if image is None:
                raise ValueError("is empty")
            mode = mode or ("L" if image.mode in ("1", "L") else "RGB")
            pixels = _pixels(image, mode, side)
            if not row:
                x = np.empty((len(split.rows), *pixels.shape), np.uint8)
            if pixels.shape != x.shape[1:]:
                height, width = pixels.shape[1:]
                raise ValueError(
                    f"is {height}x{width}, the first image {x.shape[2]}x{x.shape[3]}; set "
                    "dataset.side to have all of one size"
                )
        except (OSError, ValueError) as error:
            raise split.complaint(name, f"row {row}: {error}") from error
        x[row] = pixels
    return x


def _pixels(image: "Image", mode: str, side: int | None) -> NDArray[np.uint8]:
    """Return (channels, height, width)."""
    from PIL.Image import Resampling

    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise ValueError(f"is of mode {image.mode}, must be of 8 bits a channel")
    if mode == "L" and image.mode not in ("1", "L"):
        raise ValueError("has colours, and the first image is grey")
    image = image.convert(mode)
    if side is not None:
        image = image.resize((side, side), Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
