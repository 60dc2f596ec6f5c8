"""Arrays of your own: NumPy files, a torch file, or what a program has in memory."""

import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.arrivals import parts_of
from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset, standardised

Array = NDArray[Any] | Tensor

STORES = ("x_train", "y_train", "x_test", "y_test")
_TAG = re.compile(r"tag_(\w+)_(train|test)")


def from_arrays(
    name: str,
    x_train: Array,
    y_train: Array,
    x_test: Array,
    y_test: Array,
    tags: Mapping[str, tuple[Array, Array]] | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    num_classes: int | None = None,
) -> Dataset:
    """Return a data set of NumPy arrays or torch tensors, which it copies only where it must.

    Inputs of unsigned bytes are read as images, ``(x / 255 - mean) / std``; those of other whole
    numbers as tokens (int64); floating ones and truth values as they are, in float32, to which
    float64 is rounded. Inputs are not standardised. Whole ``y`` are labels from 0; floating ones
    the targets of a regression, which are standardised by the training samples.

    Args:
        name: What the data set is called.
        x_train: (n, *input_shape).
        y_train: (n,), or (n, 1), or of a regression (n, num_outputs).
        x_test: (m, *input_shape).
        y_test: As `y_train`, (m, ...).
        tags: By name, whole numbers from 0 of training samples (n,) and of test samples (m,).
        mean: Of bytes only, on the scale of 0 to 1: one number, or one a channel.
        std: Likewise, greater than 0.
        num_classes: C, where these are one of several machines' parts of a whole, in which classes
            may be missing; either store may then be empty. None for the largest label + 1.

    Returns:
        The digest is that of the converted arrays, before targets are
        standardised, and of tags, `mean` and `std` where given.

    Raises:
        ValueError: An array is empty or of no such type, or see `Dataset`; the message starts with
            the array's name or the data set's.
    """
    partial = num_classes is not None
    x = [_inputs(key, each, partial) for key, each in (("x_train", x_train), ("x_test", x_test))]
    y = [_answers(key, each, partial) for key, each in (("y_train", y_train), ("y_test", y_test))]
    if y[0].is_floating_point() != y[1].is_floating_point():
        raise ValueError(f"y_train is {y[0].dtype} and y_test {y[1].dtype}: labels or targets?")
    for part, inputs, answers in zip(("train", "test"), x, y, strict=True):
        if len(inputs) != len(answers):
            raise ValueError(f"x_{part} holds {len(inputs)} samples, y_{part} {len(answers)}")
    known = {
        tag: (_whole(f"tag_{tag}_train", train, partial), _whole(f"tag_{tag}_test", test, partial))
        for tag, (train, test) in (tags or {}).items()
    }
    channels = x[0].shape[1] if x[0].ndim == 4 else 1
    change = _numbers("mean", mean, channels), _numbers("std", std, channels)
    used = () if change == ((0.0,), (1.0,)) else tuple(torch.tensor(each) for each in change)
    content = digest(
        *(tensor for pair in zip(x, y, strict=True) for tensor in pair),
        *(tag for _, pair in sorted(known.items()) for tag in pair),
        *used,
    )
    if y[0].is_floating_point():
        if partial:
            raise ValueError(f"dataset.num_classes={num_classes}: y_train holds targets, no labels")
        if y[0].shape[1] != y[1].shape[1]:
            raise ValueError(
                f"y_train has {y[0].shape[1]} targets a sample, y_test {y[1].shape[1]}"
            )
        num_classes, (train_y, test_y) = y[0].shape[1], standardised(*y)
    else:
        train_y, test_y = y
        num_classes = num_classes or int(max(each.max() for each in y)) + 1
    return Dataset(
        name,
        Samples(x[0], train_y, *change),
        Samples(x[1], test_y, *change),
        num_classes,
        content,
        known,
        partial=partial,
    )


def arrays(
    path: str | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    num_classes: int | None = None,
) -> Dataset:
    """Return the arrays ``x_train``, ``y_train``, ``x_test`` and ``y_test``; see `from_arrays`.

    Beside them there may be tags, each as a pair ``tag_<name>_train`` and ``tag_<name>_test``.
    Nothing that could run code is read: no pickled objects.

    Args:
        path: An ``.npz`` file, a ``.pt`` or ``.pth`` file with a dictionary of tensors, or a folder
            with an ``.npy`` file for each array; or a folder that these come to one by one, see
            `fedlearn.arrivals.parts_of`.
        mean: Of images of bytes: one number, or one a channel.
        std: Likewise, greater than 0.
        num_classes: Where the file is one of several machines' parts of a whole: how many classes
            the whole has. ``x_train`` and ``y_train``, or ``x_test`` and ``y_test``, may then be
            missing. None for the largest label + 1.

    Raises:
        ValueError: The file is missing, damaged or lacks an array, or see `from_arrays`.
    """
    if path is None:
        raise ValueError(
            "dataset.path=null: name an .npz file, a .pt file or a folder of .npy files that hold "
            f"{', '.join(STORES)}"
        )
    place = Path(path).expanduser()
    held = _joined(place) if parts_of(place) else _read(place)
    if num_classes is not None:
        held = _completed(held)
    tags: dict[str, dict[str, Array]] = {}
    for key, array in held.items():
        named = _TAG.fullmatch(key)
        if named:
            tags.setdefault(named[1], {})[named[2]] = array
        elif key not in STORES:
            raise ValueError(
                f"{place}: holds {key!r}; {', '.join(STORES)} and tag_<name>_train ..."
            )
    expected = [*STORES, *(f"tag_{tag}_{part}" for tag in tags for part in ("train", "test"))]
    missing = [key for key in expected if key not in held]
    if missing:
        raise ValueError(f"{place}: lacks {', '.join(missing)}")
    pairs = {tag: (parts["train"], parts["test"]) for tag, parts in tags.items()}
    try:
        return from_arrays(
            "arrays",
            held["x_train"],
            held["y_train"],
            held["x_test"],
            held["y_test"],
            tags=pairs,
            mean=mean,
            std=std,
            num_classes=num_classes,
        )
    except ValueError as error:
        if str(error).startswith("dataset."):  # a setting, not the file
            raise
        raise ValueError(f"{place}: {error}") from error


def _joined(place: Path) -> dict[str, Array]:
    """Return the arrays of all parts, one after the other."""
    parts = [_read(part) for part in parts_of(place)]
    for number, part in enumerate(parts):
        if part.keys() != parts[0].keys():
            other = sorted(part.keys() ^ parts[0].keys())
            raise ValueError(f"{place}: parts 0 and {number} do not both hold {', '.join(other)}")
    try:
        return {key: np.concatenate([np.asarray(part[key]) for part in parts]) for key in parts[0]}
    except ValueError as error:
        raise ValueError(f"{place}: parts do not fit together: {error}") from error


def _completed(held: dict[str, Array]) -> dict[str, Array]:
    """Return arrays with empty ones in place of a whole store that is missing."""
    for part, other in (("train", "test"), ("test", "train")):
        there = {key for key in held if key.endswith(f"_{part}")}
        if not there:
            held |= {
                f"{key.removesuffix(other)}{part}": array[:0]
                for key, array in held.items()
                if key.endswith(f"_{other}")
            }
    return held


def _read(place: Path) -> dict[str, Array]:
    """Return the arrays by name."""
    try:
        if place.is_dir():
            files = sorted(place.glob("*.npy"))
            return {file.stem: np.load(file, allow_pickle=False) for file in files}
        if place.suffix == ".npz":
            # opened here: NumPy leaves a damaged file open
            with place.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        if place.suffix in (".pt", ".pth"):
            held = torch.load(place, map_location="cpu", weights_only=True)
            if isinstance(held, dict) and all(isinstance(each, Tensor) for each in held.values()):
                return {str(key): each for key, each in held.items()}
            raise ValueError("is no dictionary of tensors")
    except pickle.UnpicklingError as error:  # its own message says how to run foreign code
        raise ValueError(f"{place}: is damaged, or holds more than tensors") from error
    except (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{place}: cannot be read: {reason}") from error
    raise ValueError(f"dataset.path={place}: must be a folder, or end in .npz, .pt or .pth")


def _tensor(key: str, array: Array, partial: bool = False) -> Tensor:
    """Return the array as a tensor in the CPU's memory, shared where that is possible."""
    if isinstance(array, Tensor):
        tensor = array.detach().cpu()
    else:
        given = np.asarray(array)
        if given.dtype.kind not in "biuf" or given.dtype.itemsize > 8:
            raise ValueError(f"{key} is of type {given.dtype}, must be of numbers")
        if given.dtype.kind == "u" and given.dtype.itemsize > 1:  # torch has little use for these
            if given.size and given.max() > np.iinfo(np.int64).max:
                raise ValueError(f"{key} holds {given.max()}, more than an int64 can")
            given = given.astype(np.int64)
        # torch wants the machine's own byte order, and memory that may be written to
        native = given.astype(given.dtype.newbyteorder("="), copy=False)
        tensor = torch.from_numpy(np.require(native, requirements=["C", "W"]))
    if not len(tensor.shape) or not (len(tensor) or partial):
        raise ValueError(f"{key} is empty")
    return tensor.contiguous()


def _inputs(key: str, array: Array, partial: bool) -> Tensor:
    x = _tensor(key, array, partial)
    if x.dtype == torch.uint8:
        return x
    return x.float() if x.is_floating_point() or x.dtype == torch.bool else _whole(key, x, partial)


def _answers(key: str, array: Array, partial: bool) -> Tensor:
    """Return labels (n,) int64 or targets (n, outputs) float64."""
    y = _tensor(key, array, partial)
    if y.is_floating_point():
        y = y.double()
        return y[:, None] if y.ndim == 1 else y
    return _whole(key, y.flatten() if y.ndim == 2 and y.shape[1] == 1 else y, partial)


def _whole(key: str, array: Array, partial: bool = False) -> Tensor:
    values = _tensor(key, array, partial)
    if values.is_floating_point() or values.is_complex():
        raise ValueError(f"{key} is of type {values.dtype}, must be of whole numbers")
    return values.long()


def _numbers(key: str, given: float | Sequence[float], channels: int) -> tuple[float, ...]:
    numbers = tuple(map(float, given if isinstance(given, Sequence) else (given,)))
    if len(numbers) not in (1, channels) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"dataset.{key}={given}: must be one finite number, or one a channel")
    if key == "std" and min(numbers) <= 0:
        raise ValueError(f"dataset.std={given}: must be greater than 0")
    return numbers
