"""GEM, corrected."""

from typing import Any

import numpy as np
import qpsolvers
import torch
from avalanche.training.plugins import GEMPlugin
from torch import Tensor

from strategies.continual.avalanche.corrections.gradients import flat, gradient_of, trainable
from strategies.continual.reservoir import Reservoir, keys_of

RIDGE = 1e-3
"""What the authors' code adds to the diagonal of the quadratic programme, so that it is solvable
where constraints depend on each other."""


class GEM(GEMPlugin):  # type: ignore[misc]
    """Gradient episodic memory.

    Attributes:
        memory: Samples of past experiences, shared equally by them.
    """

    def __init__(self, memory_size: int, memory_strength: float) -> None:
        """Create the plugin.

        Args:
            memory_size: Samples kept over all experiences. (Upstream: of each, so that memory grows
                for ever.)
            memory_strength: gamma, the least weight of every constraint's gradient in a projection.
        """
        super().__init__(memory_size, memory_strength)
        self.memory = Reservoir(memory_size)
        self._groups: list[list[Tensor]] | None = None

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Gather memory, one group of samples an experience."""
        if self._groups is None:
            origins = self.memory.rows[:, 0]
            self._groups = [
                strategy.gathered(self.memory.rows[origins == index])
                for index in sorted(set(origins.tolist()))
            ]

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Measure the gradient of every past experience, on all that is remembered of it."""
        # Upstream calls model.train(), which wakes layers that the user froze in evaluation mode.
        gradients, parameters = [], trainable(strategy.model)
        for x, y, t in self._groups or ():
            loss = strategy._criterion(strategy.logits_of(x, t), y)
            gradients.append(gradient_of(loss, parameters))
            strategy.drew(len(y))
        self.G = torch.stack(gradients) if gradients else torch.empty(0)

    @torch.no_grad()
    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Project the gradient where it would raise the loss of a past experience."""
        if not self._groups:
            return
        parameters = trainable(strategy.model)
        gradient = flat([parameter.grad for parameter in parameters], parameters)
        if bool((self.G @ gradient < 0).any()):
            projected = self.solve_quadprog(gradient)
            sizes = [parameter.numel() for parameter in parameters]
            parts = torch.split(projected, sizes)
            for parameter, part in zip(parameters, parts, strict=True):
                if parameter.grad is not None:
                    parameter.grad.copy_(part.view_as(parameter))

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Put samples of the experience into memory; what was there shrinks."""
        rows, keys = keys_of(strategy.experience.origin, strategy._seed)
        self.memory.offer_balanced(rows, keys, torch.cat([self.memory.rows, rows])[:, 0])
        self._groups = None

    def solve_quadprog(self, g: Tensor) -> Tensor:
        """Return g + G^T v for the v that solves the dual, eq. 11 of the paper.

        Args:
            g: (parameters,), the gradient of the present batch.
        """
        # Upstream copies all of G to the CPU as doubles; its Gram matrix is all that is needed.
        # And it returns float32, whatever the model's type.
        memories = self.G.double()
        gram = (memories @ memories.T).cpu().numpy()
        slope = (memories @ g.double()).cpu().numpy()
        weights = qpsolvers.solve_qp(
            P=gram + RIDGE * np.eye(len(gram)),
            q=slope,
            lb=np.full(len(gram), float(self.memory_strength)),
            solver="quadprog",
        )
        if weights is None:  # not finite: the turn is lost, and its loss will say so
            return g
        return g + torch.from_numpy(weights).to(g) @ self.G
