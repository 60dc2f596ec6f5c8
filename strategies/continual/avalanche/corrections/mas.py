"""MAS, corrected."""

from typing import Any

import torch
from avalanche.models import avalanche_forward
from avalanche.training.plugins import MASPlugin
from avalanche.training.utils import ParamData, zerolike_params_dict

from strategies.continual.avalanche.corrections.second_pass import second_pass


class MAS(MASPlugin):  # type: ignore[misc]
    """Memory aware synapses."""

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add the penalty lambda * sum(importance * (theta - theta_previous)^2)."""
        # Upstream tests `if not strategy.loss` to see whether there is one, and so raises on a loss
        # that is exactly 0.
        if strategy.clock.train_exp_counter == 0:
            return
        penalty = torch.zeros((), device=strategy.device)
        for name, parameter in strategy.model.named_parameters():
            if name in self.importance:
                distance = (parameter - self.params[name].data).pow(2)
                penalty = penalty + (self.importance[name].data * distance).sum()
        strategy.loss += self._lambda * penalty

    def _get_importance(self, strategy: Any) -> dict[str, ParamData]:
        # Upstream measures in training mode: dropout makes the importances noise, and batch
        # statistics, which belong to the global model, move. The authors' code evaluates.
        importance: dict[str, ParamData] = zerolike_params_dict(strategy.model)
        x, _, t = strategy.experience.tensors(strategy.device)
        batches = list(
            zip(x.split(strategy.train_mb_size), t.split(strategy.train_mb_size), strict=True)
        )
        with second_pass(strategy.model):
            for inputs, task_labels in batches:
                strategy.optimizer.zero_grad()
                output = avalanche_forward(strategy.model, inputs, task_labels)
                output.pow(2).sum(dim=1).mean().backward()
                for name, parameter in strategy.model.named_parameters():
                    if parameter.grad is not None:
                        importance[name].data += parameter.grad.abs()
        for weights in importance.values():
            weights.data /= len(batches)
        return importance
