"""Feature distillation, corrected."""

from typing import Any

from avalanche.training.plugins import FeatureDistillationPlugin
from torch.nn import functional as F

from strategies.continual.avalanche.corrections.feature_teacher import FeatureTeacher


class FeatureDistillation(FeatureTeacher, FeatureDistillationPlugin):  # type: ignore[misc]
    """Distillation of features.

    Upstream reads an attribute ``features`` that only its own wrapper models have, and its teacher
    stays in training mode, where dropout draws and batch statistics follow the new data.
    """

    continual = "feature_distillation"

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add alpha times the distance of the features."""
        if self.prev_model is None:
            return
        features, taught = (each.flatten(1) for each in self.features(strategy))
        if self.mode == "cosine":
            distance = 1 - F.cosine_similarity(features, taught, dim=1).mean()
        else:  # upstream gives mse_loss an argument that it does not take
            distance = F.mse_loss(features, taught)
        strategy.loss += self.alpha * distance
