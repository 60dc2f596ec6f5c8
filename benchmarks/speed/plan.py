"""The plan: everything that decides the final weights, in one file that every contender reads.

It needs nothing but PyTorch, so that peers read it without fedlearn.
"""

from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from speed.models import network
from speed.workloads import NUM_CLASSES, Workload
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Plan:
    """Who trains when, on what, in which order, and from where.

    Rounds count from 0 here. R rounds of m clients, K clients with n samples each.

    Attributes:
        workload: What is done.
        x: (K, n, *input_shape) float32.
        y: (K, n) int64, labels.
        cohorts: (R, m) int64, client ids.
        orders: (R, m, n) int64: the order of the samples in each turn, cut into batches from the
            front.
        weights: The initial parameters, in the order of the network's.
    """

    workload: Workload
    x: Tensor
    y: Tensor
    cohorts: Tensor
    orders: Tensor
    weights: list[Tensor]

    def save(self, path: Path) -> None:
        """Write the plan."""
        parts = ("x", "y", "cohorts", "orders", "weights")
        content = {name: getattr(self, name) for name in parts}
        torch.save({"workload": asdict(self.workload), **content}, path)

    def turn(self, server_round: int, place: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of one turn in its order.

        Args:
            server_round: From 0.
            place: In the cohort, from 0.
        """
        client_id, order = int(self.cohorts[server_round, place]), self.orders[server_round, place]
        return self.x[client_id][order], self.y[client_id][order]

    def network(self) -> nn.Sequential:
        """Return the network with the initial weights."""
        work = self.workload
        made = network(
            input_shape=work.input_shape,
            num_classes=NUM_CLASSES,
            widths=work.widths,
            hidden_sizes=work.hidden_sizes,
        )
        with torch.no_grad():
            for parameter, initial in zip(made.parameters(), self.weights, strict=True):
                parameter.copy_(initial)
        return made


@cache
def read_plan(path: str) -> Plan:
    """Return the plan in a file, whose pages all processes share; read once a process."""
    content = torch.load(path, mmap=True, weights_only=True)
    return Plan(Workload(**content.pop("workload")), **content)
