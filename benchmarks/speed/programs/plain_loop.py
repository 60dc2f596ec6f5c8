"""The loop that everybody writes: a module, an optimiser, one client after another."""

import torch
from speed.plan import Plan
from speed.programs.trainer import Trainer, views_of
from torch import Tensor
from torch.nn import functional as F


def plain_loop(plan: Plan) -> Trainer:
    """Return a trainer of modules by autograd and ``torch.optim.SGD``."""
    work = plan.workload
    model = plan.network()
    parameters = list(model.parameters())
    shapes = [tuple(each.shape) for each in parameters]
    optimizer = torch.optim.SGD(parameters, lr=work.lr)

    def train(weights: Tensor, server_round: int, places: range, total: Tensor) -> None:
        received, sums = views_of(weights, shapes), views_of(total, shapes)
        for place in places:
            with torch.no_grad():
                for parameter, value in zip(parameters, received, strict=True):
                    parameter.copy_(value)
            x, y = plan.turn(server_round, place)
            for start in range(0, work.samples, work.batch_size):
                batch = slice(start, start + work.batch_size)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x[batch]), y[batch])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            with torch.no_grad():
                for value, parameter in zip(sums, parameters, strict=True):
                    value += parameter

    return train
