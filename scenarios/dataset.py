"""A dataset: a training store, a test store and a digest that names their content."""

from dataclasses import dataclass

import torch

from fedlearn.types import Samples


@dataclass(frozen=True)
class Dataset:
    """Labelled samples, checked once: every class is there, every label and input is usable.

    Attributes:
        name: What the dataset is called, e.g. ``"mnist"``.
        train: Training samples; inputs (n, *input_shape) float32, labels (n,) int64.
        test: Test samples, of the same shape.
        num_classes: C; labels lie in [0, C).
        digest: sha256 of the content, hexadecimal. Equal digests mean equal samples.

    Raises:
        ValueError: If a label is out of range, a class has no training or no test sample, an input
            is NaN or infinite, or the inputs of the two stores differ in shape.
    """

    name: str
    train: Samples
    test: Samples
    num_classes: int
    digest: str

    def __post_init__(self) -> None:
        for part, samples in (("training", self.train), ("test", self.test)):
            _check(f"dataset {self.name}: {part}", samples, self.num_classes)
        if self.train.x.shape[1:] != self.test.x.shape[1:]:
            shapes = [tuple(samples.x.shape[1:]) for samples in (self.train, self.test)]
            raise ValueError(
                f"dataset {self.name}: training inputs are {shapes[0]} but test inputs {shapes[1]}"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch."""
        return tuple(self.train.x.shape[1:])


def _check(what: str, samples: Samples, num_classes: int) -> None:
    if (samples.x.dtype, samples.y.dtype) != (torch.float32, torch.int64):
        raise ValueError(
            f"{what} samples are {samples.x.dtype} with {samples.y.dtype} labels: "
            "must be torch.float32 with torch.int64"
        )
    wrong = ((samples.y < 0) | (samples.y >= num_classes)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{what} label {int(samples.y[row])} in row {row}: must be in 0..{num_classes - 1}"
        )
    missing = (samples.y.bincount(minlength=num_classes) == 0).nonzero()
    if len(missing):
        raise ValueError(f"{what} samples of class {int(missing[0])} are missing")
    # The extremes are NaN where any input is, so no mask the size of the store is needed.
    if samples.x.numel() and not all(bound.isfinite() for bound in torch.aminmax(samples.x)):
        row = int((~samples.x.flatten(1).isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"{what} input in row {row} is not finite")
