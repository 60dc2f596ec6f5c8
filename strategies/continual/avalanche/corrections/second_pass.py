"""A second pass over an experience's data that leaves no trace in the model."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def second_pass(model: nn.Module) -> Iterator[None]:
    """Put `model` in evaluation mode without gradients; put its modes and gradients back after."""
    modes = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, gradient in gradients:
            parameter.grad = gradient
