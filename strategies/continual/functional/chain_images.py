"""Layers on images for a stack of clients: activations (K, batch, C, H, W).

K clients' images are folded into the channels of one batch, (batch, K * C, H, W), where a layer of
each client for itself is one grouped layer. On the CPU, channels come last in memory: pooling is
many times as fast there, convolutions a little faster.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from strategies.continual.functional.chain_layers import Kept, Layer, Params, aten, laid_out
from strategies.continual.functional.trees import Tree

Pair = list[int]
"""One number for the height, one for the width."""


def folded(x: Tensor) -> Tensor:
    """Return (batch, K * C, ...) of (K, batch, C, ...), without gaps in memory."""
    images = x[0] if len(x) == 1 else x.transpose(0, 1).flatten(1, 2)
    if images.dim() == 4 and images.device.type == "cpu":
        return images.contiguous(memory_format=torch.channels_last)
    return images.contiguous()


def unfolded(images: Tensor, clients: int) -> Tensor:
    """Return (K, batch, C, ...) of (batch, K * C, ...), a view."""
    if clients == 1:
        return images.unsqueeze(0)
    return images.view(len(images), clients, -1, *images.shape[2:]).transpose(0, 1)


def by_channel(params: Params, name: str | None) -> Tensor | None:
    """Return a parameter (K, C, ...) as (K * C, ...), as folded images need it; None for None."""
    return None if name is None else params[name].flatten(0, 1)


@dataclass
class Convolution(Layer):
    """``nn.Conv2d`` with zero padding.

    Attributes:
        weight: Name of the weight (K, out, in / groups, height, width).
        bias: Name of the bias (K, out); None for none.
        stride: Of the kernel.
        padding: Zeros on each side.
        dilation: Distance of the kernel's points.
        groups: Of channels.
        trained: Which of them are trained.
    """

    weight: str
    bias: str | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    trained: tuple[str, ...]

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return (K, batch, out, H', W'); keeps the folded input."""
        images = folded(x)
        weight, bias = by_channel(params, self.weight), by_channel(params, self.bias)
        out = aten.convolution.default(images, weight, bias, *self._form(len(x)))
        return unfolded(out, len(x)), (images,)

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the slope in the input."""
        return unfolded(self._backward(params, kept, slope, 0), len(slope))

    def gradient(self, params: Params, kept: Kept, slope: Tensor) -> Tree:
        """Return the gradient in weight and bias."""
        found: Tree = {}
        if self.weight in self.trained:
            weight = self._backward(params, kept, slope, 1)
            found[self.weight] = weight.view(params[self.weight].shape)
        if self.bias in self.trained:
            found[self.bias] = slope.sum((1, 3, 4))
        return found

    def _backward(self, params: Params, kept: Kept, slope: Tensor, of: int) -> Tensor:
        """Return the slope in the folded input for 0, in the folded weight for 1."""
        weight = by_channel(params, self.weight)
        form, mask = self._form(len(slope)), [of == 0, of == 1, False]
        slopes = aten.convolution_backward.default(
            folded(slope), kept[0], weight, None, *form, mask
        )
        found: Tensor = slopes[of]
        return found

    def _form(self, clients: int) -> tuple[Any, ...]:
        """Return what a convolution is besides its numbers, not transposed."""
        return self.stride, self.padding, self.dilation, False, [0, 0], clients * self.groups


@dataclass
class GroupNorm(Layer):
    """``nn.GroupNorm`` on (K, batch, C, ...).

    Attributes:
        weight: Name of the factors (K, C); None for none.
        bias: Name of the summands (K, C); None for none.
        groups: Of channels.
        eps: Added to the variance.
        trained: Which of them are trained.
    """

    weight: str | None
    bias: str | None
    groups: int
    eps: float
    trained: tuple[str, ...]

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the normalised input; keeps the folded input and its statistics."""
        images = folded(x)
        weight, bias = by_channel(params, self.weight), by_channel(params, self.bias)
        sizes, groups = _sizes(images), len(x) * self.groups
        out, mean, rstd = aten.native_group_norm.default(
            images, weight, bias, *sizes, groups, self.eps
        )
        return unfolded(out, len(x)), (images, mean, rstd)

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the slope in the input."""
        return unfolded(self._backward(params, kept, slope, [True, False, False])[0], len(slope))

    def gradient(self, params: Params, kept: Kept, slope: Tensor) -> Tree:
        """Return the gradient in weight and bias."""
        if not self.trained:
            return {}
        _, weight, bias = self._backward(params, kept, slope, [False, True, True])
        slopes = {self.weight: weight, self.bias: bias}
        return {name: slopes[name].view(params[name].shape) for name in self.trained}

    def _backward(
        self, params: Params, kept: Kept, slope: Tensor, mask: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the slopes in the folded input, weight and bias that `mask` asks for."""
        weight = by_channel(params, self.weight)
        sizes, groups = _sizes(kept[0]), len(slope) * self.groups
        found: tuple[Tensor, Tensor, Tensor] = aten.native_group_norm_backward.default(
            folded(slope), *kept, weight, *sizes, groups, mask
        )
        return found


def _sizes(images: Tensor) -> tuple[int, int, int]:
    """Return batch, channels, and positions of a channel."""
    batch, channels = images.shape[:2]
    return batch, channels, images.shape[2:].numel()


@dataclass
class MaxPool(Layer):
    """``nn.MaxPool2d``, rounding down.

    Attributes:
        form: Kernel, stride, padding and dilation.
    """

    form: tuple[Pair, Pair, Pair, Pair]

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the maxima; keeps the folded input and where they are in it."""
        images = folded(x)
        out, places = aten.max_pool2d_with_indices.default(images, *self.form, False)
        return unfolded(out, len(x)), (images, places)

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the slope in the input."""
        images, places = kept
        below = aten.max_pool2d_with_indices_backward.default(
            folded(slope), images, *self.form, False, places
        )
        return unfolded(below, len(slope))


@dataclass
class AveragePool(Layer):
    """``nn.AvgPool2d``, rounding down.

    Attributes:
        form: Kernel, stride, padding, False, whether padding counts, and what to divide by.
    """

    form: tuple[Any, ...]

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the means; keeps the folded input."""
        images = folded(x)
        return unfolded(aten.avg_pool2d.default(images, *self.form), len(x)), (images,)

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the slope in the input."""
        below = aten.avg_pool2d_backward.default(folded(slope), kept[0], *self.form)
        return unfolded(below, len(slope))


class GlobalAverage(Layer):
    """``nn.AdaptiveAvgPool2d(1)``."""

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return each channel's mean (K, batch, C, 1, 1); keeps the input's layout."""
        return x.mean((-2, -1), keepdim=True), (x.shape, x.stride())

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the slope in the input."""
        return laid_out((slope / kept[0][-2:].numel()).expand(kept[0]), kept)
