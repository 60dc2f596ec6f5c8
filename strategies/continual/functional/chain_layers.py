"""Layers for a stack of clients, each with its backward pass derived by hand.

K clients' parameters and activations are stacked along a leading axis: parameters (K, *shape) in
PyTorch's own layout, activations (K, batch, *shape).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from strategies.continual.functional.trees import Tree

Params = Mapping[str, Tensor]
Kept = tuple[Any, ...]
"""What a layer's backward pass needs of its forward pass."""

Add = Callable[[Tensor, Tensor], None]

aten = torch.ops.aten

BLOCK = 2**18
"""Numbers of a gradient that `Linear.survey` has at hand at once: few enough to stay in the cache
while all parts are added up, and enough for products at full speed. Measured with 784 x 200 and
parts of 10: 2**15 took a third longer."""


class Layer:
    """A layer that has nothing to train, until a subclass says otherwise.

    Attributes:
        trained: Names of the parameters that are trained, any subset of the layer's.
        fresh: Whether its output is memory of its own that its backward pass does not read, which
            the layer above may therefore overwrite.
    """

    trained: tuple[str, ...] = ()
    fresh: bool = True

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the output for `x` (K, batch, *shape), and what the backward pass needs."""
        raise NotImplementedError

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the loss's slope in the layer's input, given that in its output."""
        raise NotImplementedError

    def gradient(self, params: Params, kept: Kept, slope: Tensor) -> Tree:
        """Return the loss's gradient in each of `trained`, (K, *shape)."""
        return {}

    def survey(self, kept: Kept, slope: Tensor, size: int, totals: Tree, add: Add) -> None:
        """Add something of each part's gradient in each of `trained` to `totals`, in place.

        Args:
            kept: Of `forward`, for K clients and several parts of a batch.
            slope: (K, parts * size, *shape), in the output.
            size: Samples of a part.
            totals: (K, *shape) by name.
            add: Adds something to a total, given a gradient of its shape, element by element.
        """
        raise NotImplementedError

    def descend(self, params: Params, kept: Kept, slope: Tensor, rate: float) -> None:
        """Subtract `rate` times the gradient from each of `trained`, in place."""
        for name, gradient in self.gradient(params, kept, slope).items():
            params[name].sub_(gradient, alpha=rate)


@dataclass
class Linear(Layer):
    """``nn.Linear`` on inputs (K, batch, in).

    A weight that is one for all clients, expanded, makes one product of all their samples.

    Attributes:
        weight: Name of the weight (K, out, in).
        bias: Name of the bias (K, out); None for none.
        trained: Which of them are trained.
    """

    weight: str
    bias: str | None
    trained: tuple[str, ...]

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return (K, batch, out); keeps the input."""
        weight, bias = params[self.weight], None if self.bias is None else params[self.bias]
        if _is_one(weight, bias):
            return F.linear(x, weight[0], None if bias is None else bias[0]), (x,)
        if bias is None:
            return torch.bmm(x, weight.mT), (x,)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT), (x,)

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return (K, batch, in)."""
        weight = params[self.weight]
        return slope @ weight[0] if _is_one(weight) else torch.bmm(slope, weight)

    def gradient(self, params: Params, kept: Kept, slope: Tensor) -> Tree:
        """Return the gradient in weight (K, out, in) and bias (K, out)."""
        found: Tree = {}
        if self.weight in self.trained:
            found[self.weight] = torch.bmm(slope.mT, kept[0])
        if self.bias in self.trained:
            found[self.bias] = slope.sum(1)
        return found

    def survey(self, kept: Kept, slope: Tensor, size: int, totals: Tree, add: Add) -> None:
        """Add something of each part's gradient to `totals`; see `Layer.survey`."""
        parts = [slice(at, at + size) for at in range(0, slope.shape[1], size)]
        if self.bias in self.trained:
            for part in parts:
                add(totals[self.bias], slope[:, part].sum(1))
        if self.weight not in self.trained:
            return
        (x,), total = kept, totals[self.weight]
        rows = BLOCK // total.shape[2]
        if total.shape[1] <= rows:
            for part in parts:
                add(total, torch.bmm(slope[:, part].mT, x[:, part]))
            return
        rows = max(1, rows)
        for own_total, own_slope, own_x in zip(total, slope.mT, x, strict=True):
            for block, below in zip(own_total.split(rows), own_slope.split(rows), strict=True):
                for part in parts:
                    add(block, torch.mm(below[:, part], own_x[part]))

    def descend(self, params: Params, kept: Kept, slope: Tensor, rate: float) -> None:
        """Subtract `rate` times the gradient, without writing it down."""
        if self.weight in self.trained:
            params[self.weight].baddbmm_(slope.mT, kept[0], alpha=-rate)
        if self.bias in self.trained:
            params[self.bias].sub_(slope.sum(1), alpha=rate)


def _is_one(*stacked: Tensor | None) -> bool:
    """Return whether every parameter (K, *shape) is one for several clients."""
    return all(each is None or each.stride(0) == 0 for each in stacked)


class Flatten(Layer):
    """``nn.Flatten``: one axis of features behind the batch, in the order (C, H, W)."""

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return (K, batch, features), a view where memory allows; keeps the input's layout."""
        return x.flatten(2), (x.shape, x.stride())

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the slope in the layout of the input."""
        return laid_out(slope.reshape(kept[0]), kept)


def laid_out(tensor: Tensor, layout: Kept) -> Tensor:
    """Return `tensor` in memory laid out as `layout`, a shape and strides without gaps."""
    if tensor.stride() == layout[1]:
        return tensor
    return tensor.new_empty_strided(*layout).copy_(tensor)


@dataclass
class Activation(Layer):
    """A function of each number by itself.

    Attributes:
        on_input: Whether the output may overwrite the input.
        on_slope: Whether `below` may overwrite the slope that it is given.
    """

    on_input: bool = False
    on_slope: bool = False
    fresh = False

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the output; keeps it, because its slope follows from it."""
        out = x if self.on_input else torch.empty_like(x)
        self._value(x, out)
        return out, (out,)

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the slope in the input."""
        out = slope if self.on_slope else torch.empty_like(slope)
        self._slope(slope, kept[0], out)
        return out

    def _value(self, x: Tensor, out: Tensor) -> None:
        """Write the function of `x` to `out`."""
        raise NotImplementedError

    def _slope(self, slope: Tensor, kept: Tensor, out: Tensor) -> None:
        """Write the slope in the input to `out`."""
        raise NotImplementedError


class ReLU(Activation):
    """``nn.ReLU``."""

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the output; keeps it."""
        out = torch.relu_(x) if self.on_input else torch.relu(x)
        return out, (out,)

    def _slope(self, slope: Tensor, kept: Tensor, out: Tensor) -> None:
        aten.threshold_backward.grad_input(slope, kept, 0, grad_input=out)


@dataclass
class LeakyReLU(Activation):
    """``nn.LeakyReLU`` with a `leak` of at least 0, so that the output has the input's sign."""

    leak: float = 0.01

    def _value(self, x: Tensor, out: Tensor) -> None:
        aten.leaky_relu.out(x, self.leak, out=out)

    def _slope(self, slope: Tensor, kept: Tensor, out: Tensor) -> None:
        aten.leaky_relu_backward.grad_input(slope, kept, self.leak, True, grad_input=out)


class Tanh(Activation):
    """``nn.Tanh``."""

    def _value(self, x: Tensor, out: Tensor) -> None:
        torch.tanh(x, out=out)

    def _slope(self, slope: Tensor, kept: Tensor, out: Tensor) -> None:
        aten.tanh_backward.grad_input(slope, kept, grad_input=out)


class Sigmoid(Activation):
    """``nn.Sigmoid``."""

    def _value(self, x: Tensor, out: Tensor) -> None:
        torch.sigmoid(x, out=out)

    def _slope(self, slope: Tensor, kept: Tensor, out: Tensor) -> None:
        aten.sigmoid_backward.grad_input(slope, kept, grad_input=out)


@dataclass
class GELU(Activation):
    """``nn.GELU``, exact or by tanh.

    Attributes:
        approximate: ``none`` or ``tanh``.
    """

    approximate: str = "none"

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the output; keeps the input, because the slope follows from it alone."""
        return F.gelu(x, approximate=self.approximate), (x,)

    def _slope(self, slope: Tensor, kept: Tensor, out: Tensor) -> None:
        aten.gelu_backward.grad_input(slope, kept, approximate=self.approximate, grad_input=out)
