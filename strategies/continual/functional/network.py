"""The model as a function of its weights."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedlearn.heads import head_table, hide
from fedlearn.types import LocalTraining
from strategies.continual.functional.trees import Batch, Tree


class Network(Protocol):
    """What a continual strategy may know of the model.

    Attributes:
        trainable: Names of the parameters that are trained.
        normalisation: Names of the parameters that belong to normalisation layers.
    """

    trainable: tuple[str, ...]
    normalisation: frozenset[str]

    def __call__(self, params: Tree, x: Tensor) -> Tensor:
        """Return the model's outputs (batch, C) for x (batch, *input_shape) at `params`."""
        ...

    def seen(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return `outputs` (batch, C) with those of other tasks' heads hidden."""
        ...

    def logits(self, params: Tree, batch: Batch) -> Tensor:
        """Return the outputs (batch, C) for a batch, those of other tasks' heads hidden."""
        ...

    def teach(self, weights: Tree, x: Tensor) -> Tensor:
        """Return the outputs (batch, C) at `weights` in evaluation mode, without gradients."""
        ...


class Outputs:
    """What all networks share: names, heads and precision.

    Attributes:
        trainable: Names of the parameters that are trained.
        normalisation: Names of the parameters that belong to normalisation layers.
    """

    def __init__(self, model: nn.Module, training: LocalTraining) -> None:
        self._device = next(model.parameters()).device
        self._heads: Tensor | None = None
        if training.heads is not None:
            self._heads = head_table(training.heads, training.num_classes).to(self._device)
        self._low = training.precision == "bfloat16"
        self.trainable = tuple(
            name for name, parameter in model.named_parameters() if parameter.requires_grad
        )
        self.normalisation = frozenset(
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            if isinstance(module, _NormBase)
            for name, _ in module.named_parameters(recurse=False)
        )

    def seen(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return `outputs` (batch, C) with those of other tasks' heads hidden."""
        if self._heads is None:
            return outputs
        return hide(outputs, self._heads[batch["task"]])

    def _precision(self) -> AbstractContextManager[object]:
        """Return the scope of a forward pass."""
        return torch.autocast(self._device.type, torch.bfloat16) if self._low else nullcontext()


class Live(Outputs):
    """The local model itself: its parameters are the leaves that gradients are taken for.

    It costs nothing over calling the module. The price: `params` must be `leaves`, and whoever has
    new weights gives them to it by `load`.

    Attributes:
        leaves: The trainable parameters, by name.
    """

    def __init__(self, model: nn.Module, training: LocalTraining) -> None:
        """Wrap `model`, which is in training mode and holds the received weights."""
        super().__init__(model, training)
        self._model = model
        self._modules = list(model.modules())
        kept = model.state_dict(keep_vars=True)
        self._parameters = [
            (name, each) for name, each in kept.items() if isinstance(each, nn.Parameter)
        ]
        self._buffers = [  # by owner, because a module may replace its buffers
            (f"{path}.{key}" if path else key, module._buffers, key)
            for path, module in model.named_modules()
            for key in module._buffers
            if (f"{path}.{key}" if path else key) in kept
        ]
        parameters = dict(model.named_parameters())
        self.leaves: Tree = {name: parameters[name] for name in self.trainable}
        self._homes = {name: leaf.data for name, leaf in self.leaves.items()}

    def __call__(self, params: Tree, x: Tensor) -> Tensor:
        """Return the model's outputs (batch, C) for x (batch, *input_shape)."""
        if not self._low:
            outputs: Tensor = self._model(x)
            return outputs
        with self._precision():
            outputs = self._model(x)
        return outputs.float()

    def logits(self, params: Tree, batch: Batch) -> Tensor:
        """Return the outputs (batch, C) for a batch, those of other tasks' heads hidden."""
        return self.seen(self(params, batch["x"]), batch)

    def teach(self, weights: Tree, x: Tensor) -> Tensor:
        """Return the outputs (batch, C) at `weights` in evaluation mode, without gradients."""
        with self.at(weights), torch.no_grad():
            return self(self.leaves, x)

    def load(self, params: Tree) -> None:
        """Give the model new trainable weights, without copying them."""
        for name, leaf in self.leaves.items():
            new = params[name]
            if new is not leaf:
                leaf.data = new

    def settle(self) -> None:
        """Bring the weights home: into the memory that held them when this network was made."""
        for name, leaf in self.leaves.items():
            home = self._homes[name]
            if leaf.data_ptr() != home.data_ptr():
                leaf.data = home.copy_(leaf.data)

    def weights(self) -> Tree:
        """Return copies of all of the model's parameters and buffers."""
        tensors = self._model.state_dict()
        return {name: each.clone() for name, each in tensors.items() if isinstance(each, Tensor)}

    @contextmanager
    def at(self, weights: Tree) -> Iterator[None]:
        """Let the model be another for a while: at `weights`, and in evaluation mode.

        Args:
            weights: Parameters and buffers, by name, as `weights()` returns them. The leaves stay
                the same objects, so gradients can be taken at these weights too.
        """
        own = [(parameter, parameter.data) for _, parameter in self._parameters]
        buffers = [(owner, key, owner[key]) for _, owner, key in self._buffers]
        modes = [module for module in self._modules if module.training]
        for name, parameter in self._parameters:
            parameter.data = weights[name]
        for name, owner, key in self._buffers:
            owner[key] = weights[name]
        _train(modes, False)
        try:
            yield
        finally:
            for parameter, data in own:
                parameter.data = data
            for owner, key, buffer in buffers:
                owner[key] = buffer
            _train(modes, True)


def _train(modules: Sequence[nn.Module], mode: bool) -> None:
    """Set the mode of each of `modules`, and not of those in it."""
    for module in modules:
        # Past nn.Module's own, which asks whether the value is a parameter, buffer or module.
        object.__setattr__(module, "training", mode)
