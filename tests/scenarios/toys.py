"""Datasets for tests that are about something else."""

import torch
from torch import Tensor

from fedlearn.types import Samples
from scenarios.dataset import Dataset


def labelled(labels: Tensor, num_classes: int, shape: tuple[int, ...] = (1,)) -> Dataset:
    """Return a dataset with these training labels, and one test sample of each class."""
    tested = torch.arange(num_classes)
    train, test = (Samples(torch.zeros(len(y), *shape), y) for y in (labels, tested))
    return Dataset("toy", train, test, num_classes, "", every_class=False)


def toy(num_classes: int, shape: tuple[int, ...]) -> Dataset:
    """Return a dataset of one sample of each class."""
    return labelled(torch.arange(num_classes), num_classes, shape)
