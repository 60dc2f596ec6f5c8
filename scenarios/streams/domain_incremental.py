"""Domain-incremental streams: all classes in every experience, in a domain of its own."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import torch

from fedlearn.seeding import numpy_generator
from fedlearn.types import Kind, Transform, digest
from scenarios.dataset import Dataset
from scenarios.domains import Blur, PatternNoise, PixelPermutation, Rotation, Scale
from scenarios.streams.layout import Layout, check_num_experiences, of_domains


@dataclass(frozen=True)
class Permuted:
    """Every experience holds all samples, its pixels in an order of its own.

    Experience 0 shows the inputs as they are (Goodfellow et al. 2013; Kirkpatrick et al. 2017).

    Attributes:
        num_experiences: T, at least 1.
    """

    num_experiences: int = 5

    kind: ClassVar[Kind] = "domain"

    def __post_init__(self) -> None:
        check_num_experiences(self.num_experiences)

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: a permutation drawn for each experience but the first."""
        size = int(np.prod(dataset.input_shape))
        orders = [
            numpy_generator(seed, "pixel-permutation", index).permutation(size)
            for index in range(1, self.num_experiences)
        ]
        return of_domains(
            self,
            dataset,
            (None, *(PixelPermutation(tuple(order.tolist())) for order in orders)),
            permutations=digest(*(torch.from_numpy(order) for order in orders)),
        )


@dataclass(frozen=True)
class Rotated:
    """Every experience holds all samples, rotated by an angle of its own.

    The angles are evenly spaced from 0 to `max_angle`. (Lopez-Paz & Ranzato 2017 draw them at
    random from the same range, 0 to 180 degrees.)

    Attributes:
        num_experiences: T, at least 1; a single one is not rotated.
        max_angle: Degrees counter-clockwise, the last experience's angle; greater than 0 and less
            than 360.
    """

    num_experiences: int = 5
    max_angle: float = 180.0

    kind: ClassVar[Kind] = "domain"

    def __post_init__(self) -> None:
        check_num_experiences(self.num_experiences)
        if not 0 < self.max_angle < 360:
            raise ValueError(
                f"scenario.max_angle={self.max_angle}: must be greater than 0 and less than 360"
            )
        object.__setattr__(self, "max_angle", float(self.max_angle))  # 90 and 90.0 are one protocol

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: a rotation for each experience but the first."""
        if len(dataset.input_shape) != 3:
            raise ValueError(
                f"dataset inputs of shape {list(dataset.input_shape)} cannot be rotated: scenario "
                "Rotated needs images (channels, height, width)"
            )
        steps = max(self.num_experiences - 1, 1)
        angles = [self.max_angle * index / steps for index in range(self.num_experiences)]
        transforms = (None, *(Rotation(angle) for angle in angles[1:]))
        return of_domains(self, dataset, transforms, angles=angles)


Drift = Literal["blur", "noise", "contrast", "tint"]
"""What changes slowly from one experience to the next."""


@dataclass(frozen=True)
class Drifting:
    """Every experience holds all samples, and what they are seen through gets worse and worse.

    Experience 0 shows the inputs as they are; severity grows evenly to `severity` in the last one.

    - ``"blur"``: a Gaussian of `severity` pixels.
    - ``"noise"``: a fixed pattern of normal noise, of standard deviation `severity`.
    - ``"contrast"``: inputs times 1 - `severity`, which is then below 1.
    - ``"tint"``: colour images turn red: the other channels times 1 - `severity`, below 1.

    Attributes:
        num_experiences: T, at least 1; a single one is not changed.
        drift: What changes.
        severity: Of the last experience, greater than 0.
    """

    num_experiences: int = 5
    drift: Drift = "noise"
    severity: float = 0.5

    kind: ClassVar[Kind] = "domain"

    def __post_init__(self) -> None:
        check_num_experiences(self.num_experiences)
        if self.drift not in get_args(Drift):
            raise ValueError(
                f"scenario.drift={self.drift}: must be one of {', '.join(get_args(Drift))}"
            )
        most = 1.0 if self.drift in ("contrast", "tint") else math.inf
        if not 0 < self.severity < most:
            bound = "greater than 0" + (" and less than 1" if most == 1 else " and finite")
            raise ValueError(
                f"scenario.severity={self.severity}: must be {bound} for "
                f"scenario.drift={self.drift}"
            )
        object.__setattr__(self, "severity", float(self.severity))  # 1 and 1.0 are one protocol

    def lay_out(self, dataset: Dataset, num_clients: int, seed: int) -> Layout:
        """Return the layout: the same drift, further on in each experience."""
        shape = dataset.input_shape
        if self.drift != "noise" and (len(shape) != 3 or (self.drift == "tint" and shape[0] != 3)):
            wanted = "3 channels" if self.drift == "tint" else "channels"
            raise ValueError(
                f"scenario.drift={self.drift}: needs images ({wanted}, height, width), inputs are "
                f"{list(shape)}"
            )
        if dataset.train.x.dtype == torch.int64:
            raise ValueError(f"scenario.drift={self.drift}: inputs are tokens, which do not drift")
        steps = max(self.num_experiences - 1, 1)
        severities = [self.severity * index / steps for index in range(self.num_experiences)]
        drawn = int(numpy_generator(seed, "drift").integers(2**31))
        transforms = (None, *(self._at(severity, drawn) for severity in severities[1:]))
        return of_domains(self, dataset, transforms, severities=severities)

    def _at(self, severity: float, drawn: int) -> Transform:
        match self.drift:
            case "blur":
                return Blur(severity)
            case "noise":
                return PatternNoise(severity, drawn)
            case "contrast":
                return Scale((1 - severity,))
            case "tint":
                return Scale((1.0, 1 - severity, 1 - severity))
