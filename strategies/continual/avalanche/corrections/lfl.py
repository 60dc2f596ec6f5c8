"""LFL, corrected."""

from typing import Any

from avalanche.training.plugins import LFLPlugin
from torch.nn import functional as F

from strategies.continual.avalanche.corrections.feature_teacher import FeatureTeacher


class LFL(FeatureTeacher, LFLPlugin):  # type: ignore[misc]
    """Less-forgetful learning."""

    continual = "lfl"

    def __init__(self, lambda_e: float, freeze_head: bool) -> None:
        """Create the plugin.

        Args:
            lambda_e: Weight of the distance between features.
            freeze_head: Whether the head stands still after the first experience.
        """
        super().__init__(lambda_e)
        self.freeze_head = freeze_head

    def before_training(self, strategy: Any, **_: Any) -> None:
        """Accept any model that ends in a linear layer; upstream only a ``BaseModel``."""

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add lambda_e * mean((features - teacher's features)^2)."""
        # Upstream runs the model again for its features, in evaluation mode, and leaves it there:
        # from its second step on, dropout and batch statistics are off for good. These are the
        # features of the training pass.
        if self.prev_model is not None:
            strategy.loss += self.lambda_e * F.mse_loss(*self.features(strategy))

    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Leave the head out of the step."""
        # Upstream sets requires_grad, which stays behind on the model: here all clients of a
        # process take turns on one.
        if self.prev_model is not None and self.freeze_head:
            for parameter in self.head(strategy.model).parameters():
                parameter.grad = None
