"""EWC, corrected."""

from typing import Any

from avalanche.training.plugins import EWCPlugin
from torch import nn

from strategies.continual.avalanche.corrections.second_pass import second_pass


class EWC(EWCPlugin):  # type: ignore[misc]
    """Elastic weight consolidation."""

    def compute_importances(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return each parameter's importance, by name."""
        # Upstream ends with model.train(), which wakes layers that the user froze in evaluation
        # mode, and leaves the last batch's gradients on the parameters.
        with second_pass(model):
            return super().compute_importances(model, *args, **kwargs)
