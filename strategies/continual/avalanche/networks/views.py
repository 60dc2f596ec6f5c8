"""Two views of a sample, and a model whose projections are compared."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from fedlearn.augmentation import Augmentation
from fedlearn.types import LocalTraining
from strategies.continual.avalanche.networks.prototypes import Prototypes


class Contrastive(Prototypes):
    """A model that predicts by the nearest class mean, and projects features to compare samples.

    Its own head is neither trained nor read. Elsewhere than in `projected` it is as its base.

    Attributes:
        projection: Two layers, from features (batch, d) to (batch, p).
    """

    def __init__(
        self, continual: str, model: nn.Module, training: LocalTraining, projection_size: int
    ) -> None:
        """Wrap `model`; `projection_size` is p, see `Prototypes` for the rest."""
        super().__init__(continual, model, training, normalize=True)
        width = self.head.in_features
        self.projection = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection_size)
        ).to(self.head.weight.device)

    def projected(self, x: Tensor) -> Tensor:
        """Return (batch, p) of length 1 for x (batch, *input_shape)."""
        return F.normalize(self.projection(self.embed(self.features(x))), dim=1)


@dataclass(frozen=True)
class View:
    """Makes another view of each sample of a batch.

    Attributes:
        images: What changes images (batch, channels, height, width).
        corruption: Share of the values of any other input that is swapped, in [0, 1].
    """

    images: Augmentation
    corruption: float

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return another view of x (batch, *input_shape), with draws from `generator`."""
        if x.dim() == 4:
            return self.images(x, generator)
        return corrupted(x, self.corruption, generator)


def corrupted(x: Tensor, share: float, generator: Generator) -> Tensor:
    """Return `x` with a random share of its values replaced by those of other samples.

    D. Bahri et al., "SCARF: Self-Supervised Contrastive Learning using Random Feature Corruption",
    ICLR 2022, section 3: each value is replaced with probability `share`, by the same feature of a
    sample drawn from the batch (the paper draws from all of the data).

    Args:
        x: (batch, *input_shape).
        share: In [0, 1].
        generator: Of every draw; on any device.
    """
    flat, where = x.flatten(1), generator.device
    donors = torch.randint(len(x), flat.shape, generator=generator, device=where)
    swapped = torch.rand(flat.shape, generator=generator, device=where) < share
    return flat.gather(0, donors.to(x.device)).where(swapped.to(x.device), flat).view_as(x)
