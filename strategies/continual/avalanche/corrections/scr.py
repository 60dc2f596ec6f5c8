"""Supervised contrastive replay, corrected."""

from typing import Any, cast

import torch
from avalanche.training.losses import SCRLoss
from torch import Tensor

from strategies.continual.avalanche.corrections.prototypes import ReplayTemplate, prototypes_of
from strategies.continual.avalanche.networks.views import Contrastive, View


class SCR(ReplayTemplate):
    """Supervised contrastive replay, turn by turn.

    Upstream multiplies the loss by ``temperature / 0.07``, and averages each class mean with the
    one before, which belongs to features that are gone.

    Attributes:
        view: Makes the second view of a batch; the first is the batch itself.
        temperature: tau.
    """

    view: View
    temperature: float
    _views: torch.Generator

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        seed = self._seed("views", self._next_epoch - 1)
        self._views = torch.Generator().manual_seed(seed)

    def forward(self) -> Tensor:
        """Return projections of both views, (batch, 2, p), of length 1."""
        x = self.mbatch[0]
        model = cast(Contrastive, prototypes_of(self.model))
        projected = model.projected(torch.cat([x, self.view(x, self._views)]))
        return projected.view(2, len(x), -1).transpose(0, 1)

    def criterion(self) -> Tensor:
        """Return the supervised contrastive loss."""
        loss = SCRLoss(self.temperature, base_temperature=self.temperature)
        mean: Tensor = loss(self.mb_output, self.mb_y)
        return mean
