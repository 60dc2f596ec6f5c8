"""Copies of modules whose weights are buffers: nothing that trains or aggregates can move them.

A client's optimiser sees parameters only, and so does an aggregation: server momentum or noise
would move a parameter even where no client trained it. Buffers are averaged in float64, and the
mean of equal float32 values is that value, bit for bit. The price is that frozen weights travel
twice.
"""

import copy

from torch import nn


def frozen_copy(module: nn.Module) -> nn.Module:
    """Return a copy of `module`, in evaluation mode, in which every parameter is a buffer.

    Names and shapes stay, so ``frozen.load_state_dict(module.state_dict())`` takes a new copy.
    """
    frozen = copy.deepcopy(module).eval()
    for part in frozen.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return frozen
