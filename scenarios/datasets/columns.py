"""Columns of a table, from a CSV or a Parquet file: numbers, or values that are only told apart.

CSV as in RFC 4180: a header, commas, double quotes around cells that need them, UTF-8. A blank line
is no row. Every cell that is asked for must hold something, and every number must be finite.
"""

import csv
import io
import math
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scenarios.files import read_bytes

Column = NDArray[Any]
"""(n,): float64 numbers; of a coded column int64, float64 or text, whichever holds all of it."""

PARQUET = (".parquet", ".pq")


def read_columns(
    path: Path, names: Sequence[str] | None, coded: Collection[str]
) -> dict[str, Column]:
    """Return columns of the file at `path`: Parquet by its ending, else CSV (plain, .gz, ...).

    Args:
        path: The file.
        names: The columns to read, in this order; None for all, in the file's.
        coded: Those among them whose values are only told apart: classes, categories, tags. Any
            other is made of numbers if its first cell is one, and then all must be; else all of it
            is text, and none may be.

    Raises:
        ValueError: The file cannot be read, lacks a column or has one twice, has no rows or rows of
            different lengths, or a cell is empty, not finite, or not like the rest of its column.
    """
    columns = (
        _read_parquet(path, names, coded)
        if path.suffix.lower() in PARQUET
        else _read_csv(path, names, coded)
    )
    if not all(len(column) for column in columns.values()):
        raise ValueError(f"{path}: holds no rows")
    return columns


def is_text(column: Column) -> bool:
    """Whether a column holds text."""
    return column.dtype.kind == "U"


def numbered(train: Column, test: Column) -> tuple[Tensor, Tensor]:
    """Return both as int64 from 0: the place of each value among all distinct ones, sorted."""
    _, places = np.unique(np.concatenate([train, test]), return_inverse=True)
    both = torch.from_numpy(places.astype(np.int64))
    return both[: len(train)].clone(), both[len(train) :].clone()


def _places(path: Path, header: Sequence[str], names: Sequence[str] | None) -> dict[str, int]:
    """Return where each of `names` stands in `header`."""
    if not header:
        raise ValueError(f"{path}: is empty")
    for name in header:
        if header.count(name) > 1:
            raise ValueError(f"{path}: has more than one column {name!r}")
    for name in names or ():
        if name not in header:
            raise ValueError(f"{path}: has no column {name!r}; it has {', '.join(header)}")
    return {name: header.index(name) for name in (header if names is None else names)}


def _read_csv(path: Path, names: Sequence[str] | None, coded: Collection[str]) -> dict[str, Column]:
    text = io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, [])
        places = _places(path, header, names)
        columns: dict[str, array[float] | list[str]] = {}
        for line, cells in _rows(path, reader, len(header)):
            for name, place in places.items():
                try:
                    _append(columns, name, cells[place], name in coded)
                except ValueError as error:
                    raise ValueError(f"{path}: line {line}, column {name}: {error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: is no CSV file in UTF-8 (after line {reader.line_num}): {error}"
        ) from error
    empty: list[str] = []
    return {name: _as_array(columns.get(name, empty), name in coded) for name in places}


def _rows(path: Path, reader: Any, width: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, with the number of its last line, the header's being 1."""
    for cells in reader:
        if len(cells) == width:
            yield reader.line_num, cells
        elif cells:
            raise ValueError(
                f"{path}: line {reader.line_num}: has {len(cells)} cells, its header {width}"
            )


def _append(
    columns: dict[str, "array[float] | list[str]"], name: str, cell: str, is_coded: bool
) -> None:
    """Append a cell to its column, which the first one makes of numbers or of text."""
    if not cell.strip():
        raise ValueError("is empty")
    number = _number(cell)
    if number is not None and not math.isfinite(number):
        raise ValueError(f"{cell!r} is not finite")
    if name not in columns:
        columns[name] = [] if is_coded or number is None else array("d")
    column = columns[name]
    if isinstance(column, array):
        if number is None:
            raise ValueError(
                f"{cell!r} is no number, unlike those before; correct it, or name the column in "
                "dataset.categorical"
            )
        column.append(number)
        return
    if number is not None and not is_coded:
        raise ValueError(
            f"{cell!r} is a number, unlike those before; correct it, or name the column in "
            "dataset.categorical"
        )
    column.append(cell)


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python's own 1_000 is no number elsewhere
    except ValueError:
        return None


def _as_array(column: "array[float] | list[str]", is_coded: bool) -> Column:
    if isinstance(column, array):
        return np.frombuffer(column, np.float64)
    if is_coded and all(_number(cell) is not None for cell in column):
        try:
            return np.array([int(cell) for cell in column], np.int64)
        except (ValueError, OverflowError):
            return np.array(column, np.float64)
    return np.array(column, np.str_)


def _read_parquet(
    path: Path, names: Sequence[str] | None, coded: Collection[str]
) -> dict[str, Column]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            f'{path}: Parquet needs the package pyarrow: pip install "fedlearn[data]"'
        ) from error
    try:
        file = ParquetFile(path)
        places = _places(path, file.schema_arrow.names, names)
        read = file.read(columns=list(places))
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    columns = {}
    for name in places:
        try:
            columns[name] = from_arrow(read.column(name), name in coded)
        except ValueError as error:  # what Arrow raises for numbers that do not fit is one
            raise ValueError(f"{path}: column {name}: {error}") from error
    return columns


def from_arrow(column: Any, is_coded: bool) -> Column:
    """Return a `pyarrow.ChunkedArray` as numbers or text.

    Raises:
        ValueError: A value is missing, not finite, or neither a number, text nor a truth value;
            the message names the row, from 0.
    """
    import pyarrow as pa

    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise ValueError(f"row {row}: is empty")
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        text = np.array(column.to_pylist(), np.str_)
        blank = np.flatnonzero(np.strings.str_len(np.strings.strip(text)) == 0)
        if len(blank):
            raise ValueError(f"row {blank[0]}: is empty")
        return text
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if not whole and not pa.types.is_floating(kind):
        raise ValueError(f"is of type {kind}; must be numbers, text or true and false")
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    numbers: Column = column.cast(pa.int64() if whole and is_coded else pa.float64()).to_numpy()
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if len(wrong):
        raise ValueError(f"row {wrong[0]}: {numbers[wrong[0]]} is not finite")
    return numbers
