"""Tiny ImageNet: 200 classes of ImageNet, 100 000 + 10 000 photographs of 64x64 pixels.

The files are those of ``tiny-imagenet-200.zip`` (Stanford's course CS231n)::

    wnids.txt                           the names of the classes, one a line
    train/n01443537/images/*.JPEG       500 images of each class
    val/images/*.JPEG                   10 000 images
    val/val_annotations.txt             name, class and box of each of them, between tabs

The test set is ``val``, as in the literature: ``test`` comes without labels.
"""

import re
from pathlib import Path

from scenarios.dataset import Dataset
from scenarios.datasets.downloads import fetch_archive
from scenarios.datasets.image_files import Listing, files, load
from scenarios.datasets.pixels import Numbers, Preprocessing
from scenarios.files import find, read_bytes

NUM_CLASSES = 200
SIDE = 64
TRAIN_PER_CLASS = 500
TEST_PER_CLASS = 50
# As in Avalanche 0.6.0, avalanche/benchmarks/datasets/tiny_imagenet/tiny_imagenet.py.
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
CHECKSUM = "md5:90528d7ca1a48142e341f4ef8d21d0de"

_FOLDER = "tiny-imagenet-200"
_FILES = ("wnids.txt", "val/val_annotations.txt")
_PLACES = (f"{_FOLDER}/{_FOLDER}", _FOLDER, ".")


def tiny_imagenet(
    root: str = "data", download: bool = False, mean: Numbers = 0.0, std: Numbers = 1.0
) -> Dataset:
    """Return Tiny ImageNet; classes are numbered in the order of ``wnids.txt``.

    Args:
        root: Folder that holds ``tiny-imagenet-200``, or what is in it.
        download: Whether to fetch the files into ``root/tiny-imagenet-200`` if they are not there.
        mean: Subtracted from every pixel in [0, 1]: one number, or one a channel.
        std: What every pixel is then divided by, greater than 0: likewise.

    Returns:
        Inputs (n, 3, 64, 64), kept as bytes (grey photographs have three equal channels); labels in
        0..199. The digest is that of the decoded pixels, the labels, and mean and std where they
        change anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    preprocessing = Preprocessing(3, mean, std)
    found = find(root, _FILES, _PLACES)
    if not found and download:
        fetch_archive("Tiny ImageNet", URL, CHECKSUM, Path(root).expanduser() / _FOLDER)
        found = find(root, _FILES, _PLACES)
    if not found:
        raise ValueError(
            f"dataset.root={root}: neither it nor its {_FOLDER} holds Tiny ImageNet's files "
            f"({', '.join(_FILES)}, train/, val/images/); point dataset.root at the folder that "
            "does, or set dataset.download=true"
        )
    wnids_path, annotations_path = (found[name] for name in _FILES)
    names = _names(wnids_path)
    train = _list_train(wnids_path.parent / "train", names)
    test = _list_test(annotations_path, names)
    return load("tiny_imagenet", train, test, NUM_CLASSES, preprocessing, original=SIDE)


def _names(path: Path) -> list[str]:
    names = _lines(path)
    for row, name in enumerate(names):
        if not re.fullmatch(r"n\d{8}", name):
            raise ValueError(f"{path}: {name!r} in row {row} is no class, such as n01443537")
        if name in names[:row]:
            raise ValueError(f"{path}: repeats {name} in row {row}")
    if len(names) != NUM_CLASSES:
        raise ValueError(f"{path}: names {len(names)} classes, must be {NUM_CLASSES}")
    return names


def _list_train(place: Path, names: list[str]) -> Listing:
    listing = Listing()
    for label, name in enumerate(names):
        paths = files(place / name / "images")
        if len(paths) != TRAIN_PER_CLASS:
            raise ValueError(
                f"{place / name / 'images'}: holds {len(paths)} images, must be {TRAIN_PER_CLASS}"
            )
        listing.add(paths, label, {})
    return listing


def _list_test(path: Path, names: list[str]) -> Listing:
    """Return the images that the annotations in `path` name, in their order."""
    labels = {name: label for label, name in enumerate(names)}
    there = {each.name: each for each in files(path.parent / "images")}
    listing = Listing()
    for row, line in enumerate(_lines(path)):
        image, name, *_ = [*line.split("\t"), ""]
        if name not in labels:
            raise ValueError(f"{path}: {name!r} in row {row} is no class of wnids.txt")
        if image not in there:
            raise ValueError(f"{path}: {image!r} in row {row} is not in images/, or named twice")
        listing.add([there.pop(image)], labels[name], {})
    for name, label in labels.items():
        if (count := listing.labels.count(label)) != TEST_PER_CLASS:
            raise ValueError(f"{path}: names {count} images of {name}, must be {TEST_PER_CLASS}")
    if there:
        raise ValueError(f"{path}: does not name {min(there)}, which is in images/")
    return listing


def _lines(path: Path) -> list[str]:
    try:
        return read_bytes(path).decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text: {error}") from error
