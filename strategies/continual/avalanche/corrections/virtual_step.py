"""A step of gradient descent that is taken to look at its consequences, and taken back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from strategies.continual.avalanche.corrections.gradients import trainable


@contextmanager
def virtual_step(loss: Tensor, model: nn.Module, rate: float) -> Iterator[None]:
    """Let the weights be ``theta - rate * gradient of loss`` for a while, then as they were.

    Upstream (MIR, RAR) copies the model in every step, and raises where a layer is frozen. Here the
    parameters look at other data for a while, and their own, which the graph of `loss` refers to,
    are not touched.
    """
    parameters = trainable(model)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    own = [parameter.data for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.data = parameter.data - rate * gradient
    try:
        yield
    finally:
        for parameter, data in zip(parameters, own, strict=True):
            parameter.data = data
