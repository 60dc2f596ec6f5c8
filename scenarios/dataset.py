"""A dataset: a training store, a test store and a digest that names their content.

Of labelled samples, or of a regression: real targets, standardised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedlearn.types import Samples

INPUTS = (torch.float32, torch.uint8, torch.int64)
"""Element types of inputs; see `fedlearn.types.Samples`."""


@dataclass(frozen=True)
class Dataset:
    """Samples, checked once: every class is there, every label, target and input is usable.

    Attributes:
        name: What the dataset is called, e.g. ``"mnist"``.
        train: Training samples; inputs (n, *input_shape), and labels (n,) int64 or targets
            (n, num_outputs) float32; see `standardised` for the latter.
        test: Test samples, of the same shape.
        num_classes: C; labels lie in [0, C). Of a regression, the number of outputs.
        digest: sha256 of the content, hexadecimal. Equal digests mean equal samples.
        tags: What else is known of each sample, by name: (n,) int64 of training and (m,) of test
            samples, from 0, such as its ``"writer"`` or its ``"domain"``. A partition may go by
            them, and so may a stream.
        every_class: Whether each class must have a training and a test sample. False where the
            classes are fixed beforehand and some are rare, as the characters of an alphabet are.
        partial: Whether this is one of several machines' parts: classes may be missing from it, and
            all training or all test samples, but not both.

    Raises:
        ValueError: If a label is out of range, a class has no training or no test sample though
            every class must, a store is empty, an input or a target is NaN or infinite, training
            targets are not standardised, or the two stores differ in shape or in kind.
    """

    name: str
    train: Samples
    test: Samples
    num_classes: int
    digest: str
    tags: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    every_class: bool = True
    partial: bool = False

    def __post_init__(self) -> None:
        every_class = self.every_class and not self.partial
        for part, samples in (("training", self.train), ("test", self.test)):
            if not len(samples) and not (self.partial and len(self.train) + len(self.test)):
                raise ValueError(f"dataset {self.name}: {part} samples: there are none")
            _check(f"dataset {self.name}: {part}", samples, self.num_classes, every_class)
        if self.train.x.shape[1:] != self.test.x.shape[1:]:
            shapes = [tuple(samples.x.shape[1:]) for samples in (self.train, self.test)]
            raise ValueError(
                f"dataset {self.name}: training inputs are {shapes[0]} but test inputs {shapes[1]}"
            )
        if self.train.regression != self.test.regression:
            raise ValueError(f"dataset {self.name}: labels on one side, real targets on the other")
        for name, (train, test) in self.tags.items():
            _check_tag(f"dataset {self.name}: tag {name}", (train, test), (self.train, self.test))
        if self.train.regression:
            _check_standardised(self.name, self.train.y)

    @property
    def regression(self) -> bool:
        """Whether samples have real targets, not labels."""
        return self.train.regression

    def tag(self, name: str, key: str) -> tuple[Tensor, Tensor]:
        """Return a tag of training and test samples, asked for by the setting `key`.

        Raises:
            ValueError: There is none of that name.
        """
        if name not in self.tags:
            known = ", ".join(self.tags) or "none"
            raise ValueError(f"{key}={name}: dataset {self.name} has no such tag; tags: {known}")
        return self.tags[name]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.train.x.shape[1:])


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with the mean of `train`'s columns taken away, divided by their deviation.

    Columns that do not vary in `train` are not divided.

    Args:
        train: (n, d), n at least 1.
        test: (m, d).

    Returns:
        Two float32 tensors of the same shapes.
    """
    exact = train.double()
    mean, std = exact.mean(0), exact.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    return ((exact - mean) / std).float(), ((test.double() - mean) / std).float()


def _check_standardised(name: str, targets: Tensor) -> None:
    """Check that a score of 0 is that of the mean, and 1 that of all variance explained."""
    std, mean = torch.std_mean(targets.double(), 0, correction=0)
    if not (
        torch.allclose(mean, mean.new_zeros(()), atol=1e-3)
        and torch.allclose(std, std.new_ones(()), atol=1e-3)
    ):
        raise ValueError(
            f"dataset {name}: training targets have means {_few(mean)} and standard deviations "
            f"{_few(std)}, must be 0 and 1 (scenarios.dataset.standardised makes them so)"
        )


def _few(values: Tensor) -> str:
    shown = ", ".join(f"{value:.3g}" for value in values[:3].tolist())
    return shown + (", ..." if len(values) > 3 else "")


def _check(what: str, samples: Samples, num_classes: int, every_class: bool) -> None:
    if samples.x.dtype not in INPUTS or samples.y.dtype not in (torch.int64, torch.float32):
        raise ValueError(
            f"{what} samples are {samples.x.dtype} with {samples.y.dtype} labels: "
            "must be torch.float32, torch.uint8 or torch.int64 with torch.int64 (torch.float32 for "
            "a regression)"
        )
    if samples.regression:
        if samples.y.shape != (len(samples), num_classes):
            shapes = tuple(samples.y.shape), (len(samples), num_classes)
            raise ValueError(f"{what} targets are {shapes[0]}, must be {shapes[1]}")
        _check_finite(f"{what} target", samples.y)
    else:
        _check_labels(what, samples.y, num_classes, every_class)
    if samples.x.is_floating_point():
        _check_finite(f"{what} input", samples.x)


def _check_tag(what: str, tags: Sequence[Tensor], parts: Sequence[Samples]) -> None:
    for values, samples in zip(tags, parts, strict=True):
        if values.dtype != torch.int64 or values.shape != (len(samples),):
            raise ValueError(
                f"{what}: is {values.dtype} of shape {tuple(values.shape)}, must be torch.int64 of "
                f"shape {(len(samples),)}"
            )
        if len(values) and int(values.min()) < 0:
            raise ValueError(f"{what}: {int(values.min())} must be at least 0")


def _check_labels(what: str, labels: Tensor, num_classes: int, every_class: bool) -> None:
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{what} label {int(labels[row])} in row {row}: must be in 0..{num_classes - 1}"
        )
    missing = (labels.bincount(minlength=num_classes) == 0).nonzero()
    if every_class and len(missing):
        raise ValueError(f"{what} samples of class {int(missing[0])} are missing")


def _check_finite(what: str, values: Tensor) -> None:
    # The extremes are NaN where any value is, so no mask the size of the store is needed.
    if values.numel() and not all(bound.isfinite() for bound in torch.aminmax(values)):
        row = int((~values.flatten(1).isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"{what} in row {row} is not finite")
