"""Embeddings on the unit sphere and a prototype of each class: the model of CoPE.

M. De Lange, T. Tuytelaars, "Continual Prototype Evolution: Learning Online from Non-Stationary Data
Streams", ICCV 2021.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FAINT_EXPONENT = -20
"""A prototype that is merely passed on has a length of about 2 to this; an updated one has 1."""


class CopeNetwork(nn.Module):
    """It outputs embeddings (batch, e) in training, in evaluation scores (batch, C).

    A prototype is the direction of its row, so its length is free to be its weight in the server's
    mean: 1 where the client updated it in this turn, next to 0 where it only passes on what it
    received. The mean then points where those point who saw the class, as long as anybody did.
    """

    prototypes: Tensor

    def __init__(
        self, backbone: nn.Module, embedding: nn.Linear, num_classes: int, temperature: float
    ) -> None:
        """Build the model; prototypes are drawn from the global generator.

        Args:
            backbone: Outputs features (batch, d).
            embedding: From features to e dimensions.
            num_classes: C.
            temperature: Scores in evaluation are cosines divided by it.
        """
        super().__init__()
        self.backbone = backbone
        self.embedding = embedding
        self._temperature = temperature
        drawn = torch.empty(num_classes, embedding.out_features).uniform_(-1, 1)
        self.register_buffer("prototypes", F.normalize(drawn, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings of length 1 in training, else scores, for x (batch, *input_shape)."""
        embedded = F.normalize(self.embedding(self.backbone(x)), dim=1)
        return embedded if self.training else embedded @ self.directions().T / self._temperature

    def directions(self) -> Tensor:
        """Return the prototypes (C, e), of length 1."""
        return F.normalize(self.prototypes, dim=1)

    @torch.no_grad()
    def begin_turn(self) -> None:
        """Make every prototype faint, by powers of two: no direction changes by a bit."""
        _, exponent = torch.frexp(self.prototypes.norm(dim=1, keepdim=True))
        self.prototypes = torch.ldexp(self.prototypes, FAINT_EXPONENT - exponent)

    @torch.no_grad()
    def evolve(self, embedded: Tensor, labels: Tensor, alpha: float) -> None:
        """Move the prototype of each class in the batch: p <- alpha p + (1 - alpha) mean, length 1.

        Args:
            embedded: (batch, e).
            labels: (batch,) int64.
            alpha: Share of the old prototype, in [0, 1].
        """
        members = F.one_hot(labels, len(self.prototypes)).to(embedded)
        mean = F.normalize(members.T @ embedded, dim=1)
        moved = F.normalize(alpha * self.directions() + (1 - alpha) * mean, dim=1)
        self.prototypes = torch.where(members.any(0)[:, None], moved, self.prototypes)
