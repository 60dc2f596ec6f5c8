"""Characters as tokens: places in an alphabet."""

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.uint32]
"""Unicode code points."""


def code_points(text: str) -> Points:
    """Return the code point of each character of `text`, (len(text),)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def places(points: Points, alphabet: Points) -> NDArray[np.int64]:
    """Return the place of each code point in `alphabet`, whose own ascend; -1 where it has none."""
    found = np.searchsorted(alphabet, points).clip(max=len(alphabet) - 1)
    return np.where(alphabet[found] == points, found, -1)
