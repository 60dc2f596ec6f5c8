"""LEAF's files: JSON, in which every sample is some user's.

Caldas et al. 2018, "LEAF: A Benchmark for Federated Settings". Its ``preprocess.sh`` writes
``data/train/*.json`` and ``data/test/*.json``; each file holds ``users``, a list of names,
``num_samples``, a list of counts, and ``user_data``, which maps a name to lists ``x`` and ``y``.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset
from scenarios.files import read_bytes

Encode = Callable[[list[Any], list[Any]], tuple[NDArray[Any], NDArray[np.int64]]]
"""Turns a user's ``x`` and ``y`` into inputs (n, *input_shape) and labels (n,).

Its ValueError says which sample is wrong, and how.
"""


@dataclass(frozen=True)
class _Part:
    """Samples to train or to test on, user by user.

    Attributes:
        x: Inputs (n, *input_shape).
        y: Labels (n,).
        users: Names, each once, in the files' order.
        sizes: How many samples each of them has.
    """

    x: NDArray[Any]
    y: NDArray[np.int64]
    users: Sequence[str]
    sizes: Sequence[int]


def leaf_dataset(
    name: str,
    root: str,
    encode: Encode,
    num_classes: int,
    tag: str,
    limit: str,
    max_users: int | None,
) -> Dataset:
    """Return the samples under `root`; a class need not have any.

    One file at a time is in memory, beside what is kept of those before.

    Args:
        name: LEAF's name of the data set.
        root: Folder that holds ``train`` and ``test``: in ``<name>/data``, ``data`` or directly.
        encode: What makes arrays of a user's samples.
        num_classes: C.
        tag: What to call the tag: a sample's user, as a place among the users' names, sorted.
        limit: The name of the setting that `max_users` comes from.
        max_users: Take the training samples of the first so many users only, at least 1, in the
            order of the files' names and of the users in each, and their test samples; None for
            all.

    Raises:
        ValueError: There are no such files, or one is not as above; the message names file, user
            and sample.
    """
    if max_users is not None and max_users < 1:
        raise ValueError(f"dataset.{limit}={max_users}: must be at least 1, or null for all")
    folder = _find(name, root)
    train = _read(folder / "train", encode, None, max_users)
    wanted = None if max_users is None else set(train.users)
    test = _read(folder / "test", encode, wanted, len(wanted) if wanted else None)
    if wanted is not None and not len(test.y):
        raise ValueError(
            f"dataset.{limit}={max_users}: {folder / 'test'} has no samples of these users (LEAF "
            "split by user, -t user); set it to null"
        )
    names = {user: place for place, user in enumerate(sorted({*train.users, *test.users}))}
    users = (_tag(train, names), _tag(test, names))
    content = [torch.from_numpy(array) for array in (train.x, train.y, test.x, test.y)]
    return Dataset(
        name,
        Samples(content[0], content[1]),
        Samples(content[2], content[3]),
        num_classes,
        digest(*content, *users),
        {tag: users},
        every_class=False,
    )


def _tag(part: _Part, names: Mapping[str, int]) -> Tensor:
    """Return the number of each sample's user, (n,)."""
    numbers = torch.tensor([names[user] for user in part.users], dtype=torch.int64)
    return numbers.repeat_interleave(torch.tensor(part.sizes, dtype=torch.int64))


def _find(name: str, root: str) -> Path:
    top = Path(root).expanduser()
    folders = [top / name / "data", top / "data", top]
    for folder in folders:
        if all(any((folder / part).glob("*.json")) for part in ("train", "test")):
            return folder
    for folder in folders:
        if any((folder / "all_data").glob("*.json")):
            raise ValueError(
                f"dataset.root={root}: {folder} has all_data only; let LEAF's preprocess.sh split "
                "it (-t sample)"
            )
    raise ValueError(
        f"dataset.root={root}: none of {', '.join(map(str, folders))} holds LEAF's {name} "
        "(train/*.json and test/*.json); make them with LEAF's preprocess.sh (-t sample)"
    )


def _read(
    folder: Path, encode: Encode, wanted: Collection[str] | None, max_users: int | None
) -> _Part:
    """Return the samples of the users `wanted`, or of all; of at most `max_users` of them."""
    x, y = np.empty(0), np.empty(0, np.int64)
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.json")):
        if len(sizes) == max_users:
            break
        found = []
        for user, inputs, labels in _users(path):
            if len(sizes) == max_users or (wanted is not None and user not in wanted):
                continue
            if user in sizes:
                raise ValueError(f"{path}: user {user!r} was there before")
            try:
                found.append(encode(inputs, labels))
            except ValueError as error:
                raise ValueError(f"{path}: user {user!r}: {error}") from error
            sizes[user] = len(labels)
        if found:
            more_x, more_y = zip(*found, strict=True)
            x, y = _extended(x, more_x), _extended(y, more_y)
    return _Part(x, y, list(sizes), list(sizes.values()))


def _extended(values: NDArray[Any], more: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return `values` with `more` at its end, without a moment at which both are there twice."""
    if not values.size:
        return np.concatenate(more)
    begin = len(values)
    # grows where it stands: nobody else holds a view of it
    values.resize((begin + sum(map(len, more)), *values.shape[1:]), refcheck=False)
    np.concatenate(more, out=values[begin:])
    return values


def _users(path: Path) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Yield name, ``x`` and ``y`` of each user of a file who has any."""
    try:
        held = json.loads(read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON: {error}") from error
    try:
        users, counts, data = held["users"], held["num_samples"], held["user_data"]
        if len(users) != len(counts):
            raise ValueError(f"{path}: names {len(users)} users, but {len(counts)} num_samples")
        for user, count in zip(users, counts, strict=True):
            x, y = data[user]["x"], data[user]["y"]
            if not len(x) == len(y) == count:
                raise ValueError(
                    f"{path}: user {user!r}: {len(x)} x, {len(y)} y, num_samples says {count}"
                )
            if count:
                yield str(user), x, y
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: is not in LEAF's format (users, num_samples, user_data): {error!r}"
        ) from error
