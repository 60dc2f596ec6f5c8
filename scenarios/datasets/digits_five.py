"""Digits-Five: the ten digits from five sources, which are domains.

From Peng, Bai, Xia, Huang, Saenko & Wang, "Moment Matching for Multi-Source Domain Adaptation"
(2019). MNIST, USPS and SVHN are read from their own files (see `mnist`, `usps` and `svhn` in this
package), MNIST-M and Synth Digits from those of Digits-Five (see `mat_digits`).

Deviations: the authors draw 25 000 training and 9 000 test samples of each source, and use all of
USPS; here all samples are used unless `samples_per_source` and `test_samples_per_source` say
otherwise. Their MNIST has 5 000 training samples less and their USPS is split in another way; ours
are the sources' own 60 000 + 10 000 and 7 291 + 2 007.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlearn.seeding import generator
from scenarios.dataset import Dataset
from scenarios.datasets.image_files import check_side
from scenarios.datasets.mat_digits import mat_digits
from scenarios.datasets.mnist import mnist
from scenarios.datasets.pixels import Numbers, Preprocessing
from scenarios.datasets.svhn import svhn
from scenarios.datasets.usps import usps

Source = Literal["mnist", "mnistm", "usps", "svhn", "synth"]
SOURCES: tuple[Source, ...] = ("mnist", "mnistm", "usps", "svhn", "synth")
NUM_CLASSES = 10

_LOADERS: dict[str, Callable[..., Dataset]] = {"mnist": mnist, "usps": usps, "svhn": svhn}
_CHUNK = 4096

Part = tuple[Tensor, Tensor]
"""Images (n, channels, height, width) uint8 and labels (n,) int64."""


def digits_five(
    root: str = "data",
    sources: Sequence[Source] = SOURCES,
    download: bool = False,
    side: int = 32,
    samples_per_source: int | None = None,
    test_samples_per_source: int | None = None,
    seed: int = 0,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> Dataset:
    """Return digits of several sources, one after the other, all in colours and of one size.

    Args:
        root: Folder that holds the sources' files, as each of them wants it; the two ``.mat`` files
            may also lie in ``digits_five`` or ``Digit-Five`` in it.
        sources: Which, each once, at least one; their order is that of the domains.
        download: Whether to fetch MNIST, USPS and SVHN if they are not there. The other two cannot
            be fetched: no digest of theirs is published.
        side: Images are resized, bilinearly, to so many pixels a side.
        samples_per_source: Draw so many training samples of each source; null, or more than it has,
            for all.
        test_samples_per_source: Likewise of test samples.
        seed: Of those draws; the run's seed does not change them unless told to.
        mean: Subtracted from every pixel in [0, 1]: one number, or one a channel.
        std: What every pixel is then divided by, greater than 0: likewise.

    Returns:
        Inputs (n, 3, side, side), kept as bytes; grey sources have three equal channels. The tag
        ``"domain"`` is the source's place in `sources`. The digest is that of the pixels used, the
        labels, and mean and std where they change anything.

    Raises:
        ValueError: If a file is missing or is not what its name says.
    """
    check_side(side)
    _check_sources(sources)
    limits = (samples_per_source, test_samples_per_source)
    for key, limit in zip(("samples", "test_samples"), limits, strict=True):
        if limit is not None and limit < 1:
            raise ValueError(f"dataset.{key}_per_source={limit}: must be at least 1")
    preprocessing = Preprocessing(3, mean, std)
    read = {source: _read(source, root, download) for source in sources}
    content, domains = [], []
    for place, limit in enumerate(limits):
        parts = []
        for source, held in read.items():
            rng = generator(seed, f"digits-five-{source}", place)
            parts.append(_drawn(held.pop(0), limit, rng))
        lengths = torch.tensor([len(labels) for _, labels in parts])
        domains.append(torch.arange(len(sources)).repeat_interleave(lengths))
        images, labels = _join(parts, side)
        content.append((images.numpy(), labels.numpy()))
    dataset = preprocessing.dataset("digits_five", content[0], content[1], NUM_CLASSES)
    return replace(dataset, tags={"domain": (domains[0], domains[1])})


def _check_sources(sources: Sequence[Source]) -> None:
    wrong = f"dataset.sources={list(sources)}: "
    if not sources:
        raise ValueError(f"{wrong}must name at least one of {', '.join(SOURCES)}")
    for place, source in enumerate(sources):
        if source not in get_args(Source):
            raise ValueError(f"{wrong}there is no {source}; choices: {', '.join(SOURCES)}")
        if source in sources[:place]:
            raise ValueError(f"{wrong}names {source} twice")


def _read(source: Source, root: str, download: bool) -> list[Part]:
    """Return a source's training and test samples, as they are in its files."""
    if source in ("mnistm", "synth"):
        return mat_digits(root, source)
    dataset = _LOADERS[source](root=root, download=download)
    return [(part.x, part.y) for part in (dataset.train, dataset.test)]


def _drawn(part: Part, limit: int | None, rng: torch.Generator) -> Part:
    """Return `limit` samples of a source's part, in their order in its files."""
    images, labels = part
    if limit is None or limit >= len(labels):
        return part
    rows = torch.randperm(len(labels), generator=rng)[:limit].sort().values
    return images[rows], labels[rows]


def _join(parts: list[Part], side: int) -> Part:
    """Return all parts as one, resized, in colours; `parts` is emptied to make room."""
    labels = torch.cat([labels for _, labels in parts])
    joined = torch.empty(len(labels), 3, side, side, dtype=torch.uint8)
    begin = 0
    while parts:
        images, _ = parts.pop(0)
        for chunk in torch.split(images, _CHUNK):
            target = joined[begin : begin + len(chunk)]
            if chunk.shape[2:] != (side, side):
                chunk = F.interpolate(chunk, (side, side), mode="bilinear", antialias=True)
            target.copy_(chunk.expand_as(target))
            begin += len(chunk)
    return joined, labels
