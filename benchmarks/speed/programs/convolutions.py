"""The convolutional network, client by client, with a backward pass of our own.

Images and filters are channels-last, pooling comes before the ReLU that it commutes with, and the
update of the linear layers is part of the product that makes the gradient.
"""

import torch
from speed.plan import Plan
from speed.programs.trainer import Trainer, views_of
from torch import Tensor

aten = torch.ops.aten


def convolutions(plan: Plan) -> Trainer:
    """Return a trainer for two convolutions, a pooling, a hidden layer and a head."""
    work = plan.workload
    lr, size = work.lr, work.batch_size
    shapes = [tuple(each.shape) for each in plan.weights]
    last = torch.channels_last
    parameters = [
        torch.empty(shape).to(memory_format=last) if len(shape) == 4 else torch.empty(shape)
        for shape in shapes
    ]
    minus_one = torch.full((size, 1), -1.0)

    def step(x: Tensor, y: Tensor) -> None:
        filters1, bias1, filters2, bias2, matrix3, bias3, matrix4, bias4 = parameters
        a1 = torch.conv2d(x, filters1, bias1).relu_()
        z2 = torch.conv2d(a1, filters2, bias2)
        pooled, where = aten.max_pool2d_with_indices(z2, [2, 2], [2, 2])
        flat = pooled.relu_().flatten(1)
        hidden = torch.addmm(bias3, flat, matrix3.t()).relu_()
        error = torch.addmm(bias4, hidden, matrix4.t()).softmax(1)
        error.scatter_add_(1, y, minus_one)
        error.mul_(1 / size)

        below = aten.threshold_backward(error @ matrix4, hidden, 0)
        matrix4.addmm_(error.t(), hidden, alpha=-lr)
        bias4.sub_(error.sum(0), alpha=lr)
        error = aten.threshold_backward(below @ matrix3, flat, 0)
        matrix3.addmm_(below.t(), flat, alpha=-lr)
        bias3.sub_(below.sum(0), alpha=lr)
        image = error.view(pooled.shape).to(memory_format=last)
        image = aten.max_pool2d_with_indices_backward(
            image, z2, [2, 2], [2, 2], [0, 0], [1, 1], False, where
        )
        image, change, sums = _backward(image, a1, filters2, True)
        filters2.sub_(change, alpha=lr)
        bias2.sub_(sums, alpha=lr)
        image = aten.threshold_backward(image, a1, 0)
        _, change, sums = _backward(image, x, filters1, False)
        filters1.sub_(change, alpha=lr)
        bias1.sub_(sums, alpha=lr)

    @torch.no_grad()
    def train(weights: Tensor, server_round: int, places: range, total: Tensor) -> None:
        received, sums = views_of(weights, shapes), views_of(total, shapes)
        for place in places:
            for parameter, value in zip(parameters, received, strict=True):
                parameter.copy_(value)
            x, y = plan.turn(server_round, place)
            x, y = x.to(memory_format=last), y.unsqueeze(1)
            for start in range(0, work.samples, size):
                step(x[start : start + size], y[start : start + size])
            for value, parameter in zip(sums, parameters, strict=True):
                value += parameter

    return train


def _backward(
    error: Tensor, inputs: Tensor, filters: Tensor, by_inputs: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by inputs (undefined unless asked for), filters and biases."""
    found: tuple[Tensor, Tensor, Tensor] = aten.convolution_backward(
        error,
        inputs,
        filters,
        [len(filters)],
        [1, 1],
        [0, 0],
        [1, 1],
        False,
        [0, 0],
        1,
        [by_inputs, True, True],
    )
    return found
