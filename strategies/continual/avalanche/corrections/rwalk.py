"""RWalk, corrected.

A. Chaudhry et al., "Riemannian Walk for Incremental Learning: Understanding Forgetting and
Intransigence", ECCV 2018. With g the gradient of a batch's loss without the penalty and theta the
weights, step by step:

    F   <- alpha g^2 + (1 - alpha) F                             running Fisher (EWC++)
    L   <- L - g (theta(t+1) - theta(t))                         fall of the loss since t1
    s   <- s + L / (F (theta(t) - theta(t1))^2 / 2 + epsilon)    every delta_t steps: t1 = t, L = 0

At an experience's end s is averaged with the scores that were there before, and

    penalty = lambda * sum_k (F_k / max F + max(s_k, 0) / max s) (theta_k - theta*_k)^2
"""

from typing import Any

import torch
from avalanche.training.plugins import RWalkPlugin
from torch import Tensor, nn


class RWalk(RWalkPlugin):  # type: ignore[misc]
    """Riemannian walk.

    The path is that of the client's own steps. Between two of its rounds the server moves the
    weights: upstream's difference to a checkpoint would count that as a step of the client.

    Attributes:
        path: Of the present experience, by name of what and of the parameter: ``fisher`` is F,
            which goes on through all experiences, ``loss`` is L, ``walked`` is theta(t) -
            theta(t1), ``scores`` is s.
        exp_scores: s of the past; None before the first consolidation.
        exp_params: theta*; None before the first consolidation.
        exp_penalties: What weighs each squared distance; None before the first consolidation.
    """

    exp_scores: dict[str, Tensor] | None
    exp_params: dict[str, Tensor] | None
    exp_penalties: dict[str, Tensor] | None

    def __init__(self, ewc_lambda: float, ewc_alpha: float, delta_t: int) -> None:
        """Create the plugin.

        Args:
            ewc_lambda: lambda, at least 0.
            ewc_alpha: alpha, in [0, 1].
            delta_t: Steps between two updates of the scores, at least 1.
        """
        super().__init__(ewc_lambda, ewc_alpha, delta_t)
        self.path: dict[str, dict[str, Tensor]] = {"fisher": {}}
        self._gradient: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def before_training(self, strategy: Any, **_: Any) -> None:
        """Do nothing: what starts anew does so with an experience, not with a ``train()``."""

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Start a path."""
        for what in ("loss", "walked", "scores"):
            self.path[what] = {
                name: torch.zeros_like(parameter)
                for name, parameter in _trained(strategy.model).items()
            }

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Do nothing. Upstream runs the model a second time, in evaluation mode.

        And leaves it there, so that its training has no dropout and no batch statistics.
        """

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Measure the gradient of the loss so far, update the Fisher and add the penalty."""
        parameters = _trained(strategy.model)
        strategy.loss.backward(retain_graph=strategy.retain_graph)
        fisher, alpha = self.path["fisher"], self.ewc_alpha
        anchors, weights = self.exp_params or {}, self.exp_penalties or {}
        self._gradient = {}
        penalty = torch.zeros((), device=strategy.device)
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                gradient = self._gradient[name] = parameter.grad.clone()
                square = gradient.pow(2)
                known = fisher.get(name)
                fisher[name] = square if known is None else known.lerp(square, alpha)
            if name in weights:
                distance = (parameter - anchors[name]).pow(2)
                penalty = penalty + (weights[name] * distance).sum()
            else:
                penalty = penalty + 0 * parameter.sum()  # what is differentiated next
        # The gradient of what is behind is there already; the backward pass to come adds the rest.
        strategy.loss = strategy.loss.detach() + self.ewc_lambda * penalty

    def before_update(self, strategy: Any, **_: Any) -> None:
        """Remember where the step begins."""
        self._before = {
            name: parameter.detach().clone() for name, parameter in _trained(strategy.model).items()
        }

    def after_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Extend the path by the step."""
        loss, walked = self.path["loss"], self.path["walked"]
        for name, parameter in _trained(strategy.model).items():
            if name in self._gradient:
                step = parameter.detach() - self._before[name]
                loss[name] -= self._gradient[name] * step
                walked[name] += step
        # Upstream counts the steps of all experiences, so intervals straddle two of them.
        if (strategy.clock.train_exp_iterations + 1) % self.delta_t == 0:
            self._score()

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Turn Fisher and scores into what weighs the penalty, and move theta* here."""
        # Upstream forgets the interval that the experience's end cuts short: a client with few
        # samples then has no scores at all.
        self._score()
        scores = self.path["scores"]
        if self.exp_scores is not None:
            scores = {name: (self.exp_scores[name] + score) / 2 for name, score in scores.items()}
        self.exp_scores = scores
        parameters = _trained(strategy.model)
        self.exp_params = {name: each.detach().clone() for name, each in parameters.items()}
        fisher = _to_one(self.path["fisher"])
        importance = _to_one({name: score.clamp(min=0) for name, score in scores.items()})
        self.exp_penalties = {
            name: fisher[name] + importance[name] if name in fisher else importance[name]
            for name in scores
        }

    def _score(self) -> None:
        """Add what has been walked to the scores, and start a new interval."""
        fisher, walked, scores = self.path["fisher"], self.path["walked"], self.path["scores"]
        for name, fall in self.path["loss"].items():
            if name in fisher:
                epsilon = torch.finfo(fall.dtype).eps
                scores[name] += fall / (0.5 * fisher[name] * walked[name].pow(2) + epsilon)
            fall.zero_()
            walked[name].zero_()


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def _to_one(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `values` over the largest of them all, which upstream divides by even if it is 0."""
    largest = max((float(tensor.max()) for tensor in values.values()), default=0.0)
    return {name: tensor / largest if largest > 0 else tensor for name, tensor in values.items()}
