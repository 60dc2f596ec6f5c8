"""USPS: 7 291 + 2 007 handwritten digits of 16x16 pixels, from envelopes; in LIBSVM's text files.

Format: https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass.html#usps. A line is an
image: its label, 1 to 10 for the digits 0 to 9, then 256 times ``index:value``, row by row, with
indices from 1 and values from -1, the paper, to 1, the ink.
"""

from pathlib import Path

import numpy as np

from scenarios.dataset import Dataset
from scenarios.datasets.downloads import fetch_files
from scenarios.datasets.pixels import Images, Numbers, Preprocessing, check_labels
from scenarios.files import find, read_bytes

SIDE = 16
INDICES = np.arange(1, SIDE**2 + 1)
NAMES = ("usps", "usps.t")
PLACES = ("USPS", ".")
# address and digests: torchvision 0.29, torchvision.datasets.USPS
MIRRORS = ("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",)
CHECKSUMS = {
    "usps.bz2": "md5:ec16c51db3855ca6c91edd34d0e9b197",
    "usps.t.bz2": "md5:8ea070ee2aca1ac39742fdd1ef5ed118",
}


def usps(
    root: str = "data",
    download: bool = False,
    padding: int = 0,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return USPS (Hull, "A database for handwritten text recognition research", 1994).

    A value v becomes the byte floor(255 (v + 1) / 2), as in torchvision.

    Args:
        root: Folder that holds ``usps`` and ``usps.t``, plain or ``.bz2``, in ``USPS`` or directly.
        download: Whether to fetch what is missing into ``root/USPS``.
        padding: Black pixels added on each side, from 0; 6 makes the images 28x28 as MNIST's.
        mean: Subtracted from every pixel, after padding and scaling to [0, 1].
        std: What every pixel is then divided by, greater than 0.

    Returns:
        Inputs (n, 1, 16 + 2 * padding, 16 + 2 * padding), kept as bytes; labels in 0..9. The digest
        is that of images and labels, and of the last three settings where they change anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    preprocessing = Preprocessing(1, mean, std, padding)
    files = find(root, NAMES, PLACES)
    if not files and download:
        fetch_files("USPS", Path(root).expanduser() / PLACES[0], CHECKSUMS, MIRRORS)
        files = find(root, NAMES, PLACES)
    if not files:
        raise ValueError(
            f"dataset.root={root}: neither it nor USPS in it holds USPS's files (usps[.bz2] and "
            "usps.t[.bz2]); point dataset.root at the folder that does, or set "
            "dataset.download=true"
        )
    train, test = (_read(files[name]) for name in NAMES)
    return preprocessing.dataset("usps", train, test, 10)


def _read(path: Path) -> Images:
    """Return images (n, 16, 16) and labels (n,)."""
    lines = read_bytes(path).splitlines()
    labels, values = np.empty(len(lines), np.int64), np.empty((len(lines), SIDE**2), np.float32)
    for row, line in enumerate(lines):
        try:
            label, *numbers = line.replace(b":", b" ").split()
            labels[row] = int(label)
            pairs = np.array(list(map(float, numbers))).reshape(-1, 2)
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: row {row} is no label and index:value pairs") from error
        if line.count(b":") != SIDE**2 or not np.array_equal(pairs[:, 0], INDICES):
            raise ValueError(f"{path}: row {row} must have values of 1 to {SIDE**2}, in this order")
        if not (np.abs(pairs[:, 1]) <= 1).all():  # also where one is not a number
            raise ValueError(f"{path}: row {row} has a value that is not in [-1, 1]")
        values[row] = pairs[:, 1]
    check_labels(path, labels, range(1, 11))
    images = ((values + 1) / 2 * 255).astype(np.uint8).reshape(-1, SIDE, SIDE)
    return images, (labels - 1).astype(np.uint8)
