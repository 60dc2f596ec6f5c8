"""The sequential reference: what the final weights must be, and how far others are from them."""

import math
from collections.abc import Sequence

import torch
from speed.plan import Plan
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = 1e-4
"""Largest distance of a right result; float32 sums in another order are some 1e-6 away."""


def train_sequentially(plan: Plan) -> list[Tensor]:
    """Return the weights after all rounds: one client after another, averaged in float64."""
    model = plan.network()
    parameters = list(model.parameters())
    weights = [each.detach().clone() for each in parameters]
    batch_size, lr = plan.workload.batch_size, plan.workload.lr
    for server_round, cohort in enumerate(plan.cohorts.tolist()):
        sums = [torch.zeros_like(each, dtype=torch.float64) for each in weights]
        for place in range(len(cohort)):
            with torch.no_grad():
                for parameter, received in zip(parameters, weights, strict=True):
                    parameter.copy_(received)
            x, y = plan.turn(server_round, place)
            for inputs, labels in zip(
                torch.split(x, batch_size), torch.split(y, batch_size), strict=True
            ):
                gradients = torch.autograd.grad(F.cross_entropy(model(inputs), labels), parameters)
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.sub_(gradient, alpha=lr)
            for total, parameter in zip(sums, parameters, strict=True):
                total += parameter.detach()
        weights = [(total / len(cohort)).float() for total in sums]  # all hold equally many samples
    return weights


def distance(
    final: Sequence[Tensor], reference: Sequence[Tensor], initial: Sequence[Tensor]
) -> float:
    """Return the L2 norm of ``final - reference`` as a share of that of ``reference - initial``."""
    error = sum(_square(a, b) for a, b in zip(final, reference, strict=True))
    change = sum(_square(a, b) for a, b in zip(reference, initial, strict=True))
    return math.sqrt(error / change)


def _square(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        raise ValueError(f"a tensor of shape {list(a.shape)}, must be {list(b.shape)}")
    return float((a.double() - b.double()).square().sum())
