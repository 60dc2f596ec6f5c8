"""Gradients as vectors, taken beside the one that trains."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of `model` that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradient_of(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of `loss` (n,), 0 where it has none; ``.grad`` stays as it is."""
    parts = torch.autograd.grad(loss, parameters, allow_unused=True)
    return flat(parts, parameters)


def flat(parts: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return `parts`, one for each of `parameters`, as one vector, 0 where there is none."""
    return torch.cat(
        [
            torch.zeros_like(parameter).flatten() if part is None else part.flatten()
            for parameter, part in zip(parameters, parts, strict=True)
        ]
    )
