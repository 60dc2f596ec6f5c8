"""La-MAML, corrected."""

from typing import Any

import torch
from avalanche.models.utils import is_multi_task_module
from avalanche.training.templates import SupervisedMetaLearningTemplate
from torch import Tensor, nn
from torch.func import functional_call

from strategies.continual.avalanche.corrections.online_memory import OnlineMemory

Weights = dict[str, Tensor]


class LaMAML(OnlineMemory, SupervisedMetaLearningTemplate):  # type: ignore[misc]
    """Look-ahead MAML, turn by turn.

    Upstream initialises the model anew; calls every model with task labels, which only a multi-task
    one takes; and splits a batch into a fixed number of parts, of which the last ones may be empty:
    their loss is not a number. None of that here. Gradients of the loss reach the parameters
    themselves, not a copy, so that what else was added to the loss does, too.

    Attributes:
        inner_updates: k, look-ahead steps on parts of a batch; fewer where it has fewer samples.
        initial_rate: alpha_0.
        rate_of_rates: eta, the learning rate of the learning rates.
        second_order: Whether the meta-gradient sees how the look-ahead's gradients depend on
            weights and rates.
        max_norm: Bound of each element of a look-ahead's gradient, and of the L2 norms of the
            meta-gradients, of the weights and of the rates.
        rates: alpha, the learning rate of each element of each trainable parameter.
    """

    inner_updates: int
    initial_rate: float
    rate_of_rates: float
    second_order: bool
    max_norm: float
    rates: Weights

    def forget(self) -> None:
        """Empty memory, and start all learning rates anew."""
        super().forget()
        self.rates = {
            name: torch.full_like(parameter, self.initial_rate, requires_grad=False)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }
        # Task heads name parameters as the model that they wrap does, which cannot be called so.
        named = nn.Module.named_parameters(self.model)
        self._moving = {name: each for name, each in named if each.requires_grad}
        self._passes_tasks = is_multi_task_module(self.model)

    def _inner_updates(self, **_: Any) -> None:
        self._mixed = x, y, t = self.with_memory()
        self._learning = [rate.requires_grad_() for rate in self.rates.values()]
        present = self.mbatch[:3]
        parts = min(self.inner_updates, len(present[0]))
        norms = [norm for norm in self._norms if norm.training]
        for norm in norms:  # a part may be a single sample, and what is looked at moves nothing
            norm.eval()
        weights: Weights = dict(self._moving)
        losses = []
        for part in zip(*(tensor.tensor_split(parts) for tensor in present), strict=True):
            weights = self._look_ahead(weights, *part)
            losses.append(self._criterion(self._logits(weights, x, t), y))
        for norm in norms:
            norm.train()
        self.loss = self._make_empty_loss() + torch.stack(losses).mean()

    def _look_ahead(self, weights: Weights, x: Tensor, y: Tensor, t: Tensor) -> Weights:
        """Return the weights after a step on one part of the batch."""
        loss = self._criterion(self._logits(weights, x, t), y)
        gradients = torch.autograd.grad(
            loss, list(weights.values()), create_graph=self.second_order, allow_unused=True
        )
        return {
            name: weight
            if gradient is None
            else weight - self.turn.lr_factor * rate * gradient.clamp(-self.max_norm, self.max_norm)
            for (name, weight), rate, gradient in zip(
                weights.items(), self._learning, gradients, strict=True
            )
        }

    def _logits(self, weights: Weights, x: Tensor, t: Tensor) -> Tensor:
        inputs = (x, t) if self._passes_tasks else (x,)
        logits: Tensor = functional_call(self.model, weights, inputs)
        return logits

    def _outer_update(self, **_: Any) -> None:
        self._before_backward()
        self.backward()
        self._after_backward()
        parameters = list(self._moving.values())
        nn.utils.clip_grad_norm_(parameters, self.max_norm)
        nn.utils.clip_grad_norm_(self._learning, self.max_norm)
        self._before_update()
        with torch.no_grad():
            for parameter, rate in zip(parameters, self._learning, strict=True):
                if rate.grad is not None:
                    rate.sub_(self.rate_of_rates * rate.grad)
                rate.grad = None
                if parameter.grad is not None:
                    parameter.sub_(self.turn.lr_factor * rate.relu() * parameter.grad)
        for rate in self._learning:
            rate.requires_grad_(False)
        self._after_update()

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Return logits of the batch and memory after the step: for batch statistics to follow."""
        return self.logits_of(self._mixed[0], self._mixed[2]) if self._norms else self._mixed[0]
