"""scikit-learn's handwritten digits: 1797 real images of 8x8 pixels, shipped with the library."""

import numpy as np
import torch

from fedlearn.seeding import numpy_generator
from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset


def digits(test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Return the digits, split into training and test samples class by class.

    The split does not follow the run's seed unless told to (``dataset.seed=${seed}``), so that runs
    with different seeds are tested on the same images.

    Args:
        test_fraction: Share of each class to test on, in (0, 1); at least one image of each class
            goes to either side.
        seed: Of the split.

    Returns:
        Inputs (n, 1, 8, 8) in [0, 1], labels in 0..9.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"dataset.test_fraction={test_fraction}: must be greater than 0 and less than 1"
        )
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rng = numpy_generator(seed, "digits-split")
    tested = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(labels == label))
        tested[rows[: min(max(round(test_fraction * len(rows)), 1), len(rows) - 1)]] = True

    x = torch.from_numpy((pixels / 16).astype(np.float32)).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    test_rows = torch.from_numpy(tested)
    train, test = Samples(x[~test_rows], y[~test_rows]), Samples(x[test_rows], y[test_rows])
    return Dataset("digits", train, test, 10, digest(train.x, train.y, test.x, test.y))
