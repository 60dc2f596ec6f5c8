"""The networks that all contenders train: plain layers in a row."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn


def network(
    *,
    input_shape: tuple[int, ...],
    num_classes: int,
    widths: Sequence[int] = (),
    hidden_sizes: Sequence[int] = (),
) -> nn.Sequential:
    """Return 3x3 convolutions without padding, one 2x2 max pooling, then linear layers.

    A ReLU follows every layer but the pooling and the last.

    Args:
        input_shape: (channels, height, width), or any shape where there are no convolutions.
        num_classes: Outputs.
        widths: Channels of each convolution; empty for none, and then no pooling either.
        hidden_sizes: Units of each hidden linear layer.
    """
    layers: list[nn.Module] = []
    size = prod(input_shape)
    if widths:
        channels, height, width = input_shape
        for width_in, width_out in pairwise([channels, *widths]):
            layers += [nn.Conv2d(width_in, width_out, 3), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        shrunk = 2 * len(widths)
        size = widths[-1] * ((height - shrunk) // 2) * ((width - shrunk) // 2)
    layers.append(nn.Flatten())
    for size_in, size_out in pairwise([size, *hidden_sizes]):
        layers += [nn.Linear(size_in, size_out), nn.ReLU()]
    layers.append(nn.Linear([size, *hidden_sizes][-1], num_classes))
    return nn.Sequential(*layers)
