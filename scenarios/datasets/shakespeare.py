"""Shakespeare: which character comes after 80 others in a role's lines, from LEAF's files."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scenarios.dataset import Dataset
from scenarios.datasets.characters import code_points, places
from scenarios.datasets.leaf import leaf_dataset

ALPHABET = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""LEAF's own 80 characters, ``ALL_LETTERS`` in its models/utils/language_utils.py."""

LENGTH = 80


def shakespeare(root: str = "data", max_users: int | None = None) -> Dataset:
    """Return Shakespeare of Caldas et al. 2018, "LEAF: A Benchmark for Federated Settings".

    Every role of every play is a user (McMahan et al. 2017). The classes are the characters of
    LEAF's alphabet, some of which are so rare that they may have no samples.

    Args:
        root: Folder that holds LEAF's ``train`` and ``test``: in ``shakespeare/data``, ``data`` or
            directly.
        max_users: Take the first so many roles only, at least 1; null for all. See `leaf_dataset`.
            All 4.2 million samples take 2.7 GB.

    Returns:
        Inputs (n, 80) int64 and labels (n,), both places in the alphabet, 0..79; tag ``user``, the
        role's place among the names, sorted. The digest is that of inputs, labels and tags.

    Raises:
        ValueError: There are no such files, or one is damaged or has another character.
    """
    return leaf_dataset("shakespeare", root, _encode, len(ALPHABET), "user", "max_users", max_users)


def _encode(
    strings: list[Any], following: list[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens (n, 80) of n strings, and those (n,) of the characters after them."""
    for row, pair in enumerate(zip(strings, following, strict=True)):
        for value, length in zip(pair, (LENGTH, 1), strict=True):
            if not isinstance(value, str) or len(value) != length:
                raise ValueError(f"sample {row}: {value!r} is no string of length {length}")
    return _tokens(strings).reshape(-1, LENGTH), _tokens(following)


def _tokens(strings: list[str]) -> NDArray[np.int64]:
    """Return the tokens of strings of one length, one after the other."""
    text = "".join(strings)
    tokens = places(code_points(text), code_points(ALPHABET))
    wrong = np.flatnonzero(tokens < 0)
    if len(wrong):
        row, place = divmod(int(wrong[0]), len(strings[0]))
        raise ValueError(f"sample {row}: {text[wrong[0]]!r} at {place} is not in LEAF's alphabet")
    return tokens
