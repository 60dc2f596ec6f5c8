"""Diabetes: 442 patients and the progression of their disease, shipped with scikit-learn."""

import torch

from fedlearn.seeding import numpy_generator
from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset, standardised


def diabetes(test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Return the data of Efron, Hastie, Johnstone, Tibshirani, "Least Angle Regression" (2004).

    A regression: from age, sex, body mass index, blood pressure and six blood measurements to the
    progression of the disease a year later. Inputs and targets are standardised by the training
    samples. The split does not follow the run's seed unless told to (``dataset.seed=${seed}``).

    Args:
        test_fraction: Share of the patients to test on, in (0, 1); at least one goes to either
            side.
        seed: Of the split.

    Returns:
        Inputs (n, 10), targets (n, 1).
    """
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"dataset.test_fraction={test_fraction}: must be greater than 0 and less than 1"
        )
    from sklearn.datasets import load_diabetes

    measured, progression = load_diabetes(return_X_y=True, scaled=False)
    order = numpy_generator(seed, "diabetes-split").permutation(len(measured))
    num_tested = min(max(round(test_fraction * len(order)), 1), len(order) - 1)
    tested, trained = order[:num_tested], order[num_tested:]
    inputs, targets = torch.from_numpy(measured), torch.from_numpy(progression)[:, None]
    train_x, test_x = standardised(inputs[trained], inputs[tested])
    train_y, test_y = standardised(targets[trained], targets[tested])
    return Dataset(
        "diabetes",
        Samples(train_x, train_y),
        Samples(test_x, test_y),
        1,
        digest(train_x, train_y, test_x, test_y),
    )
