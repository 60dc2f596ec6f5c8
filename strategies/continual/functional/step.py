"""One optimiser step, for one client in a loop and for a whole cohort under ``vmap``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import torch
from torch import Tensor
from torch.func import grad_and_value

from fedlearn.losses import Loss
from strategies.continual.functional.method import M, Method
from strategies.continual.functional.network import Network
from strategies.continual.functional.optimizers import Optimizer, Slots
from strategies.continual.functional.springs import Spring, stretch
from strategies.continual.functional.trees import Batch, Tree, clipped, norm

Differentiate = Callable[[Callable[[Tree], Tensor], Tree], tuple[Tensor, Tree]]
"""Returns a scalar function's value and gradient at some weights."""


def by_leaves(function: Callable[[Tree], Tensor], params: Tree) -> tuple[Tensor, Tree]:
    """Return value and gradient of `function` at leaves of autograd's graph.

    A parameter that the value does not depend on has no entry in the gradient.
    """
    value = function(params)
    gradients = torch.autograd.grad(value, tuple(params.values()), allow_unused=True)
    return value.detach(), {
        name: gradient
        for name, gradient in zip(params, gradients, strict=True)
        if gradient is not None
    }


def by_transform(function: Callable[[Tree], Tensor], params: Tree) -> tuple[Tensor, Tree]:
    """Return value and gradient of `function` at any tensors; works under ``vmap``."""
    gradient, value = grad_and_value(function)(params)
    return value, gradient


@dataclass(frozen=True)
class Step(Generic[M]):
    """A pure function: weights, what optimiser and method remember, and a batch, to the same after.

    Attributes:
        method: The continual strategy.
        network: The model.
        optimizer: At this turn's learning rate.
        criterion: Loss of the present experience.
        differentiate: `by_leaves` for a live model, `by_transform` under ``vmap``.
        proximal: FedProx's term: T. Li et al., "Federated Optimization in Heterogeneous Networks",
            MLSys 2020, eq. 2. Its strength is mu / 2, its anchor what was received.
        max_grad_norm: Gradients are clipped to it; None for never.
        measures_gradient: Whether to return ``gradient_norm`` too.
    """

    method: Method[M]
    network: Network
    optimizer: Optimizer
    criterion: Loss
    differentiate: Differentiate
    proximal: Spring | None = None
    max_grad_norm: float | None = None
    measures_gradient: bool = False

    def __call__(
        self, params: Tree, slots: Slots, memory: M | None, batch: Batch
    ) -> tuple[Tree, Slots, M | None, dict[str, Tensor]]:
        """Take one step.

        Args:
            params: The trainable weights.
            slots: What the optimiser remembers.
            memory: What the method remembers; None for nothing.
            batch: What to learn from.

        Returns:
            Weights, slots and memory after the step, and scalars: the ``loss`` before it, penalties
            included, and the ``gradient_norm`` before clipping where asked for.
        """
        loss, gradient, reference = self.differentiated(params, memory, batch)
        with torch.no_grad():
            measures, gradient, followed = self.directed(params, memory, loss, gradient, reference)
            after, slots = self.optimizer.update(params, followed, slots)
            if memory is not None:
                memory = self.method.after_step(memory, params, after, gradient)
        return after, slots, memory, measures

    def differentiated(
        self, params: Tree, memory: M | None, batch: Batch
    ) -> tuple[Tensor, Tree, Tree | None]:
        """Return loss and gradient without quadratic penalties, and the gradient of the reference.

        The last is None where the method has none, or the batch nothing that is replayed.
        """
        reference: Tree | None = None
        if self.method.projects and "replayed" in batch:
            _, reference = self.differentiate(
                lambda weights: self.method.reference(
                    self.network, weights, batch["replayed"], self.criterion
                ),
                params,
            )
        loss, gradient = self.differentiate(
            lambda weights: self.method.loss(self.network, weights, batch, memory, self.criterion),
            params,
        )
        return loss, gradient, reference

    def directed(
        self,
        params: Tree,
        memory: M | None,
        loss: Tensor,
        gradient: Tree,
        reference: Tree | None,
    ) -> tuple[dict[str, Tensor], Tree, Tree]:
        """Return measures of the step, the whole gradient, and what the optimiser follows.

        Args:
            params: The trainable weights.
            memory: What the method remembers; None for nothing.
            loss: From `differentiated`.
            gradient: Likewise.
            reference: Likewise.
        """
        if memory is not None:
            springs = self.method.springs(memory)
            loss, gradient = stretch(springs, params, loss, gradient)
        if self.proximal is not None:
            loss, gradient = stretch((self.proximal,), params, loss, gradient)
        if reference is not None:
            gradient = self.method.adjust_gradient(gradient, reference)
        measures = {"loss": loss}
        followed = gradient
        if self.max_grad_norm is not None or self.measures_gradient:
            length = norm(gradient)
            if self.measures_gradient:
                measures["gradient_norm"] = length
            if self.max_grad_norm is not None:
                followed = clipped(gradient, length, self.max_grad_norm)
        return measures, gradient, followed
