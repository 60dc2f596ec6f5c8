"""Made-up samples of any shape: one random prototype a class, plus noise."""

import math

import numpy as np
import torch

from fedlearn.seeding import numpy_generator
from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset


def synthetic(
    num_classes: int = 10,
    input_shape: tuple[int, ...] = (1, 8, 8),
    samples_per_class: int = 100,
    test_samples_per_class: int = 20,
    noise: float = 1.0,
    seed: int = 0,
) -> Dataset:
    """Return samples drawn around class prototypes: x = prototype[y] + noise * N(0, 1).

    The prototypes are standard normal, so two of them lie about sqrt(2 d) apart in d dimensions,
    and a classifier can tell the classes apart while `noise` stays well below sqrt(d).

    Args:
        num_classes: C, at least 2.
        input_shape: Shape of one input; every size at least 1.
        samples_per_class: Training samples of each class, at least 1.
        test_samples_per_class: Test samples of each class, at least 1.
        noise: Standard deviation of the noise, at least 0.
        seed: Of prototypes and noise; the run's seed does not change the data.
    """
    bounds = {
        "num_classes": (num_classes, 2),
        "samples_per_class": (samples_per_class, 1),
        "test_samples_per_class": (test_samples_per_class, 1),
    }
    for key, (value, least) in bounds.items():
        if value < least:
            raise ValueError(f"dataset.{key}={value}: must be at least {least}")
    shape = tuple(input_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"dataset.input_shape={list(shape)}: needs sizes of at least 1")
    if not 0 <= noise < math.inf:
        raise ValueError(f"dataset.noise={noise}: must be at least 0 and finite")

    rng = numpy_generator(seed, "synthetic")
    prototypes = rng.standard_normal((num_classes, *shape), dtype=np.float32)

    def draw(per_class: int) -> Samples:
        labels = np.tile(np.arange(num_classes), per_class)
        inputs = rng.standard_normal((len(labels), *shape), dtype=np.float32)
        inputs *= np.float32(noise)
        inputs += prototypes[labels]
        return Samples(torch.from_numpy(inputs), torch.from_numpy(labels))

    train, test = draw(samples_per_class), draw(test_samples_per_class)
    content = digest(train.x, train.y, test.x, test.y)
    return Dataset("synthetic", train, test, num_classes, content)
