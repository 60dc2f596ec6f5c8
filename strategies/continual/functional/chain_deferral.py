"""A chain whose clients all keep the weights that they were sent, and remember what to change.

After some steps of plain SGD with rate a, a linear layer's weight is W - a S'X, where X are the
inputs of all samples so far and S the slopes in their outputs. So its output for new inputs x is

    x W' + b - a (x X' + 1) S,

the one from its bias; and the slope s in its output reaches its input as s W - a (s S') X. All
clients share W: their samples go through it in one large product, where stacked weights are read
and written client by client. The price is products with what went before, which grow with the
square of a turn's samples: it pays where these are few beside a layer's width.

On a CPU core, 784-200-200-10 perceptrons with turns of 6 batches of 10 train 1.6 times as fast as
by stacked weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fedlearn.deferred import Deferred
from strategies.continual.functional.chain import Chain
from strategies.continual.functional.chain_layers import Kept, Layer, Linear, Params

Shapes = Mapping[str, Sequence[int]]

Defers = Literal["never", "where it pays", "always"]
"""When updates are deferred where they can be."""

TOGETHER = 64
"""Clients whose samples go through a shared weight at once. With batches of 10, those of 25 make
products at nine tenths of a core's full speed; what a step costs besides is shared by more."""

ROOM = 64 * 2**20
"""Bytes of what clients who run at once may have to remember."""

STACKED_SPEED, SHARED_SPEED, PAST_SPEED = 60.0, 145.0, 30.0
"""How fast a core multiplies, in any unit: by clients' own weights, by a weight of all, and with
what went before. Measured with perceptrons of 8 shapes and turns of 20 to 600 samples, where the
choice that follows from them was the slower one by at most a seventh."""


class Deferral:
    """A turn of n clients of a chain.

    Attributes:
        chain: What to step: it takes no parameters, and `Chain.descend` adds to what is remembered.
        rate: The learning rate, that of all steps.
    """

    def __init__(
        self,
        chain: Chain,
        received: Params,
        clients: int,
        rows: int,
        rate: float,
        room: dict[str, Tensor],
    ) -> None:
        """Begin a turn.

        Args:
            chain: One that `can_defer`.
            received: The parameters, (*shape), by name.
            clients: n.
            rows: Samples of all steps of a client, at most.
            rate: The learning rate, that of all steps.
            room: Memory by name, which grows if need be; what the turn before left in it is gone.
        """
        self.rate = rate
        layers: list[Layer] = []
        self._layers: list[_Remembering] = []
        for number, layer in enumerate(chain.layers):
            if isinstance(layer, Linear) and layer.trained:
                weight = received[layer.weight]
                out, width = weight.shape
                layer = _Remembering(
                    layer,
                    weight,
                    None if layer.bias is None else received[layer.bias],
                    rate,
                    _take(room, f"{number}.left", weight, (clients, rows, out)),
                    _take(room, f"{number}.right", weight, (clients, rows, width)),
                )
                self._layers.append(layer)
            layers.append(layer)
        self.chain = Chain(layers, dict(received), together=True)

    def results(self) -> dict[str, Deferred]:
        """Return what became of each of the chain's trained parameters."""
        found: dict[str, Deferred] = {}
        for layer in self._layers:
            found |= layer.results()
        return found


@dataclass
class _Remembering(Layer):
    """A linear layer that remembers its inputs and the slopes in its outputs.

    Attributes:
        layer: In whose place it stands.
        weight: (out, in), of all clients.
        bias: (out,), of all clients; None for none.
        rate: The learning rate.
        left: (n, rows, out), slopes.
        right: (n, rows, in), inputs.
        rows: How many there are yet.
    """

    layer: Linear
    weight: Tensor
    bias: Tensor | None
    rate: float
    left: Tensor
    right: Tensor
    rows: int = 0

    def __post_init__(self) -> None:
        self.trained = self.layer.trained
        self._one = self.weight.new_ones(1, 1, 1)

    def forward(self, params: Params, x: Tensor) -> tuple[Tensor, Kept]:
        """Return the output for `x` (k, batch, in), of the first k clients; keeps `x`."""
        out = F.linear(x, self.weight, self.bias)
        if self.rows:
            left, right = self._past(len(x))
            if self.layer.weight not in self.trained:
                likeness = self._one.expand(len(x), x.shape[1], self.rows)
            elif self.layer.bias not in self.trained:
                likeness = torch.bmm(x, right.mT)
            else:
                likeness = torch.baddbmm(self._one, x, right.mT)
            out.baddbmm_(likeness, left, alpha=-self.rate)
        return out, (x,)

    def below(self, params: Params, kept: Kept, slope: Tensor) -> Tensor:
        """Return the slope in the input."""
        below = slope @ self.weight
        if self.rows and self.layer.weight in self.trained:
            left, right = self._past(len(slope))
            below.baddbmm_(torch.bmm(slope, left.mT), right, alpha=-self.rate)
        return below

    def descend(self, params: Params, kept: Kept, slope: Tensor, rate: float) -> None:
        """Remember inputs and slopes; of clients who have finished, zeros."""
        clients, batch = slope.shape[:2]
        now = slice(self.rows, self.rows + batch)
        for home, new in ((self.left, slope), (self.right, kept[0])):
            home[:clients, now] = new
            home[clients:, now] = 0
        self.rows = now.stop

    def results(self) -> dict[str, Deferred]:
        """Return what became of its parameters."""
        left, right = self._past(len(self.left))
        found: dict[str, Deferred] = {}
        if self.layer.weight in self.trained:
            found[self.layer.weight] = Deferred(self.weight, self.rate, left, right)
        if self.layer.bias in self.trained:
            assert self.layer.bias is not None
            assert self.bias is not None
            found[self.layer.bias] = Deferred(self.bias, self.rate, left, None)
        return found

    def _past(self, clients: int) -> tuple[Tensor, Tensor]:
        return self.left[:clients, : self.rows], self.right[:clients, : self.rows]


def can_defer(chain: Chain) -> bool:
    """Return whether updates can be deferred: all that is trained is linear layers."""
    return not chain.convolves and chain.surveys


def fitting(chain: Chain, shapes: Shapes, rows: int) -> int:
    """Return how many clients can run at once, at least 1.

    Args:
        chain: One that `can_defer`.
        shapes: Of its parameters, by name.
        rows: Samples of all steps of a client.
    """
    numbers = rows * sum(sum(shape) for _, shape in _trained(chain, shapes))
    return max(1, ROOM // (4 * numbers))


def pays(chain: Chain, shapes: Shapes, rows: int) -> bool:
    """Return whether deferred updates are faster on a CPU core than stacked weights.

    Args:
        chain: One that `can_defer`.
        shapes: Of its parameters, by name.
        rows: Samples of all steps of a client.
    """
    stacked = deferred = 0.0
    for first, (out, width) in _trained(chain, shapes):
        passes = 2 if first else 3  # forward, to the weight, and to the input
        stacked += passes * out * width / STACKED_SPEED
        deferred += passes * out * width / SHARED_SPEED
        deferred += (passes - 1) * rows / 2 * (out + width) / PAST_SPEED
    return deferred < stacked


def _trained(chain: Chain, shapes: Shapes) -> list[tuple[bool, Sequence[int]]]:
    """Return the shape of each trained weight, and whether no slope is needed below it."""
    found = [
        (False, shapes[layer.weight])
        for layer in chain.layers
        if isinstance(layer, Linear) and layer.trained
    ]
    return [(True, found[0][1]), *found[1:]] if found else []


def _take(room: dict[str, Tensor], name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return memory of a shape out of `room`."""
    size = torch.Size(shape).numel()
    if name not in room or len(room[name]) < size:
        room[name] = like.new_empty(size)
    return room[name][:size].view(shape)
