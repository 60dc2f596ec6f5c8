"""CORe50: 50 household objects filmed in 11 sessions, each before a background of its own.

From Lomonaco & Maltoni, "CORe50: a New Dataset and Benchmark for Continuous Object Recognition"
(2017). The files are those of ``core50_128x128.zip``: one folder a session, in it one an object::

    core50_128x128/s1/o1/C_01_01_000.png        session 1, object 1, frame 0

Objects come in 10 categories of 5: o1..o5 are plug adapters, then mobile phones, scissors, light
bulbs, cans, glasses, balls, markers, cups and remote controls. Sessions 3, 7 and 10 are the test
set, as in the paper.
"""

import re
from pathlib import Path
from typing import Literal

from scenarios.dataset import Dataset
from scenarios.datasets.downloads import fetch_archive
from scenarios.datasets.image_files import Listing, check_side, files, load
from scenarios.datasets.pixels import Numbers, Preprocessing

SESSIONS = 11
TEST_SESSIONS = (3, 7, 10)
OBJECTS = 50
OBJECTS_PER_CATEGORY = 5
SIDE = 128
# As in Avalanche 0.6.0, avalanche/benchmarks/datasets/core50/core50_data.py.
URL = "http://bias.csr.unibo.it/maltoni/download/core50/core50_128x128.zip"
CHECKSUM = "md5:745f3373fed08d69343f1058ee559e13"

_FOLDER = "core50_128x128"
_PLACES = (f"{_FOLDER}/{_FOLDER}", _FOLDER, ".")

Labels = Literal["object", "category"]


def core50(
    root: str = "data",
    download: bool = False,
    labels: Labels = "object",
    side: int | None = 32,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return CORe50's 164 866 images, cropped around the object by its authors.

    Args:
        root: Folder that holds ``core50_128x128``, or what is in it.
        download: Whether to fetch the files into ``root/core50_128x128`` if they are not there; the
            archive has several gigabytes.
        labels: What to tell apart: the 50 objects, or their 10 categories.
        side: Resize the images, with Pillow's bilinear filter, to so many pixels a side; null keeps
            their 128. (The authors' own ``core50_32x32.zip`` was resized by another program.)
        mean: Subtracted from every pixel in [0, 1]: one number, or one a channel.
        std: What every pixel is then divided by, greater than 0: likewise.

    Returns:
        Inputs (n, 3, side, side), kept as bytes, session by session, object by object, frame by
        frame; labels in 0..49 or 0..9. The tag ``"domain"`` is the session, from 0; those of
        training and test samples differ. The digest is that of the pixels used, the labels, and
        mean and std where they change anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    check_side(side)
    if labels not in ("object", "category"):
        raise ValueError(f"dataset.labels={labels}: must be object or category")
    preprocessing = Preprocessing(3, mean, std)
    place = _find(root)
    if place is None and download:
        fetch_archive("CORe50", URL, CHECKSUM, Path(root).expanduser() / _FOLDER)
        place = _find(root)
    if place is None:
        raise ValueError(
            f"dataset.root={root}: neither it nor its {_FOLDER} holds CORe50's sessions (folders "
            f"s1, ..., s{SESSIONS}); point dataset.root at the folder that does, or set "
            "dataset.download=true"
        )
    objects_per_class = OBJECTS_PER_CATEGORY if labels == "category" else 1
    train, test = Listing(), Listing()
    for session in range(1, SESSIONS + 1):
        part = test if session in TEST_SESSIONS else train
        for number in range(1, OBJECTS + 1):
            paths = _frames(place / f"s{session}" / f"o{number}", session, number)
            part.add(paths, (number - 1) // objects_per_class, {"domain": session - 1})
    num_classes = OBJECTS // objects_per_class
    return load("core50", train, test, num_classes, preprocessing, side, original=SIDE)


def _find(root: str) -> Path | None:
    """Return the first place that holds all sessions."""
    for name in _PLACES:
        place = Path(root).expanduser() / name
        if all((place / f"s{session}").is_dir() for session in range(1, SESSIONS + 1)):
            return place
    return None


def _frames(folder: Path, session: int, number: int) -> list[Path]:
    paths = files(folder)
    for path in paths:
        if not re.fullmatch(rf"C_{session:02}_{number:02}_\d{{3}}\.png", path.name):
            raise ValueError(f"{path}: must be called C_{session:02}_{number:02}_000.png or so")
    return paths
