"""CIFAR's files (Krizhevsky 2009): batches of 32x32 colour images, pickled or as bare bytes.

Format: https://www.cs.toronto.edu/~kriz/cifar.html. A pickled batch is a dictionary with ``data``,
(n, 3072) bytes, and lists of labels. A binary one is a sequence of records: one byte a label, then
3072 bytes. The 3072 are the red, then the green, then the blue pixels, row by row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scenarios.dataset import Dataset
from scenarios.datasets.downloads import fetch_archive
from scenarios.datasets.pixels import Images, Preprocessing, check_labels, joined
from scenarios.files import find, read_bytes, read_pickle

PIXELS = 3 * 32 * 32
BINARY = ".bin"


@dataclass(frozen=True)
class Source:
    """Where a data set in CIFAR's files comes from.

    Attributes:
        name: Of the data set, e.g. ``"cifar10"``.
        title: What people call it, e.g. ``"CIFAR-10"``.
        pickled: Folder of the pickled batches.
        binary: Folder of the binary ones, whose names end in ``.bin``.
        batches: Names of the files; the last is the test set.
        labels: Keys of an image's labels, in the order of a binary record.
        url: Of the archive of the pickled batches.
        checksum: Of that archive, as `scenarios.files.fetch` takes it.
    """

    name: str
    title: str
    pickled: str
    binary: str
    batches: Sequence[str]
    labels: Sequence[str]
    url: str
    checksum: str


def cifar(
    source: Source,
    root: str,
    download: bool,
    preprocessing: Preprocessing,
    label: str,
    num_classes: int,
) -> Dataset:
    """Return a data set from CIFAR's files.

    Args:
        source: Where it comes from.
        root: Folder that holds the folder of the pickled or the binary batches, or the batches.
        download: Whether to fetch the pickled ones into ``root/TITLE`` if there are none.
        preprocessing: Of the images.
        label: Key of the labels to use.
        num_classes: How many of them there are.

    Returns:
        Inputs (n, 3, 32, 32), kept as bytes, in the order of the batches. The digest is that of
        images and labels, the same for both kinds of files, and of the preprocessing where it
        changes anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    paths = _find(source, root)
    if not paths and download:
        into = Path(root).expanduser() / source.title
        fetch_archive(source.title, source.url, source.checksum, into)
        paths = _find(source, root)
    if not paths:
        raise ValueError(
            f"dataset.root={root}: neither it nor {source.pickled} or {source.binary} in it holds "
            f"{source.title}'s files ({', '.join(source.batches)}, or the same with .bin); point "
            "dataset.root at the folder that does, or set dataset.download=true"
        )

    def batch(path: Path) -> Images:
        if BINARY in path.suffixes:
            images, labels = _read_binary(path, len(source.labels), source.labels.index(label))
        else:
            images, labels = _read_pickled(path, label)
        check_labels(path, labels, range(num_classes))
        return images, labels.astype(np.uint8)

    train, test = joined(map(batch, paths[:-1])), joined([batch(paths[-1])])
    return preprocessing.dataset(source.name, train, test, num_classes)


def _find(source: Source, root: str) -> list[Path]:
    """Return the paths of the batches, pickled or else binary; none where they are not there."""
    for folder, ending in ((source.pickled, ""), (source.binary, BINARY)):
        names = [f"{batch}{ending}" for batch in source.batches]
        if files := find(root, names, (folder, f"{source.title}/{folder}", ".")):
            return [files[name] for name in names]
    return []


def _read_pickled(path: Path, label: str) -> Images:
    held = read_pickle(path)
    data = held.get(b"data") if isinstance(held, dict) else None
    if not (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.ndim == 2
        and data.shape[1] == PIXELS
    ):
        raise ValueError(f"{path}: must hold 'data', (n, {PIXELS}) bytes")
    labels = held.get(label.encode())
    if not isinstance(labels, list) or not all(type(each) is int for each in labels):
        raise ValueError(f"{path}: must hold {label!r}, a list of whole numbers")
    if len(labels) != len(data):
        raise ValueError(f"{path}: {len(labels)} {label}, but {len(data)} images")
    return data.reshape(-1, 3, 32, 32), np.array(labels)


def _read_binary(path: Path, num_labels: int, which: int) -> Images:
    content, record = read_bytes(path), num_labels + PIXELS
    if not content or len(content) % record:
        raise ValueError(
            f"{path}: holds {len(content)} bytes, must be records of {record} bytes each"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, num_labels:].reshape(-1, 3, 32, 32), records[:, which]
