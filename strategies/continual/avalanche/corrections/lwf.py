"""LwF, corrected."""

from collections.abc import Collection
from typing import Any

from avalanche.training import LearningWithoutForgetting
from avalanche.training.plugins import LwFPlugin
from torch import Tensor


class Distillation(LearningWithoutForgetting):  # type: ignore[misc]
    """Avalanche's distillation loss with a teacher that stands still."""

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Make the present model the teacher."""
        super().post_adapt(agent, exp)
        # Upstream leaves the copy in training mode: its dropout draws and its batch statistics
        # follow the new data.
        self.prev_model.eval().requires_grad_(False)

    def _distillation_loss(
        self, out: Tensor, prev_out: Tensor, active_units: Collection[int]
    ) -> Any:
        # Upstream sums over units in the order of a set, which depends on how the set grew.
        return super()._distillation_loss(out, prev_out, sorted(active_units))


class LwF(LwFPlugin):  # type: ignore[misc]
    """Learning without forgetting."""

    def __init__(self, alpha: float, temperature: float) -> None:
        super().__init__(alpha, temperature)
        self.lwf = Distillation(alpha, temperature)
