"""MNIST-M and Synth Digits in the MATLAB files that the authors of Digits-Five published.

Both sets are Ganin & Lempitsky's (2015): MNIST before patches of photographs, and digits rendered
in many fonts. The arrays, in files of MATLAB's format 5::

    mnistm_with_label.mat   train, test               (n, 28, 28, 3) bytes
                            label_train, label_test   (n, 10), one-hot
    syn_number.mat          train_data, test_data     (n, 32, 32, 3) bytes
                            train_label, test_label   (n, 1), the digit
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenarios.files import find

NUM_CLASSES = 10

_FILES = {"mnistm": "mnistm_with_label.mat", "synth": "syn_number.mat"}
_SIDES = {"mnistm": 28, "synth": 32}
_ARRAYS = {
    "mnistm": (("train", "label_train"), ("test", "label_test")),
    "synth": (("train_data", "train_label"), ("test_data", "test_label")),
}
_PLACES = ("digits_five", "Digit-Five", ".")


def mat_digits(root: str, source: Literal["mnistm", "synth"]) -> list[tuple[Tensor, Tensor]]:
    """Return training and test samples: images (n, 3, side, side) uint8, labels (n,) int64.

    Args:
        root: Folder that holds the source's file, in ``digits_five``, ``Digit-Five`` or directly.
        source: Which of the two; the side is 28 or 32.

    Raises:
        ValueError: The file is missing or damaged, or does not hold the arrays that it should.
    """
    name = _FILES[source]
    path = find(root, [name], _PLACES).get(name)
    if path is None:
        raise ValueError(
            f"dataset.root={root}: neither it nor its digits_five holds {name}, one of the files "
            f"of Digits-Five; put it there, or leave {source} out of dataset.sources"
        )
    content = _load(path, [each for pair in _ARRAYS[source] for each in pair])
    return [
        _checked(path, content, images, labels, _SIDES[source])
        for images, labels in _ARRAYS[source]
    ]


def _load(path: Path, names: Sequence[str]) -> dict[str, Any]:
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        with path.open("rb") as file:
            content: dict[str, Any] = loadmat(file, variable_names=list(names))
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: is no file of MATLAB's format 5: {reason}") from error
    for name in names:
        if not isinstance(content.get(name), np.ndarray):
            raise ValueError(f"{path}: holds no array {name}")
    return content


def _checked(
    path: Path, content: dict[str, Any], images: str, labels: str, side: int
) -> tuple[Tensor, Tensor]:
    """Return images (n, 3, side, side) and labels, given as numbers or one-hot."""
    pixels = content.pop(images)
    if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3):
        raise ValueError(
            f"{path}: {images} is {pixels.dtype} of shape {pixels.shape}, must be uint8 of shape "
            f"(n, {side}, {side}, 3)"
        )
    numbers = _numbers(path, labels, content[labels])
    if len(numbers) != len(pixels):
        raise ValueError(f"{path}: {labels} has {len(numbers)} rows, but {images} {len(pixels)}")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(numbers)


def _numbers(path: Path, name: str, labels: NDArray[Any]) -> NDArray[np.int64]:
    rows = labels.reshape(len(labels), -1) if labels.dtype.kind in "uif" else np.empty((0, 0))
    if rows.shape[1] == 1:
        right = np.isin(rows[:, 0], np.arange(NUM_CLASSES))
        numbers = np.where(right, rows[:, 0], 0)
    elif rows.shape[1] == NUM_CLASSES:
        right = np.isin(rows, (0, 1)).all(1) & (rows.sum(1) == 1)
        numbers = rows.argmax(1)
    else:
        raise ValueError(
            f"{path}: {name} is {labels.dtype} of shape {labels.shape}, must be numbers of shape "
            f"(n, 1) or (n, {NUM_CLASSES})"
        )
    if not right.all():
        row = int(np.flatnonzero(~right)[0])
        raise ValueError(f"{path}: {name} is {rows[row].tolist()} in row {row}, must be a digit")
    return numbers.astype(np.int64)
