"""MNIST from its four standard IDX files: 60 000 + 10 000 handwritten digits of 28x28 pixels."""

import math
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset
from scenarios.datasets.idx import read_idx

NUM_CLASSES = 10
SIDE = 28


def mnist(
    root: str = "data",
    download: bool = False,
    expected_digest: str | None = None,
    padding: int = 0,
    mean: float = 0.0,
    std: float = 1.0,
) -> Dataset:
    """Return MNIST, or any set in the same files and sizes (Fashion-MNIST, KMNIST).

    Args:
        root: Folder that holds the files, plain or ``.gz``: in ``MNIST/raw``, ``raw`` or directly.
        download: Whether to fetch the files into ``root/MNIST/raw`` if they are not there.
        expected_digest: Refuse other content than that of this digest; None accepts any.
        padding: Black pixels added on each side, from 0; 2 makes the images 32x32.
        mean: Subtracted from every pixel, after padding and scaling to [0, 1].
        std: What every pixel is then divided by, greater than 0.

    Returns:
        Inputs (n, 1, 28 + 2 * padding, 28 + 2 * padding), kept as bytes; labels in 0..9. The
        digest is that of the unpacked bytes, so it does not depend on where the files lie or how
        they are packed, and of the three numbers above where they change anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    if padding < 0:
        raise ValueError(f"dataset.padding={padding}: must be at least 0")
    if not 0 < std < math.inf:
        raise ValueError(f"dataset.std={std}: must be greater than 0 and finite")
    folder = Path(root).expanduser()
    if download and not _find(folder):
        _download(folder)
    files = _find(folder)
    if not files:
        places = ", ".join(str(place) for place in _places(folder))
        raise ValueError(
            f"dataset.root={root}: none of {places} holds MNIST's four files "
            "(train-images-idx3-ubyte[.gz], ...); point dataset.root at the folder that does, "
            "or set dataset.download=true"
        )
    train_images, train_labels = _read_pair(files["train-images"], files["train-labels"])
    test_images, test_labels = _read_pair(files["t10k-images"], files["t10k-labels"])
    raw = (train_images, train_labels, test_images, test_labels)
    content = digest(*(torch.from_numpy(array) for array in raw))
    if expected_digest not in (None, content):
        raise ValueError(
            f"dataset.expected_digest={expected_digest}: the files in "
            f"{files['train-images'].parent} have {content}: they are damaged or another data set; "
            "set it to null to accept any"
        )
    change = (padding, float(mean), float(std))
    train = _samples(train_images, train_labels, *change)
    test = _samples(test_images, test_labels, *change)
    if change != (0, 0.0, 1.0):
        content = digest(*(torch.from_numpy(array) for array in raw), torch.tensor(change))
    return Dataset("mnist", train, test, NUM_CLASSES, content)


def _places(root: Path) -> Iterator[Path]:
    yield from (root / "MNIST" / "raw", root / "raw", root)


def _find(root: Path) -> dict[str, Path]:
    """Return the four files by short name, all from the first place that has them all, or none."""
    names = {
        f"{part}-{content}": f"{part}-{content}-idx{rank}-ubyte"
        for part in ("train", "t10k")
        for content, rank in (("images", 3), ("labels", 1))
    }
    for place in _places(root):
        files = {}
        for short, name in names.items():
            for path in (place / name, place / f"{name}.gz"):
                if path.is_file():
                    files[short] = path
                    break
        if len(files) == len(names):
            return files
    return {}


def _read_pair(images_path: Path, labels_path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (n, 28, 28) and labels (n,), as bytes."""
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        size = " x ".join(map(str, images.shape[1:]))
        raise ValueError(f"{images_path}: images are {size}, must be {SIDE} x {SIDE}")
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_path}: {len(labels)} labels, but {len(images)} images in {images_path.name}"
        )
    wrong = np.flatnonzero(labels >= NUM_CLASSES)
    if len(wrong):
        raise ValueError(
            f"{labels_path}: label {labels[wrong[0]]} in row {wrong[0]}, "
            f"must be in 0..{NUM_CLASSES - 1}"
        )
    return images, labels


def _samples(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], padding: int, mean: float, std: float
) -> Samples:
    x = F.pad(torch.from_numpy(images), (padding,) * 4).unsqueeze(1)
    return Samples(x, torch.from_numpy(labels.astype(np.int64)), (mean,), (std,))


def _download(root: Path) -> None:
    """Fetch the files from torchvision's mirrors, which it checks against known digests."""
    from torchvision.datasets import MNIST

    try:
        with redirect_stdout(StringIO()):  # where torchvision comments on each mirror's failure
            MNIST(str(root), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"dataset.download=true: MNIST could not be fetched into {root}: {reason}; "
            "put its four files there and set dataset.download=false"
        ) from error
