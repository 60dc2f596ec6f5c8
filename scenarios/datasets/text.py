"""Text files of your own: which character comes next."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedlearn.types import Samples, digest
from scenarios.dataset import Dataset
from scenarios.datasets.characters import Points, code_points, places
from scenarios.files import read_bytes


def text(
    path: str | None = None, length: int = 80, stride: int = 8, test_fraction: float = 0.1
) -> Dataset:
    """Return windows of the files' characters, and the character after each of them.

    Each file's end is to test on, the rest to train on; no window reaches across. The alphabet is
    that of the training text, in the order of code points, and after it one class more for all
    other characters, which nothing can predict. So a class may have no training or test sample.

    Args:
        path: A text file, or a folder whose ``*.txt`` files are read; UTF-8, any line ends.
        length: Characters of an input, at least 1.
        stride: Characters from one window's start to the next one's, at least 1; windows take
            ``8 * length / stride`` bytes for each character of text.
        test_fraction: Share of each file to test on, in (0, 1).

    Returns:
        Inputs (n, length) int64 and labels (n,), places in the alphabet; tag ``author``, the file's
        place among the files' names, sorted. The digest is that of the text and of the settings.

    Raises:
        ValueError: There is no such file, it is not text, or either of its parts is shorter than
            ``length + 1``.
    """
    for key, value in (("length", length), ("stride", stride)):
        if value < 1:
            raise ValueError(f"dataset.{key}={value}: must be at least 1")
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"dataset.test_fraction={test_fraction}: must be greater than 0 and less than 1"
        )
    parts = [_split(file, length, test_fraction) for file in _files(path)]
    alphabet = np.unique(np.concatenate([train for train, _ in parts]))
    train, train_authors = _samples([train for train, _ in parts], alphabet, length, stride)
    test, test_authors = _samples([test for _, test in parts], alphabet, length, stride)
    content = (torch.from_numpy(points.astype(np.int64)) for part in parts for points in part)
    return Dataset(
        "text",
        train,
        test,
        len(alphabet) + 1,
        digest(torch.tensor([length, stride]), *content),
        {"author": (train_authors, test_authors)},
        every_class=False,
    )


def _files(path: str | None) -> list[Path]:
    if path is None:
        raise ValueError("dataset.path=null: name a text file, or a folder of .txt files")
    place = Path(path).expanduser()
    if not place.is_dir():
        return [place]
    files = sorted(place.glob("*.txt"))
    if not files:
        raise ValueError(f"dataset.path={path}: holds no .txt files")
    return files


def _split(file: Path, length: int, test_fraction: float) -> tuple[Points, Points]:
    """Return the code points to train on and those to test on."""
    try:
        content = read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is no text in UTF-8: {error}") from error
    points = code_points(content.replace("\r\n", "\n").replace("\r", "\n"))
    cut = len(points) - round(test_fraction * len(points))
    for what, part in (("train", points[:cut]), ("test", points[cut:])):
        if len(part) <= length:
            raise ValueError(
                f"{file}: has {len(part)} characters to {what} on, must be at least "
                f"dataset.length + 1 = {length + 1}"
            )
    return points[:cut], points[cut:]


def _samples(
    texts: list[Points], alphabet: Points, length: int, stride: int
) -> tuple[Samples, Tensor]:
    """Return the windows of all texts, and the number of the text that each is from."""
    sizes = [(len(points) - length - 1) // stride + 1 for points in texts]
    x = torch.empty(sum(sizes), length, dtype=torch.int64)
    y = torch.empty(sum(sizes), dtype=torch.int64)
    begin = 0
    for points, size in zip(texts, sizes, strict=True):
        tokens = torch.from_numpy(places(points, alphabet))
        tokens[tokens < 0] = len(alphabet)
        windows = tokens.unfold(0, length + 1, stride)
        x[begin : begin + size] = windows[:, :-1]
        y[begin : begin + size] = windows[:, -1]
        begin += size
    return Samples(x, y), torch.arange(len(texts)).repeat_interleave(torch.tensor(sizes))
