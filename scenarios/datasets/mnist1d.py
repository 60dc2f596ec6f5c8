"""MNIST-1D: one-dimensional curves, each a distorted template of a digit; made up, not measured."""

import torch

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset

LENGTH = 40


def mnist1d(
    num_samples: int = 5000,
    test_fraction: float = 0.2,
    shuffle_positions: bool = False,
    seed: int = 42,
) -> Dataset:
    """Return MNIST-1D (Greydanus, Kobak, arXiv:2011.14439), as the package ``mnist1d`` makes it.

    With the default settings this is the published data set: its 4000 training and 1000 test
    samples in their order. As there, inputs are standardised by the mean and the deviation of all
    values, test samples included. The run's seed does not change the data.

    Args:
        num_samples: Training and test samples, a tenth of each class; a multiple of 10, at least
            20.
        test_fraction: Share of the samples to test on, in (0, 1), rounded to whole samples, at
            least one on either side. Samples are split at random, not class by class.
        shuffle_positions: Whether to put the 40 positions in another order, the same for all
            samples, so that neighbours tell nothing.
        seed: Of the samples, in 0..2**32 - 1.

    Returns:
        Inputs (n, 1, 40) float32, labels in 0..9.

    Raises:
        ValueError: If a setting is out of bounds, the package is not installed, or so few samples
            are asked for that a class is missing on one side.
    """
    if num_samples < 20 or num_samples % 10:
        raise ValueError(
            f"dataset.num_samples={num_samples}: must be at least 20, and a multiple of 10"
        )
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"dataset.test_fraction={test_fraction}: must be greater than 0 and less than 1"
        )
    if not 0 <= seed < 2**32:
        raise ValueError(f"dataset.seed={seed}: must be in 0..{2**32 - 1}")
    try:
        from mnist1d.data import get_dataset_args, make_dataset  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(
            f"dataset=mnist1d: needs the package mnist1d ({error}): pip install 'fedlearn[data]'"
        ) from error

    settings = get_dataset_args()
    settings.num_samples, settings.seed = num_samples, seed
    settings.shuffle_seq, settings.final_seq_length = shuffle_positions, LENGTH
    settings.train_split = 1.0
    with borrowed_global_rng(seed):  # the package seeds the global generators itself
        made = make_dataset(settings)
    inputs = torch.from_numpy(made["x"]).float().view(-1, 1, LENGTH)
    labels = torch.from_numpy(made["y"])
    num_tested = min(max(round(test_fraction * num_samples), 1), num_samples - 1)
    num_trained = num_samples - num_tested
    train = Samples(inputs[:num_trained], labels[:num_trained])
    test = Samples(inputs[num_trained:], labels[num_trained:])
    content = digest(train.x, train.y, test.x, test.y)
    return Dataset("mnist1d", train, test, 10, content)
