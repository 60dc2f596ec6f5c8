"""Labelled images in IDX files, as MNIST's: what MNIST and the sets made like it share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedlearn.types import digest
from scenarios.dataset import Dataset
from scenarios.datasets.downloads import fetch_files
from scenarios.datasets.idx import read_idx
from scenarios.datasets.pixels import Images, Preprocessing, check_labels
from scenarios.files import find

SIDE = 28
DIGITS = range(10)
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Source:
    """Where a data set in MNIST's four files comes from.

    Attributes:
        name: Of the data set, e.g. ``"fashion_mnist"``.
        title: What people call it, e.g. ``"Fashion-MNIST"``.
        folder: Where torchvision keeps it under its root, and we do.
        mirrors: Addresses that the names of the packed files are added to.
        checksums: Of the packed files, by name, as `scenarios.files.fetch` takes them.
    """

    name: str
    title: str
    folder: str
    mirrors: Sequence[str]
    checksums: Mapping[str, str]


def idx_images(
    source: Source,
    root: str,
    download: bool,
    expected_digest: str | None,
    preprocessing: Preprocessing,
) -> Dataset:
    """Return a data set of ten classes from its four IDX files of 28x28 images.

    Args:
        source: Where it comes from.
        root: Folder that holds the files, plain or packed: in ``FOLDER/raw``, ``raw`` or directly,
            FOLDER being the source's.
        download: Whether to fetch the files into ``root/FOLDER/raw`` if they are not there.
        expected_digest: Refuse other content than that of this digest; None accepts any.
        preprocessing: Of the images.

    Returns:
        Inputs (n, 1, 28 + 2 * padding, 28 + 2 * padding), kept as bytes; labels in 0..9. The
        digest is that of the unpacked bytes, so it does not depend on where the files lie or how
        they are packed, and of the preprocessing where it changes anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    places = (f"{source.folder}/raw", "raw", ".")
    files = find(root, FILES, places)
    if not files and download:
        folder = Path(root).expanduser() / places[0]
        fetch_files(source.title, folder, source.checksums, source.mirrors)
        files = find(root, FILES, places)
    if not files:
        raise ValueError(
            f"dataset.root={root}: none of {listed(root, places)} holds {source.title}'s four "
            f"files ({FILES[0]}[.gz], ...); point dataset.root at the folder that does, or set "
            "dataset.download=true"
        )
    train, test = (
        read_labelled(files[images], files[labels], DIGITS)
        for images, labels in (FILES[:2], FILES[2:])
    )
    data = preprocessing.dataset(source.name, train, test, len(DIGITS))
    if expected_digest is not None:
        arrays = [torch.from_numpy(array) for array in (*train, *test)]
        content = digest(*arrays) if preprocessing.changes_pixels else data.digest
        if expected_digest != content:
            raise ValueError(
                f"dataset.expected_digest={expected_digest}: the files in "
                f"{files[FILES[0]].parent} have {content}: they are damaged or another data set; "
                "set it to null to accept any"
            )
    return data


def listed(root: str, places: Sequence[str]) -> str:
    """Return the folders that were looked in, to be shown."""
    return ", ".join(str(Path(root).expanduser() / place) for place in places)


def read_labelled(images_path: Path, labels_path: Path, allowed: range) -> Images:
    """Return the images (n, 28, 28) and labels (n,) of two IDX files.

    Args:
        images_path: The file of images.
        labels_path: The file of their labels.
        allowed: What labels may be.

    Raises:
        ValueError: If a file is not such a one, or they do not fit each other.
    """
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        size = " x ".join(map(str, images.shape[1:]))
        raise ValueError(f"{images_path}: images are {size}, must be {SIDE} x {SIDE}")
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: {len(labels)} labels, but {len(images)} images in {images_path.name}"
        )
    check_labels(labels_path, labels, allowed)
    return images, labels
