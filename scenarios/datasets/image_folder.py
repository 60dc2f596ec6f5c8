"""Your own images in folders: the names of the folders are the classes.

Three layouts::

    root/train/CLASS/*.png   root/test/CLASS/*.png      split by you
    root/CLASS/*.png                                    split here, class by class
    root/[train|test/]DOMAIN/CLASS/*.png                either, with `domains: true`

A file may be of any of Pillow's common formats, whatever its name.
"""

from pathlib import Path

import numpy as np

from fedlearn.seeding import numpy_generator
from scenarios.dataset import Dataset
from scenarios.datasets.image_files import Listing, check_side, files, folders, load
from scenarios.datasets.pixels import Numbers, Preprocessing

LAYOUTS = (
    "dataset.root must hold images in train/CLASS/ and test/CLASS/, or in CLASS/; folders of "
    "domains above those of classes need dataset.domains=true"
)


def image_folder(
    root: str = "data",
    side: int | None = 32,
    channels: int = 3,
    domains: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return the images in `root`; classes are numbered in the sorted order of their names.

    Args:
        root: The folder. Where it holds ``train`` and ``test`` they are the two sets; where it does
            not, each class is split, and at least one of its images goes to either side.
        side: Cut the middle square out of each image and resize it to so many pixels a side; null
            keeps images as they are, and all must be of one size.
        channels: 1 for shades of grey, 3 for colours.
        domains: Whether folders of classes lie in folders of domains (photos, sketches, ...), each
            with the same classes. Samples then have the tag ``"domain"``, in sorted order.
        test_fraction: Of a `root` without ``train`` and ``test``: the share of each class (of each
            domain) to test on, in (0, 1).
        seed: Of that split; the run's seed does not change it unless told to.
        mean: Subtracted from every pixel in [0, 1]: one number, or one a channel.
        std: What every pixel is then divided by, greater than 0: likewise.

    Returns:
        Inputs (n, channels, height, width), kept as bytes, in the order of their paths. The digest
        is that of the decoded pixels, the labels, and mean and std where they change anything.
        (Decoders of JPEG may differ in the last bit from one version to the next.)

    Raises:
        ValueError: A file is no image or damaged, a class is empty, or training and test set or two
            domains have different classes; the message begins with the path.
    """
    check_side(side)
    if channels not in (1, 3):
        raise ValueError(f"dataset.channels={channels}: must be 1 (grey) or 3 (colours)")
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"dataset.test_fraction={test_fraction}: must be greater than 0 and less than 1"
        )
    preprocessing = Preprocessing(channels, mean, std)
    place = Path(root).expanduser()
    if not place.is_dir():
        raise ValueError(f"dataset.root={root}: is no folder; {LAYOUTS}")
    if {path.name for path in folders(place)} == {"train", "test"}:
        train, classes = _list(place / "train", domains)
        test, _ = _list(place / "test", domains, like=place / "train")
    else:
        listing, classes = _list(place, domains)
        train, test = _split(listing, test_fraction, seed)
    return load("image_folder", train, test, len(classes), preprocessing, side)


def _list(place: Path, has_domains: bool, like: Path | None = None) -> tuple[Listing, list[str]]:
    """Return the images in ``place/CLASS`` or ``place/DOMAIN/CLASS``, and the classes.

    Args:
        place: The folder.
        has_domains: Whether there are domains above the classes.
        like: Another one, which must have folders of the same names.
    """
    if has_domains and like is not None:
        _check_same(like, place)
    domains = folders(place) if has_domains else [place]
    first = domains[0] if like is None else like / domains[0].relative_to(place)
    classes = [folder.name for folder in folders(first)]
    if len(classes) < 2:
        raise ValueError(f"{first}: holds one class, {classes[0]}; {LAYOUTS}")
    listing = Listing()
    for index, domain in enumerate(domains):
        _check_same(first, domain)
        tags = {"domain": index} if has_domains else {}
        for label, folder in enumerate(folders(domain)):
            listing.add(files(folder, LAYOUTS), label, tags)
    return listing, classes


def _check_same(one: Path, other: Path) -> None:
    """Check that two folders hold folders of the same names."""
    names = {place: {path.name for path in folders(place)} for place in (one, other)}
    for place, beside in ((other, one), (one, other)):
        if lacking := sorted(names[beside] - names[place]):
            raise ValueError(f"{place}: has no folder {lacking[0]}, which {beside} has")


def _split(listing: Listing, test_fraction: float, seed: int) -> tuple[Listing, Listing]:
    """Return training and test images; each class of each domain is split on its own."""
    groups: dict[Path, list[int]] = {}
    for row, path in enumerate(listing.paths):
        groups.setdefault(path.parent, []).append(row)
    rng = numpy_generator(seed, "image-folder-split")
    tested = np.zeros(len(listing.paths), dtype=bool)
    for folder, rows in groups.items():
        if len(rows) < 2:
            raise ValueError(f"{folder}: holds 1 image, needs 2: one to train, one to test")
        quota = min(max(round(test_fraction * len(rows)), 1), len(rows) - 1)
        tested[rng.permutation(rows)[:quota]] = True
    return (
        listing.chosen(np.flatnonzero(~tested).tolist()),
        listing.chosen(np.flatnonzero(tested).tolist()),
    )
