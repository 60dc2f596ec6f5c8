"""Losses of a stack of clients, and their slopes in the model's outputs.

Where the model's backward pass is written by hand (`chain`), a method's loss is asked for its slope
in the outputs only. Any method's is found by handing its loss the outputs in place of the inputs;
that of a plain mean over samples, which most have, is found without ``vmap``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from fedlearn.heads import HIDDEN, hide
from fedlearn.losses import Loss
from fedlearn.types import LocalTraining
from strategies.continual.functional.method import Method
from strategies.continual.functional.network import Network, Outputs
from strategies.continual.functional.trees import Batch, Tree

FEW = 32
"""Classes that count as few."""


class Handed(Outputs):
    """A network whose inputs are the outputs already: the model's, and behind them the teacher's.

    Inputs are (batch, C), or (batch, 2 C) where there is a teacher.
    """

    def __init__(self, model: nn.Module, training: LocalTraining) -> None:
        super().__init__(model, training)
        self._num_classes = training.num_classes

    def __call__(self, params: Tree, x: Tensor) -> Tensor:
        """Return the model's outputs (batch, C)."""
        return x[:, : self._num_classes]

    def logits(self, params: Tree, batch: Batch) -> Tensor:
        """Return the model's outputs (batch, C), those of other tasks' heads hidden."""
        return self.seen(self(params, batch["x"]), batch)

    def teach(self, weights: Tree, x: Tensor) -> Tensor:
        """Return the teacher's outputs (batch, C)."""
        return x[:, self._num_classes :]


def mean_slope(
    handed: Handed, criterion: Loss, batch: Batch, class_weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each client's mean loss (K,) and its slope (K, batch, C) in the outputs.

    Args:
        handed: Knows the heads.
        criterion: The loss, without class weights.
        batch: Stacked: ``x`` are the outputs (K, batch, C); nothing that is replayed.
        class_weights: (K, C), what a sample of each class weighs; None for 1.
    """
    outputs, labels = batch["x"], batch["y"]
    shape = outputs.shape[:2]
    flat: Batch = {"x": outputs.flatten(0, 1), "y": labels.flatten(0, 1)}
    if "task" in batch:
        flat["task"] = batch["task"].flatten()
    share = _shares(batch, class_weights)
    if criterion.kind == "cross_entropy" and not criterion.label_smoothing:
        logits = handed.seen(flat["x"], flat)
        if criterion.companions is not None:
            logits = hide(logits, criterion.companions.to(logits.device)[flat["y"]])
        losses, slope = _cross_entropy(logits, flat["y"])
        losses = losses.view(shape)
        if logits is not flat["x"]:
            slope.masked_fill_(logits == HIDDEN, 0)
    else:
        leaf = flat["x"].detach().requires_grad_()
        with torch.enable_grad():
            terms, _ = criterion.terms(handed.seen(leaf, flat), flat["y"])
        (slope,) = torch.autograd.grad(terms.sum(), leaf)
        losses = terms.detach().view(shape)
    room = torch.empty_like(outputs, memory_format=torch.contiguous_format)
    if share is None:
        torch.div(slope, shape[1], out=room.flatten(0, 1))
        return losses.mean(1), room
    torch.mul(slope, share.flatten()[:, None], out=room.flatten(0, 1))
    return (losses * share).sum(1), room


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses (m,) of logits (m, C), and their slopes (m, C)."""
    # Softmax along the last axis takes torch about 20 times as long for few classes on a CPU.
    across = logits.is_cpu and logits.shape[1] <= FEW
    axis, own = (0, labels[None]) if across else (1, labels[:, None])
    slope = (logits.t().contiguous() if across else logits).log_softmax(axis)
    losses = slope.gather(axis, own).squeeze(axis).neg_()
    slope.exp_().scatter_add_(axis, own, slope.new_full((1, 1), -1).expand_as(own))
    return losses, slope.t() if across else slope


def _shares(batch: Batch, class_weights: Tensor | None) -> Tensor | None:
    """Return what share of its client's mean each sample has, (K, batch); None for equal ones."""
    present = batch.get("present")
    if class_weights is None:
        if present is None:
            return None
        weights = present.to(batch["x"].dtype)
    else:
        weights = class_weights.to(batch["x"].dtype).gather(1, batch["y"])
        weights = weights if present is None else weights * present
    return weights / weights.sum(1, keepdim=True)


def any_slope(
    loss: Callable[[Batch, Any, Loss], Tensor],
    criterion: Loss,
    batch: Batch,
    memory: Any,
    class_weights: Tensor | None,
    taught: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return each client's loss (K,) and its slope (K, samples, C) in the outputs, by ``vmap``.

    Args:
        loss: Of one client, with outputs for inputs: of a batch, a memory and a criterion.
        criterion: The loss of a sample, without class weights.
        batch: Stacked, ``x`` are the outputs, of what is replayed too.
        memory: Stacked; None for nothing.
        class_weights: (K, C), what a sample of each class weighs; None for 1.
        taught: (K, samples, C), the teacher's outputs; None where there is no teacher.
    """
    width = batch["x"].shape[1]
    outputs = batch["x"]
    if "replayed" in batch:
        outputs = torch.cat([outputs, batch["replayed"]["x"]], dim=1)

    def one(
        outputs: Tensor, rest: Batch, memory: Any, weights: Tensor | None, taught: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        own = criterion if weights is None else replace(criterion, class_weights=weights)

        def value(outputs: Tensor) -> Tensor:
            seen = outputs if taught is None else torch.cat([outputs, taught], dim=1)
            handed: Batch = {**rest, "x": seen[:width]}
            if "replayed" in rest:
                handed["replayed"] = {**rest["replayed"], "x": seen[width:]}
            return loss(handed, memory, own)

        slope, found = grad_and_value(value)(outputs)
        return found, slope

    arguments = (outputs, batch, memory, class_weights, taught)
    axes = tuple(None if each is None else 0 for each in arguments)
    found, slope = vmap(one, axes)(*arguments)
    return found, slope


def is_mean(method: Method[Any]) -> bool:
    """Return whether a method's loss is that of `Method`, a mean over samples."""
    return type(method).loss is Method.loss


def loss_of(method: Method[Any], network: Network) -> Callable[[Batch, Any, Loss], Tensor]:
    """Return a method's loss as a function of a batch, a memory and a criterion."""
    return lambda batch, memory, criterion: method.loss(network, {}, batch, memory, criterion)
