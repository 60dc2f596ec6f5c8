"""Linear layers of many clients as batched matrix products, with a backward pass of our own.

A chunk of clients is trained at a time, so that its weights stay in a core's cache. The weight
update is part of the product that makes the gradient (``baddbmm_`` with ``alpha=-lr``): no gradient
is ever stored.
"""

import torch
from speed.plan import Plan
from speed.programs.trainer import Trainer, views_of
from torch import Tensor


def stacked_layers(plan: Plan) -> Trainer:
    """Return a trainer for networks of linear layers with ReLUs between them."""
    work = plan.workload
    batches = work.samples // work.batch_size
    shapes = [tuple(each.shape) for each in plan.weights]
    x = plan.x.flatten(2)
    stacks = torch.empty(work.chunk, sum(each.numel() for each in plan.weights))
    minus_one = torch.full((work.chunk, work.batch_size, 1), -1.0)

    def train_chunk(weights: Tensor, server_round: int, places: range) -> Tensor:
        stack = stacks[: len(places)]
        stack.copy_(weights)
        held = views_of(stack, shapes)
        matrices, biases = held[::2], [each.unsqueeze(1) for each in held[1::2]]
        chosen = slice(places.start, places.stop)
        clients = plan.cohorts[server_round, chosen].unsqueeze(1)
        orders = plan.orders[server_round, chosen]
        inputs = torch.unflatten(x[clients, orders], 1, (batches, work.batch_size))
        labels = torch.unflatten(plan.y[clients, orders], 1, (batches, work.batch_size, 1))
        for step in range(batches):
            outputs = [inputs[:, step]]
            for index, (matrix, bias) in enumerate(zip(matrices, biases, strict=True)):
                z = torch.baddbmm(bias, outputs[-1], matrix.transpose(1, 2))
                outputs.append(z if index == len(matrices) - 1 else z.relu_())
            error = outputs[-1].softmax(2)  # the gradient by the logits: (softmax - one-hot) / b
            error.scatter_add_(2, labels[:, step], minus_one[: len(places)])
            error.mul_(1 / work.batch_size)
            for index in reversed(range(len(matrices))):
                matrix, below = matrices[index], outputs[index]
                passed = torch.bmm(error, matrix) if index else None  # by the weights before
                matrix.baddbmm_(error.transpose(1, 2), below, alpha=-work.lr)
                biases[index].sub_(error.sum(1, keepdim=True), alpha=work.lr)
                if passed is not None:
                    error = torch.ops.aten.threshold_backward(passed, below, 0)
        return stack.sum(0)

    @torch.no_grad()
    def train(weights: Tensor, server_round: int, places: range, total: Tensor) -> None:
        for start in range(places.start, places.stop, work.chunk):
            chunk = range(start, min(start + work.chunk, places.stop))
            total += train_chunk(weights, server_round, chunk)

    return train
