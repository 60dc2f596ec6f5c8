"""What any client's local training may add to a continual strategy, as Avalanche plugins."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import nn


class ProximalTerm(SupervisedPlugin):  # type: ignore[misc]
    """FedProx's mu/2 * ||w - w_received||^2, added to the loss.

    T. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, eq. 2.
    """

    def __init__(self, mu: float, model: nn.Module) -> None:
        """Anchor the term at the present weights of `model`.

        Args:
            mu: Greater than 0.
            model: Holds the received global weights.
        """
        super().__init__()
        self._mu = mu
        self._pairs = [
            (parameter, parameter.detach().clone())
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add the term."""
        distance = torch.stack([(now - then).pow(2).sum() for now, then in self._pairs]).sum()
        strategy.loss += self._mu / 2 * distance


class GradientClipping(SupervisedPlugin):  # type: ignore[misc]
    """Clips the gradient to an L2 norm over all parameters, just before the step."""

    def __init__(self, max_norm: float) -> None:
        """Create the plugin; `max_norm` is greater than 0."""
        super().__init__()
        self._max_norm = max_norm

    def before_update(self, strategy: Any, **_: Any) -> None:
        """Clip."""
        nn.utils.clip_grad_norm_(strategy.model.parameters(), self._max_norm)
