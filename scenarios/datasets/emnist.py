"""EMNIST from its IDX files: up to 814 255 handwritten digits and letters of 28x28 pixels."""

from pathlib import Path
from typing import Literal

import numpy as np

from scenarios.dataset import Dataset
from scenarios.datasets.downloads import fetch_archive
from scenarios.datasets.idx_images import listed, read_labelled
from scenarios.datasets.pixels import Images, Numbers, Preprocessing
from scenarios.files import find

Split = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]

LABELS: dict[Split, range] = {
    "byclass": range(62),  # 0-9, A-Z, a-z
    "bymerge": range(47),  # 0-9, A-Z, and the small letters that do not look like their capitals
    "balanced": range(47),
    "letters": range(1, 27),  # both cases in one
    "digits": range(10),
    "mnist": range(10),
}
"""The labels in the files of each split."""

PLACES = ("EMNIST/raw", "EMNIST/raw/gzip", "raw", "gzip", ".")
# address and digest: torchvision 0.29, torchvision.datasets.EMNIST
URL = "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip"
CHECKSUM = "md5:58c8d27c78d21e728a6bc7b3cc06412e"


def emnist(
    split: Split = "balanced",
    root: str = "data",
    download: bool = False,
    padding: int = 0,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return a split of EMNIST (Cohen, Afshar, Tapson, van Schaik, arXiv:1702.05373).

    The files hold every image transposed, as torchvision leaves it; here they are upright.

    Args:
        split: ``byclass`` (62 classes) and ``bymerge`` (47), all 814 255 images; ``balanced`` (47,
            131 600 images), ``letters`` (26), ``digits`` and ``mnist`` (10).
        root: Folder that holds the files ``emnist-SPLIT-{train,test}-...``, plain or ``.gz``: in
            ``EMNIST/raw``, ``EMNIST/raw/gzip``, ``raw``, ``gzip`` or directly.
        download: Whether to fetch the files of all splits, over 500 MB, into ``root/EMNIST/raw``
            if they are not there.
        padding: Black pixels added on each side, from 0; 2 makes the images 32x32.
        mean: Subtracted from every pixel, after padding and scaling to [0, 1].
        std: What every pixel is then divided by, greater than 0.

    Returns:
        Inputs (n, 1, 28 + 2 * padding, 28 + 2 * padding), kept as bytes; labels from 0, those of
        ``letters`` one less than in the files. The digest is that of images and labels, and of the
        last three settings where they change anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    if split not in LABELS:
        raise ValueError(f"dataset.split={split}: must be one of {', '.join(LABELS)}")
    preprocessing = Preprocessing(1, mean, std, padding)
    names = [
        f"emnist-{split}-{part}-{content}-ubyte"
        for part in ("train", "test")
        for content in ("images-idx3", "labels-idx1")
    ]
    files = find(root, names, PLACES)
    if not files and download:
        fetch_archive("EMNIST", URL, CHECKSUM, Path(root).expanduser() / PLACES[0])
        files = find(root, names, PLACES)
    if not files:
        raise ValueError(
            f"dataset.root={root}: none of {listed(root, PLACES)} holds the four files of EMNIST's "
            f"split {split} ({names[0]}[.gz], ...); point dataset.root at the folder that does, or "
            "set dataset.download=true"
        )
    train, test = (
        _upright(files[images], files[labels], LABELS[split])
        for images, labels in (names[:2], names[2:])
    )
    return preprocessing.dataset("emnist", train, test, len(LABELS[split]))


def _upright(images_path: Path, labels_path: Path, allowed: range) -> Images:
    images, labels = read_labelled(images_path, labels_path, allowed)
    return np.ascontiguousarray(images.transpose(0, 2, 1)), labels - np.uint8(allowed[0])
