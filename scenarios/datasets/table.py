"""A table of your own: a CSV or Parquet file, a row a sample, a column the target."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedlearn.seeding import numpy_generator
from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset, standardised
from scenarios.datasets.columns import Column, is_text, numbered, read_columns

Columns = dict[str, Column]


def table(
    path: str | None = None,
    train_path: str | None = None,
    test_path: str | None = None,
    target: str = "target",
    task: Literal["auto", "classes", "regression"] = "auto",
    features: Sequence[str] | None = None,
    categorical: Sequence[str] = (),
    tags: Sequence[str] = (),
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Return the samples of one file, split in two, or of two files.

    Numbers are standardised by the training rows. A column of text, or one named in `categorical`,
    becomes one input for each value that the training rows hold, in sorted order: 1 for that value
    and 0 for others, so a value that only test rows hold is all zeros. Classes are the target's
    distinct values, in sorted order; a regression's targets are standardised by the training rows.

    Args:
        path: A file ending in ``.parquet`` or ``.pq``, else CSV with a header, plain or packed
            (see `scenarios.files.read_bytes`). It is split by `test_fraction`.
        train_path: The training rows, in place of `path`.
        test_path: The test rows, in place of `path`; the same columns.
        target: The column to predict.
        task: What the target is; ``auto`` takes numbers that are not all whole (in Parquet, any
            column of floating type) for a regression.
        features: The columns to predict from, in this order; by default all others, as they stand
            in the training file.
        categorical: Those of the features that are categories though they look like numbers.
        tags: Columns whose distinct values, numbered in sorted order, become tags; no features.
        test_fraction: Of the rows of `path`, class by class, in (0, 1); at least one row goes to
            either side.
        seed: Of that split.

    Returns:
        Inputs (n, d) float32; labels (n,) or targets (n, 1). The digest is that of the cells, so
        it is the same for CSV and Parquet, and of how they are split and used.

    Raises:
        ValueError: A setting or a file is not as above; see `read_columns`.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"dataset.test_fraction={test_fraction}: must be greater than 0 and less than 1"
        )
    others = [target, *tags]
    _check_roles(others, features, categorical)
    coded = [*others, *categorical]
    files = _files(path, train_path, test_path)
    names = None if features is None else [*features, *others]
    train = _read(files[0], names, coded)
    if len(files) == 2:
        test = _read(files[1], list(train), coded)
    else:
        train, test = _split(files[0], train, target, task, test_fraction, seed)

    used = [name for name in train if name not in others] if features is None else features
    if not used:
        raise ValueError(f"{files[0]}: has no column to predict from")
    inputs = [
        _encoded(files[-1], name, train.pop(name), test.pop(name), name in categorical)
        for name in used
    ]
    regression = _is_regression(files[0], target, train[target], task)
    answers = (_standardised if regression else _labels)(
        files[-1], target, train[target], test[target]
    )
    known = {name: numbered(train[name], test[name]) for name in tags}
    return Dataset(
        "table",
        Samples(torch.cat([each.train for each in inputs], 1), answers.train),
        Samples(torch.cat([each.test for each in inputs], 1), answers.test),
        1 if regression else int(answers.train.max()) + 1,
        digest(
            *(raw for each in (*inputs, answers) for raw in each.raw),
            *(tag for pair in known.values() for tag in pair),
        ),
        known,
    )


@dataclass(frozen=True)
class _Encoded:
    """A column as a model sees it, (n, d) or labels (n,), and as it was, for the digest."""

    train: Tensor
    test: Tensor
    raw: tuple[Tensor, Tensor]


def _check_roles(
    others: Sequence[str], features: Sequence[str] | None, categorical: Sequence[str]
) -> None:
    used = [*others, *(features or ())]
    for name in used:
        if used.count(name) > 1 or (name in others and name in categorical):
            raise ValueError(
                f"dataset: column {name!r} can be one of target, tag and feature, once"
            )
    for name in categorical:
        if features is not None and name not in features:
            raise ValueError(f"dataset.categorical: {name!r} is not one of dataset.features")


def _files(path: str | None, train_path: str | None, test_path: str | None) -> list[Path]:
    """Return the one file or the two."""
    two = train_path is not None and test_path is not None
    if (path is None) != two or (path is not None and (train_path or test_path)):
        raise ValueError(
            f"dataset.path={path or 'null'}: name one CSV or Parquet file here, or two in "
            "dataset.train_path and dataset.test_path"
        )
    return [Path(each).expanduser() for each in (path, train_path, test_path) if each is not None]


def _read(file: Path, names: Sequence[str] | None, coded: Sequence[str]) -> Columns:
    columns = read_columns(file, names, coded)
    for name in coded:
        if name not in columns:
            raise ValueError(f"{file}: has no column {name!r}; it has {', '.join(columns)}")
    return columns


def _split(
    file: Path, columns: Columns, target: str, task: str, test_fraction: float, seed: int
) -> tuple[Columns, Columns]:
    """Return training and test rows: of each class, or of a regression's rows, at random."""
    values = columns[target]
    if _is_regression(file, target, values, task):
        values = np.zeros(len(values), np.int64)
    tested = np.zeros(len(values), dtype=bool)
    rng = numpy_generator(seed, "table-split")
    names, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    for place, (name, count) in enumerate(zip(names.tolist(), counts.tolist(), strict=True)):
        if count < 2:
            raise ValueError(
                f"{file}: column {target}: {name} stands in one row only, and a class needs one to "
                "train and one to test on (if it is a regression: dataset.task=regression)"
            )
        rows = rng.permutation(np.flatnonzero(places == place))
        tested[rows[: min(max(round(test_fraction * count), 1), count - 1)]] = True
    return (
        {name: column[~tested] for name, column in columns.items()},
        {name: column[tested] for name, column in columns.items()},
    )


def _is_regression(file: Path, target: str, values: Column, task: str) -> bool:
    if task == "regression" and is_text(values):
        raise ValueError(f"{file}: column {target}: holds text, and dataset.task=regression")
    return task == "regression" or (task == "auto" and values.dtype.kind == "f")


def _encoded(file: Path, name: str, train: Column, test: Column, is_coded: bool) -> _Encoded:
    """Return a feature: standardised numbers (n, 1), or a place (n, c) for each category."""
    if not is_coded and not is_text(train):
        return _standardised(file, name, train, test)
    if not is_coded:
        _check_alike(file, name, train, test)
    _, codes = _codes(train, test)
    known = torch.arange(int(codes[0].max()) + 1)
    train_x, test_x = ((each[:, None] == known).float() for each in codes)
    return _Encoded(train_x, test_x, codes)


def _standardised(file: Path, name: str, train: Column, test: Column) -> _Encoded:
    """Return numbers, (n, 1), standardised by the training rows."""
    _check_alike(file, name, train, test)
    exact = [torch.from_numpy(each.astype(np.float64))[:, None] for each in (train, test)]
    return _Encoded(*standardised(*exact), (exact[0], exact[1]))


def _labels(file: Path, name: str, train: Column, test: Column) -> _Encoded:
    """Return labels (n,): places among the distinct values of the training rows."""
    values, codes = _codes(train, test)
    if len(values) < 2:
        raise ValueError(f"{file}: column {name}: all rows hold {values[0]}: nothing to tell apart")
    unknown = (codes[1] < 0).nonzero()
    if len(unknown):
        raise ValueError(f"{file}: column {name}: no training row holds {test[int(unknown[0])]}")
    return _Encoded(*codes, codes)


def _check_alike(file: Path, name: str, train: Column, test: Column) -> None:
    if is_text(train) != is_text(test):
        kinds = ["text" if is_text(each) else "numbers" for each in (test, train)]
        raise ValueError(
            f"{file}: column {name}: holds {kinds[0]}, but {kinds[1]} in the training rows"
        )


def _codes(train: Column, test: Column) -> tuple[Column, tuple[Tensor, Tensor]]:
    """Return the training rows' values, sorted, and every cell's place there, -1 for none."""
    if is_text(train) != is_text(test):
        train, test = train.astype(np.str_), test.astype(np.str_)
    values, places = np.unique(train, return_inverse=True)
    tested = np.searchsorted(values, test).clip(max=len(values) - 1)
    tested = np.where(values[tested] == test, tested, -1)
    return values, (torch.from_numpy(places.ravel()).long(), torch.from_numpy(tested).long())
