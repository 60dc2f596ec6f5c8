"""Columns of layers, one a task, each reading those before it: the model of progressive networks.

A. Rusu et al., "Progressive Neural Networks", 2016. Layer i of column k outputs

    h_i^k = f(W_i^k h_{i-1}^k + sum_{j<k} U_i^{k:j} h_{i-1}^j)                  (eq. 1)
    h_i^k = f(W_i^k h_{i-1}^k + U_i^k g(V_i^k [alpha_j h_{i-1}^j]_{j<k}))       (eq. 2, adapters)

for i >= 2; the first layer reads the input only, and the last one is linear. The layers are
Avalanche's ``PNNColumn``, which has g = ReLU.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from avalanche.models.pnn import PNNColumn
from torch import Tensor, nn

from fedlearn.types import Experience
from strategies.continual.avalanche.networks.frozen_copy import frozen_copy

Adapter = Literal["mlp", "linear"]
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.SiLU)


@dataclass(frozen=True)
class Layers:
    """What a multi-layer perceptron is made of.

    Attributes:
        sizes: Inputs, then units of each hidden layer.
        activations: What follows each hidden layer.
        dropouts: What follows each activation; an identity for nothing.
    """

    sizes: list[int]
    activations: list[nn.Module]
    dropouts: list[nn.Module]


class ProgressiveNetwork(nn.Module):
    """In training it outputs the present column; in evaluation each task's, for its classes.

    All columns are there from the start. Those of past tasks are read from buffers, which nothing
    trains; the present one and the untouched later ones from parameters.
    """

    task: Tensor

    def __init__(
        self,
        layers: Layers,
        heads: Sequence[Sequence[int]],
        num_classes: int,
        adapter: Adapter,
    ) -> None:
        """Build the columns, with PyTorch's default initialisation.

        Args:
            layers: Of one column, but for the last; dropout is of the column in training only.
            heads: Classes of each task, by task label; one column each.
            num_classes: C.
            adapter: How a column reads those before it: eq. 2 or eq. 1.
        """
        super().__init__()
        self._num_classes = num_classes
        self._heads = [list(classes) for classes in heads]
        self.activations = nn.ModuleList(layers.activations)
        self.dropouts = nn.ModuleList(layers.dropouts)
        self.columns = nn.ModuleList(
            nn.ModuleList(
                PNNColumn(size_in, size_out, task if depth else 0, adapter)
                for depth, (size_in, size_out) in enumerate(pairwise([*layers.sizes, len(classes)]))
            )
            for task, classes in enumerate(self._heads)
        )
        self.frozen = nn.ModuleList(frozen_copy(column) for column in self.columns)
        self.register_buffer("task", torch.tensor(-1))  # in training; -1 before any

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, C) of x (batch, *input_shape), 0 for classes of other tasks."""
        shown = [max(int(self.task), 0)] if self.training else list(range(len(self._heads)))
        outputs = self._outputs(x.flatten(1), shown)
        logits = x.new_zeros(len(x), self._num_classes)
        for task, output in zip(shown, outputs, strict=True):
            logits[:, self._heads[task]] = output.to(logits.dtype)
        return logits

    @torch.no_grad()
    def enter(self, experience: Experience, progress: float | None) -> None:
        """Fix the column of the task before, if this is another one.

        Raises:
            ValueError: The task is past: its column is fixed.
        """
        task, present = experience.task_label, int(self.task)
        if task < present:
            raise ValueError(
                f"continual=pnn: cannot train task {task} again, the network is at {present}"
            )
        if task > present >= 0:
            self.frozen[present].load_state_dict(self.columns[present].state_dict())
        self.task = torch.full_like(self.task, task)

    def _outputs(self, x: Tensor, shown: Sequence[int]) -> list[Tensor]:
        """Return the outputs (batch, classes) of the columns `shown`, ascending."""
        present = int(self.task)
        columns: list[Any] = [
            (self.frozen if task < present else self.columns)[task] for task in range(shown[-1] + 1)
        ]
        below = [x] * len(columns)
        for depth, activation in enumerate(self.activations):
            below = [
                activation(column[depth](below[: task + 1] if depth else [below[task]]))
                for task, column in enumerate(columns)
            ]
            below[-1] = self.dropouts[depth](below[-1])  # in training that is the present column
        last = len(self.activations)
        return [columns[task][last](below[: task + 1]) for task in shown]


def layers_of(model: nn.Module, num_classes: int) -> Layers:
    """Return the layers of `model`, a multi-layer perceptron with `num_classes` outputs.

    Raises:
        ValueError: It is none, or has no hidden layer, or normalisation.
    """
    parts = [part for part in model.modules() if not list(part.children())]
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    shape = "".join(_letter(part) for part in parts)
    if (
        not re.fullmatch("F?(LAD?)+L", shape)
        or any(one.out_features != other.in_features for one, other in pairwise(linear))
        or linear[-1].out_features != num_classes
        or not _is_chain(model, parts)
    ):
        raise ValueError(
            "continual=pnn: needs a multi-layer perceptron with a hidden layer and no "
            f"normalisation, as model=mlp builds; this {type(model).__name__} is not one"
        )
    sizes = [linear[0].in_features, *(layer.out_features for layer in linear[:-1])]
    activations: list[nn.Module] = [part for part in parts if isinstance(part, ACTIVATIONS)]
    dropouts: list[nn.Module] = [
        after if isinstance(after, nn.Dropout) else nn.Identity()
        for part, after in pairwise(parts)
        if isinstance(part, ACTIVATIONS)
    ]
    return Layers(sizes, activations, dropouts)


def _letter(part: nn.Module) -> str:
    if isinstance(part, ACTIVATIONS):
        return "A"
    return {nn.Flatten: "F", nn.Linear: "L", nn.Dropout: "D"}.get(type(part), "?")


@torch.no_grad()
def _is_chain(model: nn.Module, parts: Sequence[nn.Module]) -> bool:
    """Whether `model` is its parts one after the other: it might skip, add or repeat some."""
    first = next(part for part in parts if isinstance(part, nn.Linear))
    x = torch.linspace(-1, 1, 2 * first.in_features).view(2, -1).to(first.weight)
    was_training = model.training
    model.eval()
    same = torch.equal(model(x), nn.Sequential(*parts)(x))
    model.train(was_training)
    return same
