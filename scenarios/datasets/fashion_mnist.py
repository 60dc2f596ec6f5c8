"""Fashion-MNIST from its four IDX files: 60 000 + 10 000 pictures of clothes of 28x28 pixels."""

from scenarios.dataset import Dataset
from scenarios.datasets.idx_images import Source, idx_images
from scenarios.datasets.pixels import Numbers, Preprocessing

SOURCE = Source(
    name="fashion_mnist",
    title="Fashion-MNIST",
    folder="FashionMNIST",
    # mirror and digests: torchvision 0.29, torchvision.datasets.FashionMNIST
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    checksums={
        "train-images-idx3-ubyte.gz": "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "md5:25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "md5:bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "md5:bb300cfdad3c16e7a12a480ee83cd310",
    },
)


def fashion_mnist(
    root: str = "data",
    download: bool = False,
    expected_digest: str | None = None,
    padding: int = 0,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return Fashion-MNIST (Xiao, Rasul, Vollgraf, arXiv:1708.07747).

    Args:
        root: Folder that holds the files, plain or ``.gz``: in ``FashionMNIST/raw``, ``raw`` or
            directly.
        download: Whether to fetch the files into ``root/FashionMNIST/raw`` if they are not there.
        expected_digest: Refuse other content than that of this digest; None accepts any.
        padding: Black pixels added on each side, from 0; 2 makes the images 32x32.
        mean: Subtracted from every pixel, after padding and scaling to [0, 1].
        std: What every pixel is then divided by, greater than 0.

    Returns:
        See `idx_images`. Labels: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker,
        bag, ankle boot.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    preprocessing = Preprocessing(1, mean, std, padding)
    return idx_images(SOURCE, root, download, expected_digest, preprocessing)
