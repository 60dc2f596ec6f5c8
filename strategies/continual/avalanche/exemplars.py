"""Exemplars: the samples that stand for a class, how they are chosen and what they weigh."""

import torch
from torch import Tensor


def herding(features: Tensor, size: int) -> Tensor:
    """Return the positions (min(n, size),) of samples whose running means follow the class mean.

    S.-A. Rebuffi et al., "iCaRL", CVPR 2017, Algorithm 4: the k-th is the sample, of those not
    chosen yet, that brings the mean of k samples nearest to the mean of all. (Avalanche's search
    goes on from a sample that is chosen a second time, and ends after 1000 trials.)

    Args:
        features: (n, d), of length 1.
        size: How many to choose.
    """
    mean, chosen = features.mean(0), []
    total = torch.zeros_like(mean)
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for k in range(1, min(len(features), size) + 1):
        distance = (mean - (total + features) / k).norm(dim=1)
        best = int(distance.where(free, torch.inf).argmin())
        total, free[best] = total + features[best], False
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.int64)


def multiplicities(labels: Tensor, remembered: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
    """Return what samples weigh in their class's mean: the present ones and those of memory.

    The mean should be that of all samples of the class that the client met. Where a class comes
    back, each remembered sample therefore weighs as much as all those that it stands for. The
    weights of a class add up to the number of its samples at hand: its mean rests on so many.

    Args:
        labels: (n,) int64, of the present samples.
        remembered: (m,) int64, labels of the samples in memory.
        met: (C,) float64, samples of each class that memory was drawn from.

    Returns:
        (n,) and (m,) float64; all 1 where no class is in both.
    """
    now, held = (torch.bincount(each, minlength=len(met)).double() for each in (labels, remembered))
    stand_for = met / held.clamp(min=1)
    total = now + stand_for * held
    scale = (now + held) / total.clamp(min=1)
    return scale[labels], (scale * stand_for)[remembered]
