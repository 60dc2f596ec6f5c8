"""Stacks of clients: which models can be stacked, the model as a pure function, and trees of them.

Weights, slots, memories and batches of K clients are stacked along a leading axis. Batches that are
smaller than the others are padded: ``present`` says which samples count.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fedlearn.types import LocalTraining
from strategies.continual.functional.network import Outputs
from strategies.continual.functional.trees import Batch, Tree


class Stateless(Outputs):
    """The model as a pure function of its trainable weights.

    What is not trained (frozen parameters, buffers) is the wrapped model's own.
    """

    def __init__(self, model: nn.Module, training: LocalTraining, evaluating: bool = False) -> None:
        """Wrap a copy of `model`.

        Args:
            model: One that can be stacked; see `unstackable`.
            training: What local training is made of.
            evaluating: Whether it runs in evaluation mode, as importances need it.
        """
        super().__init__(model, training)
        self._model = copy.deepcopy(model).train(not evaluating)
        self._evaluating = self._model if evaluating else copy.deepcopy(model).eval()
        tensors = (*self._model.named_parameters(), *self._model.named_buffers())
        self._names = frozenset(name for name, _ in tensors)  # one for each, where some are tied
        self._fixed = [
            (name, each.detach())
            for model in (self._model, self._evaluating)
            for name, each in (*model.named_parameters(), *model.named_buffers())
            if not each.requires_grad
        ]

    def __call__(self, params: Tree, x: Tensor) -> Tensor:
        """Return the model's outputs (batch, C) for x (batch, *input_shape) at `params`."""
        return self._run(self._model, params, x)

    def logits(self, params: Tree, batch: Batch) -> Tensor:
        """Return the outputs (batch, C) for a batch, those of other tasks' heads hidden."""
        return self.seen(self(params, batch["x"]), batch)

    def teach(self, weights: Tree, x: Tensor) -> Tensor:
        """Return the outputs (batch, C) at `weights` in evaluation mode, without gradients."""
        with torch.no_grad():
            own = {name: each for name, each in weights.items() if name in self._names}
            return self._run(self._evaluating, own, x)

    def load(self, received: Mapping[str, Tensor]) -> None:
        """Take what is not trained from `received`, parameters and buffers by name."""
        for name, each in self._fixed:
            if name in received:
                each.copy_(received[name])

    def _run(self, model: nn.Module, weights: Tree, x: Tensor) -> Tensor:
        with self._precision():
            outputs: Tensor = functional_call(model, weights, (x,))
        return outputs.float() if self._low else outputs


def unstackable(model: nn.Module) -> str | None:
    """Return why clients of `model` cannot be stacked, in a line; None if they can.

    They cannot where a layer's training depends on more than one client's weights and samples.
    """
    for path, module in model.named_modules():
        reason = None
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            continue  # frozen: it normalises with the statistics that it has
        if isinstance(module, _BatchNorm):
            reason = "mixes a batch with its padding and tracks statistics"
        elif isinstance(module, _NormBase) and module.track_running_stats:
            reason = "tracks running statistics"
        elif isinstance(module, _DropoutNd) and module.p:
            reason = "draws other numbers than a client alone would"
        if reason is not None:
            return f"{path} ({type(module).__name__}) {reason}"
    return None


def stack(clients: Sequence[Any]) -> Any:
    """Return one tree of stacked tensors out of one a client, all of one structure."""
    first = clients[0]
    if isinstance(first, Tensor):
        return torch.stack(list(clients))
    if isinstance(first, dict):
        return {key: stack([each[key] for each in clients]) for key in first}
    return type(first)(*(stack(each) for each in zip(*clients, strict=True)))  # a NamedTuple


def part(cohort: Any, clients: int | slice) -> Any:
    """Return the tree of one client or of some, by their place in the stack; tensors are views."""
    if isinstance(cohort, Tensor):
        return cohort[clients]
    if isinstance(cohort, dict):
        return {key: part(value, clients) for key, value in cohort.items()}
    return type(cohort)(*(part(value, clients) for value in cohort))


def structure(tree: Any) -> Any:
    """Return what trees that can be stacked have in common, as something that can be a key."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype
    if isinstance(tree, dict):
        return tuple((key, structure(value)) for key, value in tree.items())
    return None if tree is None else tuple(structure(value) for value in tree)
