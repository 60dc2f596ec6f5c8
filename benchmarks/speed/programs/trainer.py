"""What a program without any framework is made of: a trainer of some turns on flat weights."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from speed.plan import Plan
from torch import Tensor

Trainer = Callable[[Tensor, int, range, Tensor], None]
"""``train(weights, server_round, places, total)`` trains the clients at some places of a round's
cohort, each from the same flat weights (P,), and adds each one's final weights to `total` (P,)."""

MakeTrainer = Callable[[Plan], Trainer]
"""Makes a process's trainer; weights and `total` hold the network's parameters, in their order and
their layout, one after another."""


def views_of(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Return parts of `flat` (..., P) as tensors (..., *shape), which share its memory."""
    sizes = [prod(shape) for shape in shapes]
    parts = torch.split(flat, sizes, dim=-1)
    return [
        torch.unflatten(part, -1, shape) if len(shape) > 1 else part
        for part, shape in zip(parts, shapes, strict=True)
    ]
