"""Omniglot: 1623 characters of 50 alphabets, each drawn once by 20 people.

From Lake, Salakhutdinov & Tenenbaum, "Human-level concept learning through probabilistic program
induction" (2015). The files are those of ``images_background.zip`` (30 alphabets) and
``images_evaluation.zip`` (20)::

    images_background/Alphabet_of_the_Magi/character01/0709_01.png      drawer 1

The images are black on white, 105x105 pixels of one bit.
"""

import re
from pathlib import Path
from typing import Literal, get_args

from scenarios.dataset import Dataset
from scenarios.datasets.downloads import fetch_archive
from scenarios.datasets.image_files import Listing, check_side, files, folders, load
from scenarios.datasets.pixels import Preprocessing

Alphabets = Literal["all", "background", "evaluation"]

DRAWERS = 20
SIDE = 105
CHARACTERS = {"background": 964, "evaluation": 659}
# As in torchvision 0.29, torchvision/datasets/omniglot.py.
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
CHECKSUMS = {
    "background": "md5:68d2efa1b9178cc56df9314c21c6e718",
    "evaluation": "md5:6b91aef0f799c5bb55b94e3f2daec811",
}


def omniglot(
    root: str = "data",
    download: bool = False,
    alphabets: Alphabets = "all",
    test_drawers: int = 5,
    side: int | None = 28,
    mean: float = 0.0,
    std: float = 1.0,
) -> Dataset:
    """Return Omniglot: each character is a class, some people's drawings of it are the test set.

    By default 15 drawings a class are to train on and 5 to test, as in Javed & White,
    "Meta-Learning Representations for Continual Learning" (2019).

    Args:
        root: Folder that holds ``images_background`` and ``images_evaluation``, or ``omniglot-py``
            with them in it.
        download: Whether to fetch the folders that are not there into ``root/omniglot-py``.
        alphabets: Which to use: those of both folders, or of one.
        test_drawers: How many of the 20 drawings of each character to test on, in 1..19: those of
            the last drawers.
        side: Resize the images, with Pillow's bilinear filter, to so many pixels a side; null keeps
            their 105.
        mean: Subtracted from every pixel in [0, 1].
        std: What every pixel is then divided by, greater than 0.

    Returns:
        Inputs (n, 1, side, side), kept as bytes, 0 for ink and 255 for paper; labels in 0..1622, in
        the sorted order of folders, alphabets and characters. The tag ``"writer"`` is the drawer's
        number, from 0 (the files do not say whether two alphabets had the same people), the tag
        ``"domain"`` the alphabet. The digest is that of the pixels used, the labels, and mean and
        std where they change anything.

    Raises:
        ValueError: If a file is missing, cannot be fetched, or is not what its name says.
    """
    check_side(side)
    if alphabets not in get_args(Alphabets):
        choices = ", ".join(get_args(Alphabets))
        raise ValueError(f"dataset.alphabets={alphabets}: must be one of {choices}")
    if not 1 <= test_drawers < DRAWERS:
        raise ValueError(
            f"dataset.test_drawers={test_drawers}: must be at least 1 and less than {DRAWERS}"
        )
    preprocessing = Preprocessing(1, mean, std)
    train, test = Listing(), Listing()
    num_domains = num_classes = 0
    for part in CHARACTERS if alphabets == "all" else (alphabets,):
        place = _find(root, part, download)
        first = num_classes
        for alphabet in folders(place):
            for character in folders(alphabet):
                for drawer, path in enumerate(_drawings(character)):
                    chosen = test if drawer >= DRAWERS - test_drawers else train
                    chosen.add([path], num_classes, {"writer": drawer, "domain": num_domains})
                num_classes += 1
            num_domains += 1
        if num_classes - first != CHARACTERS[part]:
            raise ValueError(
                f"{place}: holds {num_classes - first} characters, must be {CHARACTERS[part]}"
            )
    return load("omniglot", train, test, num_classes, preprocessing, side, original=SIDE)


def _find(root: str, part: str, download: bool) -> Path:
    """Return the folder of a part's alphabets, which is fetched if need be."""
    name, base = f"images_{part}", Path(root).expanduser()
    places = [base / "omniglot-py" / name / name, base / "omniglot-py" / name, base / name]
    found = [place for place in places if place.is_dir()]
    if not found and download:
        fetch_archive("Omniglot", f"{URL}{name}.zip", CHECKSUMS[part], places[1])
        found = [place for place in places if place.is_dir()]
    if not found:
        raise ValueError(
            f"dataset.root={root}: neither it nor its omniglot-py holds Omniglot's folder {name}; "
            "point dataset.root at the folder that does, or set dataset.download=true"
        )
    return found[0]


def _drawings(character: Path) -> list[Path]:
    """Return the drawings of one character, in the order of their drawers."""
    paths = files(character)
    drawers: list[int] = []
    for path in paths:
        name = re.fullmatch(r"\d{4}_(\d{2})\.png", path.name)
        if name is None:
            raise ValueError(f"{path}: must be called NNNN_DD.png, DD the drawer")
        drawers.append(int(name[1]))
    if drawers != list(range(1, DRAWERS + 1)):
        raise ValueError(f"{character}: must hold one drawing of each of drawers 01 to {DRAWERS}")
    return paths
