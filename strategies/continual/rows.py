"""Samples named by where they come from: (experience, row) pairs of one client's stream.

Memory keeps names, two integers a sample, and gathers the samples themselves when they are needed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedlearn.types import Experience

Stream = Callable[[int], Experience]
"""The client's experience of a given index."""


def pairs_of(experience: Experience) -> Tensor:
    """Return (n, 2) int64: experience and row of every sample of `experience`."""
    rows = experience.rows.cpu()
    return torch.stack([torch.full_like(rows, experience.index), rows], dim=1)


def gather(stream: Stream, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs (n, *input_shape), labels (n,) and task labels (n,) of `pairs` (n, 2).

    Each input comes in the domain of its own experience. There must be at least one pair.
    """
    parts = []
    for index in sorted(set(pairs[:, 0].tolist())):
        experience = stream(index)
        at = (pairs[:, 0] == index).nonzero().squeeze(1)
        x, y = experience.gather(pairs[at, 1])
        parts.append((at, x, y, torch.full((len(y),), experience.task_label, device=y.device)))
    if len(parts) == 1:
        return parts[0][1:]
    order = torch.cat([at for at, *_ in parts]).argsort()
    x, y, t = (torch.cat(tensors)[order] for tensors in list(zip(*parts, strict=True))[1:])
    return x, y, t
