"""Skews: what is different about each client's samples, beside which ones it holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlearn.seeding import numpy_generator
from fedlearn.types import Samples, Transform
from scenarios.domains import Rotation


@dataclass(frozen=True)
class Skew:
    """A client's own view of its inputs, and the mistakes in its labels. By default none.

    Test sets are as they are: the global model is measured on clean, upright samples.

    Attributes:
        rotation: Each client sees its images turned by an angle of its own, drawn uniformly from
            -rotation to rotation degrees; in [0, 180].
        label_noise: Each client has a share of wrong labels of its own, drawn uniformly from 0 to
            label_noise; a wrong label is any other class, each as likely. In [0, 1]. What a client
            sets aside to test itself on is as noisy.
    """

    rotation: float = 0.0
    label_noise: float = 0.0

    def __post_init__(self) -> None:
        for key, most in (("rotation", 180), ("label_noise", 1)):
            if not 0 <= getattr(self, key) <= most:
                raise ValueError(f"skew.{key}={getattr(self, key)}: must be in [0, {most}]")
            object.__setattr__(self, key, float(getattr(self, key)))  # 0 and 0.0 are one protocol

    def views(
        self, num_clients: int, input_shape: tuple[int, ...], seed: int
    ) -> tuple[Transform | None, ...] | None:
        """Return how each client sees its inputs, None for as they are."""
        if not self.rotation:
            return None
        if len(input_shape) != 3:
            raise ValueError(
                f"skew.rotation={self.rotation:g}: needs images (channels, height, width), inputs "
                f"are {list(input_shape)}"
            )
        rng = numpy_generator(seed, "skew-rotation")
        return tuple(
            Rotation(float(angle))
            for angle in rng.uniform(-self.rotation, self.rotation, num_clients)
        )

    def labels(
        self, samples: Samples, owned: Sequence[Tensor], num_classes: int, seed: int
    ) -> Samples:
        """Return `samples` with the clients' mistakes in their labels, inputs not copied.

        Args:
            samples: With their right labels.
            owned: The rows of each client.
            num_classes: C.
            seed: The run's seed.
        """
        if not self.label_noise:
            return samples
        if samples.regression:
            raise ValueError(f"skew.label_noise={self.label_noise:g}: a regression has no labels")
        rng = numpy_generator(seed, "skew-labels")
        share = torch.zeros(len(samples), dtype=torch.float64)
        for rows, rate in zip(owned, rng.uniform(0, self.label_noise, len(owned)), strict=True):
            share[rows] = rate
        wrong = torch.from_numpy(rng.random(len(samples))) < share
        shift = torch.from_numpy(rng.integers(1, max(num_classes, 2), len(samples)))
        return replace(samples, y=torch.where(wrong, (samples.y + shift) % num_classes, samples.y))
