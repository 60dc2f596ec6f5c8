"""A model that is a chain of layers, run for a stack of clients, its backward pass by hand.

Where clients are many and the model is small, most of a step is overhead. Here a step of K clients
is seven kernels a hidden layer, and the gradient of a weight is never written: the update is part
of the product that gives it. On a CPU core, clients of 784-200-200-10 and 64-32-10 perceptrons
train three to four times as fast as under ``vmap``.

On the CPU a convolution of one client keeps a core busy, and grouped convolutions are slower than
one after another; so models with convolutions run client by client there.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from strategies.continual.functional.chain_images import Convolution
from strategies.continual.functional.chain_layers import Add, Kept, Layer, Linear, Params
from strategies.continual.functional.chain_recognition import layers_of
from strategies.continual.functional.trees import Tree

Tape = list[list[Kept]]
"""What a forward pass leaves for the backward pass: for each client or, where all ran at once, for
all together, what each layer keeps."""

CACHED = 8 * 2**20
"""Bytes of weights and activations of the clients that run at once on a CPU core.

Measured with 784-200-200-10 and 64-32-10 perceptrons, batches of 10, on cores with 1 MB of L2 cache
each and a shared L3 cache of 32 MB: the products alone are fastest from 2 to 6 MB, but what a step
costs besides is shared by more clients; at 16 MB a turn takes a fifth to a third longer.
"""

MEMORY_SHARE = 0.25
"""Share of a CUDA device's free memory that weights, gradients and what optimisers keep may take.

The rest is for activations, inputs and whatever a continual strategy keeps.
"""


class Chain:
    """Layers one after another, for K clients with stacked parameters.

    Parameters are (K, *shape) in PyTorch's layout; the first K of a longer stack will do. Those
    that are not trained may be left out: then all clients have the model's. No method modifies what
    it is given, except where it says so, nor draws numbers. What it is given must not require
    gradients: autograd has no part in it. Outputs, tapes and gradients are new memory. A tape
    serves any number of backward passes, until the parameters change.

    Attributes:
        layers: From the input to the output.
        trained: Names of the parameters that are trained. One that no layer uses is not among them.
        convolves: Whether there are convolutions.
    """

    layers: Sequence[Layer]
    trained: tuple[str, ...]
    convolves: bool

    def __init__(
        self, layers: Sequence[Layer], parameters: Tree, together: bool | None = None
    ) -> None:
        """Chain layers.

        Args:
            layers: From the input to the output.
            parameters: One client's, (*shape), at least one; those that are not trained are kept.
            together: Whether clients' convolutions run as one grouped convolution; None for
                everywhere but on the CPU, where it is slower.
        """
        self.layers = layers
        self.trained = tuple(name for layer in layers for name in layer.trained)
        self._frozen = {
            name: each.detach() for name, each in parameters.items() if name not in self.trained
        }
        self._together = together
        self._lowest = next((at for at, layer in enumerate(layers) if layer.trained), len(layers))
        self.convolves = any(isinstance(layer, Convolution) for layer in layers)
        self._device = next(iter(parameters.values())).device
        self._numbers = sum(each.numel() for each in parameters.values())
        self._kept = sum(
            sum(parameters[layer.weight].shape) for layer in layers if isinstance(layer, Linear)
        )

    @classmethod
    def of(cls, model: nn.Module, together: bool | None = None) -> Self | str:
        """Return `model` as a chain, or in a line why it is none.

        Args:
            model: In the mode it is trained in. Not modified.
            together: Whether clients' convolutions run as one grouped convolution; None for
                everywhere but on the CPU, where it is slower.
        """
        layers = layers_of(model)
        if isinstance(layers, str):
            return layers
        return cls(layers, dict(model.named_parameters()), together)

    def forward(self, params: Params, x: Tensor, alike: bool = False) -> tuple[Tensor, Tape]:
        """Return outputs (K, batch, C), and the tape.

        Args:
            params: (K, *shape).
            x: Inputs (K, batch, *input_shape).
            alike: Whether all clients have the same parameters, as they do before their first step.
        """
        tape: Tape = []
        outputs: list[Tensor] = []
        for own, out in self._parts(params, x, alike):
            kept: list[Kept] = []
            for layer in self.layers:
                out, own_kept = layer.forward(own, out)
                kept.append(own_kept)
            outputs.append(out)
            tape.append(kept)
        return _joined(outputs), tape

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """Return outputs (K, batch, C) for inputs `x` (K, batch, *input_shape)."""
        return self.forward(params, x)[0]

    def gradient(self, params: Params, tape: Tape, slope: Tensor) -> Tree:
        """Return the gradient in each of `trained`, (K, *shape).

        Args:
            params: What the tape was made with.
            tape: Of `forward`.
            slope: (K, batch, C), of each client's loss in its outputs.
        """
        found: list[Tree] = []
        for kept, (own, own_slope) in zip(tape, self._parts(params, slope), strict=True):
            gradient: Tree = {}
            for layer, own_kept, above in self._down(own, kept, own_slope):
                gradient.update(layer.gradient(own, own_kept, above))
            found.append(gradient)
        return {name: _joined([each[name] for each in found]) for name in self.trained}

    @property
    def surveys(self) -> bool:
        """Whether `survey` works: all that is trained is linear layers."""
        return all(isinstance(layer, Linear) for layer in self.layers if layer.trained)

    def survey(
        self, params: Params, tape: Tape, slope: Tensor, size: int, totals: Tree, add: Add
    ) -> None:
        """Add something of the gradient of each part of a batch to `totals`, in place.

        The weights being the same for all parts, they go through the chain together.

        Args:
            params: What the tape was made with.
            tape: Of `forward`, of parts one behind the other.
            slope: (K, parts * size, C), of each client's and part's own loss.
            size: Samples of a part.
            totals: (K, *shape) of each of `trained`.
            add: Adds something to a total, given a gradient of its shape, element by element.
        """
        for kept, (own, own_slope) in zip(tape, self._parts(params, slope), strict=True):
            for layer, own_kept, above in self._down(own, kept, own_slope):
                layer.survey(own_kept, above, size, totals, add)

    def descend(
        self,
        params: Params,
        tape: Tape,
        slope: Tensor,
        rate: float,
        pull: Callable[[str, range], None] | None = None,
        alike: bool = False,
    ) -> None:
        """Subtract `rate` times the gradient from each of `trained`, in place.

        Args:
            params: What the tape was made with; the trained ones are modified.
            tape: Of `forward`.
            slope: (K, batch, C), of each client's loss in its outputs.
            rate: The learning rate, the same for all.
            pull: Called with each of `trained` and the clients, right before it is modified. It may
                modify it too: the backward pass has done with it.
            alike: Whether all clients have the same parameters.
        """
        first = 0
        read, changed = (self._parts(params, slope, each) for each in (alike, False))
        for kept, (shown, own_slope), (own, _) in zip(tape, read, changed, strict=True):
            clients = range(first, first + len(own_slope))
            first = clients.stop
            for layer, own_kept, above in self._down(shown, kept, own_slope):
                if pull is not None:
                    for name in layer.trained:
                        pull(name, clients)
                layer.descend(own, own_kept, above, rate)

    def best_chunk(
        self, batch_size: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> int:
        """Return how many clients should run at once, at least 1.

        On a CPU: as many as stay in the cache, so that a step reads its weights from there, and one
        where there are convolutions. On a CUDA device: as many as its memory allows.

        Args:
            batch_size: Samples a step and client.
            dtype: Of weights and inputs.
            device: Where they are; None for where the model's parameters were.
        """
        device = device or self._device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            copies = 4  # weights, gradients, and two means that an optimiser may keep
            return max(1, int(MEMORY_SHARE * free) // (copies * self._numbers * dtype.itemsize))
        if self.convolves:
            return 1
        return max(1, CACHED // ((self._numbers + batch_size * self._kept) * dtype.itemsize))

    def _down(
        self, params: Params, kept: Sequence[Kept], slope: Tensor
    ) -> Iterator[tuple[Layer, Kept, Tensor]]:
        """Yield each layer from the top to the lowest trained one, with the slope in its output.

        What has been yielded may be modified: the slope below is taken before.
        """
        above: Tensor = slope
        for at in range(len(self.layers) - 1, self._lowest - 1, -1):
            layer, own_kept, here = self.layers[at], kept[at], above
            if at > self._lowest:
                above = layer.below(params, own_kept, here)
            if layer.trained:
                yield layer, own_kept, here

    def _parts(
        self, params: Params, stacked: Tensor, alike: bool = False
    ) -> list[tuple[Params, Tensor]]:
        """Return what runs at once: all clients, or each by itself.

        Args:
            params: Theirs, (K, *shape).
            stacked: (K, ...), what is to be taken apart with them.
            alike: Whether the first client's parameters serve all, where this saves work.
        """
        clients = len(stacked)
        own = params
        if alike and clients > 1 and not self.convolves:
            own = {name: each[:1].expand_as(each) for name, each in params.items()}
        if self._frozen:
            shared = {
                name: each.expand(clients, *each.shape) for name, each in self._frozen.items()
            }
            own = {**shared, **own}
        together = self._together
        if together is None:
            together = not self.convolves or stacked.device.type != "cpu"
        if together or clients == 1:
            return [(own, stacked)]
        each_alone = [slice(client, client + 1) for client in range(clients)]
        return [({name: each[at] for name, each in own.items()}, stacked[at]) for at in each_alone]


def _joined(parts: list[Tensor]) -> Tensor:
    """Return stacks one after another, without copying where there is one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
