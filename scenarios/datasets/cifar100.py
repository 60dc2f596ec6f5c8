"""CIFAR-100: 50 000 + 10 000 colour images of 32x32 pixels, 100 classes in 20 groups."""

from typing import Literal

from scenarios.dataset import Dataset
from scenarios.datasets.cifar import Source, cifar
from scenarios.datasets.pixels import Numbers, Preprocessing

SOURCE = Source(
    name="cifar100",
    title="CIFAR-100",
    pickled="cifar-100-python",
    binary="cifar-100-binary",
    batches=("train", "test"),
    labels=("coarse_labels", "fine_labels"),
    # address and digest: torchvision 0.29, torchvision.datasets.CIFAR100
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    checksum="md5:eb9058c3a382ffc7106e4002c42a8d85",
)
NUM_CLASSES = {"fine": 100, "coarse": 20}


def cifar100(
    root: str = "data",
    download: bool = False,
    labels: Literal["fine", "coarse"] = "fine",
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return CIFAR-100 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

    Args:
        root: Folder that holds ``cifar-100-python``, ``cifar-100-binary``, or their files.
        download: Whether to fetch the former into ``root/CIFAR-100`` if there are none.
        labels: ``fine``, the 100 classes, or ``coarse``, their 20 groups of five.
        mean: Subtracted from every pixel in [0, 1]: one number, or one a channel.
        std: What every pixel is then divided by, greater than 0: likewise.

    Returns:
        See `cifar`.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    if labels not in NUM_CLASSES:
        raise ValueError(f"dataset.labels={labels}: must be one of {', '.join(NUM_CLASSES)}")
    return cifar(
        SOURCE,
        root,
        download,
        Preprocessing(3, mean, std),
        f"{labels}_labels",
        NUM_CLASSES[labels],
    )
