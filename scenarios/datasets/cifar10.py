"""CIFAR-10: 50 000 + 10 000 colour images of 32x32 pixels, 10 classes."""

from scenarios.dataset import Dataset
from scenarios.datasets.cifar import Source, cifar
from scenarios.datasets.pixels import Numbers, Preprocessing

SOURCE = Source(
    name="cifar10",
    title="CIFAR-10",
    pickled="cifar-10-batches-py",
    binary="cifar-10-batches-bin",
    batches=(*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
    labels=("labels",),
    # address and digest: torchvision 0.29, torchvision.datasets.CIFAR10
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    checksum="md5:c58f30108f718f92721af3b95e74349a",
)


def cifar10(
    root: str = "data", download: bool = False, mean: Numbers = 0.0, std: Numbers = 1.0
) -> Dataset:
    """Return CIFAR-10 (Krizhevsky, "Learning multiple layers of features from tiny images", 2009).

    Args:
        root: Folder that holds ``cifar-10-batches-py``, ``cifar-10-batches-bin``, or the batches.
        download: Whether to fetch the former into ``root/CIFAR-10`` if there are none.
        mean: Subtracted from every pixel in [0, 1]: one number, or one a channel.
        std: What every pixel is then divided by, greater than 0: likewise.

    Returns:
        See `cifar`. Labels: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    return cifar(SOURCE, root, download, Preprocessing(3, mean, std), "labels", 10)
