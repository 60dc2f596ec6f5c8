"""SVHN: 73 257 + 26 032 house numbers' digits in colour, 32x32 pixels, and 531 131 easier ones."""

from pathlib import Path

import numpy as np

from scenarios.dataset import Dataset
from scenarios.datasets.downloads import fetch_files
from scenarios.datasets.pixels import Images, Numbers, Preprocessing, check_labels, joined
from scenarios.files import find

# address and digests: torchvision 0.29, torchvision.datasets.SVHN
MIRRORS = ("http://ufldl.stanford.edu/housenumbers/",)
CHECKSUMS = {
    "train_32x32.mat": "md5:e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "md5:eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "md5:a93ce644f1a588dc4d68dda5feec44a7",
}
PLACES = ("SVHN", ".")


def svhn(
    root: str = "data",
    download: bool = False,
    extra: bool = False,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return the cropped digits of SVHN (Netzer et al., NIPS Workshop on Deep Learning 2011).

    Args:
        root: Folder that holds ``train_32x32.mat`` and ``test_32x32.mat``, in ``SVHN`` or directly.
        download: Whether to fetch what is missing into ``root/SVHN``.
        extra: Whether to append the samples of ``extra_32x32.mat`` to the training samples. Loading
            then needs 3.6 GB of memory, to keep 1.9 GB.
        mean: Subtracted from every pixel in [0, 1]: one number, or one a channel.
        std: What every pixel is then divided by, greater than 0: likewise.

    Returns:
        Inputs (n, 3, 32, 32), kept as bytes, in the files' order; labels in 0..9: the files' label
        10 is the digit 0. The digest is that of images and labels, and of mean and deviation where
        they change anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    preprocessing = Preprocessing(3, mean, std)
    names = [name for name in CHECKSUMS if extra or not name.startswith("extra")]
    files = find(root, names, PLACES)
    if not files and download:
        wanted = {name: CHECKSUMS[name] for name in names}
        fetch_files("SVHN", Path(root).expanduser() / PLACES[0], wanted, MIRRORS)
        files = find(root, names, PLACES)
    if not files:
        raise ValueError(
            f"dataset.root={root}: neither it nor SVHN in it holds SVHN's files "
            f"({', '.join(names)}); point dataset.root at the folder that does, or set "
            "dataset.download=true"
        )
    trained = [files[name] for name in names if not name.startswith("test")]
    train, test = joined(map(_read, trained)), joined([_read(files["test_32x32.mat"])])
    return preprocessing.dataset("svhn", train, test, 10)


def _read(path: Path) -> Images:
    """Return images (n, 3, 32, 32), a view, and labels (n,) of a MATLAB file.

    Its ``X`` is (32, 32, 3, n) bytes, its ``y`` (n, 1) labels in 1..10.
    """
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        held = loadmat(path, variable_names=("X", "y"))
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: is no MATLAB file that can be read: {reason}") from error
    images, labels = held.get("X"), held.get("y")
    if images is None or images.dtype != np.uint8 or images.shape[:-1] != (32, 32, 3):
        raise ValueError(f"{path}: must hold X, (32, 32, 3, n) bytes")
    if labels is None or labels.dtype.kind not in "iu" or labels.shape != (images.shape[3], 1):
        raise ValueError(f"{path}: must hold y, ({images.shape[3]}, 1) whole numbers")
    labels = labels[:, 0]
    check_labels(path, labels, range(1, 11))
    return images.transpose(3, 2, 0, 1), (labels % 10).astype(np.uint8)
