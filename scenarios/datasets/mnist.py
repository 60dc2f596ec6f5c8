"""MNIST from its four standard IDX files: 60 000 + 10 000 handwritten digits of 28x28 pixels."""

from scenarios.dataset import Dataset
from scenarios.datasets.idx_images import Source, idx_images
from scenarios.datasets.pixels import Numbers, Preprocessing

SOURCE = Source(
    name="mnist",
    title="MNIST",
    folder="MNIST",
    # mirrors and digests: torchvision 0.29, torchvision.datasets.MNIST
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    checksums={
        "train-images-idx3-ubyte.gz": "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "md5:d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "md5:9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "md5:ec29112dd5afa0611ce80d1b7f02629c",
    },
)


def mnist(
    root: str = "data",
    download: bool = False,
    expected_digest: str | None = None,
    padding: int = 0,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return MNIST (LeCun, Bottou, Bengio, Haffner 1998), or any set in the same files and sizes.

    Args:
        root: Folder that holds the files, plain or ``.gz``: in ``MNIST/raw``, ``raw`` or directly.
        download: Whether to fetch the files into ``root/MNIST/raw`` if they are not there.
        expected_digest: Refuse other content than that of this digest; None accepts any.
        padding: Black pixels added on each side, from 0; 2 makes the images 32x32.
        mean: Subtracted from every pixel, after padding and scaling to [0, 1].
        std: What every pixel is then divided by, greater than 0.

    Returns:
        See `idx_images`.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    preprocessing = Preprocessing(1, mean, std, padding)
    return idx_images(SOURCE, root, download, expected_digest, preprocessing)
