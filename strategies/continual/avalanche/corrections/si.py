"""Synaptic intelligence, corrected.

F. Zenke, B. Poole, S. Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017.
With g the gradient and theta the weights,

    omega_k = - sum_t g_k(t) (theta_k(t+1) - theta_k(t))                          (eq. 3)
    Omega_k = sum over past experiences of omega_k / (Delta_k^2 + xi)             (eq. 5)
    penalty = c * sum_k Omega_k (theta*_k - theta_k)^2                            (eq. 4)

Avalanche's names are kept: ``ewc_data`` is (theta*, Omega), ``syn_data["trajectory"]`` is -omega
of the present experience and ``syn_data["cum_trajectory"]`` is -Omega before floor and cap.
Normalisation layers are left out, as upstream does.
"""

from typing import Any

import torch
from avalanche.training.plugins import SynapticIntelligencePlugin
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Named = list[tuple[str, nn.Parameter]]


class SynapticIntelligence(SynapticIntelligencePlugin):  # type: ignore[misc]
    """Synaptic intelligence."""

    def __init__(self, si_lambda: float, damping: float, max_importance: float | None) -> None:
        """Create the plugin.

        Args:
            si_lambda: c of eq. 4, at least 0. (Upstream's is 2c.)
            damping: xi of eq. 5, greater than 0. (Upstream: 1e-7.)
            max_importance: Omega is cut here; None for never, as in the paper. (Upstream: 1e-3.)
        """
        super().__init__(si_lambda, eps=damping)
        self.max_importance = max_importance
        self._before: dict[str, Tensor] = {}
        self._gradient: dict[str, Tensor] = {}
        self._walked: tuple[nn.Module | None, Named] = None, []

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Anchor theta* at the present weights and start the path integral at 0."""
        for name, parameter in self._parameters(strategy.model):
            # Upstream stores a view of the live parameter, here and below.
            self.ewc_data[0][name] = parameter.detach().clone()
            self.syn_data["trajectory"][name] = torch.zeros_like(parameter)
            self.syn_data["cum_trajectory"].setdefault(name, torch.zeros_like(parameter))

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Remember the weights before the step."""
        self._before = {
            name: parameter.detach().clone() for name, parameter in self._parameters(strategy.model)
        }

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add the penalty, which is 0 before the first consolidation."""
        if strategy.clock.train_exp_counter == 0:
            return
        if not self.ewc_data[1]:
            self._measure()
        penalty = torch.zeros((), device=strategy.device)
        for name, parameter in self._parameters(strategy.model):
            distance = (parameter - self.ewc_data[0][name]).pow(2)
            penalty = penalty + (self.ewc_data[1][name] * distance).sum()
        strategy.loss += self.si_lambda[0] * penalty

    def after_backward(self, strategy: Any, **_: Any) -> None:
        """Remember the gradient of the loss."""
        # Upstream reads it after the step, when clipping has shortened it: the integral would then
        # undercount how far the loss fell.
        self._gradient = {
            name: parameter.grad.detach().clone()
            for name, parameter in self._parameters(strategy.model)
            if parameter.grad is not None
        }

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Extend the path integral by the step."""
        trajectory = self.syn_data["trajectory"]
        for name, parameter in self._parameters(strategy.model):
            if name in self._gradient:
                step = parameter.detach() - self._before[name]
                trajectory[name] += self._gradient[name] * step

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Turn the path integral into importances and move theta* here."""
        for name, parameter in self._parameters(strategy.model):
            moved = (parameter.detach() - self.ewc_data[0][name]).pow(2)
            trajectory = self.syn_data["trajectory"][name]
            self.syn_data["cum_trajectory"][name] += trajectory / (moved + self.eps)
            self.ewc_data[0][name] = parameter.detach().clone()
        self._measure()

    def _measure(self) -> None:
        """Set Omega."""
        for name, cumulated in self.syn_data["cum_trajectory"].items():
            # Upstream has no floor: momentum makes importances negative, and the loss then falls
            # without bound.
            self.ewc_data[1][name] = (-cumulated).clamp(min=0.0, max=self.max_importance)

    def _parameters(self, model: nn.Module) -> Named:
        """Return the parameters that SI protects; upstream walks the model five times a step."""
        if self._walked[0] is not model:
            skipped = {
                id(parameter)
                for module in model.modules()
                if isinstance(module, _NormBase)
                for parameter in module.parameters(recurse=False)
            }
            protected = [
                (name, parameter)
                for name, parameter in model.named_parameters()
                if parameter.requires_grad and id(parameter) not in skipped
            ]
            self._walked = model, protected
        return self._walked[1]
