"""A network whose weights belong to tasks: the model of PackNet.

A. Mallya, S. Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning",
CVPR 2018. Every weight is owned by one task or free. A task reads its own weights and those of the
tasks before it, and trains its own. It starts with all that is free; pruning then frees, layer by
layer, those of the smallest magnitude, and the task goes on with what it keeps.

What is not pruned: biases and normalisation, which belong to the first task that was trained (as in
the paper), and each class's row of the output layer, which belongs to the class's task (the paper
gives each task an output layer of its own).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fedlearn.types import Experience


class PackedNetwork(nn.Module):
    """In training it runs the present task's weights; in evaluation each task's, for its classes.

    Weights of past tasks are read from buffers, which nothing trains. Ownership and phase are
    integer buffers.
    """

    task: Tensor
    pruned: Tensor
    closed: Tensor

    def __init__(
        self,
        model: nn.Module,
        output_layer: str,
        heads: Sequence[Sequence[int]],
        prune_proportion: float | None,
        retrain_share: float,
    ) -> None:
        """Build the network; every weight is free.

        Args:
            model: Outputs logits (batch, C).
            output_layer: Name of the linear layer that ends it.
            heads: Classes of each task, by task label.
            prune_proportion: Share of each layer's free weights that a task gives back, in [0, 1];
                None leaves each of the tasks the same number. The last task keeps all.
            retrain_share: Share of an experience's rounds that come after pruning, in [0, 1); 0
                prunes when the next experience starts.
        """
        super().__init__()
        self.model = model
        self._heads = [list(classes) for classes in heads]
        self._prune_proportion = prune_proportion
        self._retrain_from = 1 - retrain_share if retrain_share else None
        self._prunable = {
            f"{name}.weight" if name else "weight"
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear | _ConvNd) and name != output_layer
        }
        # The label of the task that owns each weight; T where it is free.
        self.owner = nn.Module()
        # The weights of past tasks.
        self.kept = nn.Module()
        for name, parameter in model.named_parameters():
            free = torch.full(parameter.shape, len(heads), dtype=torch.int16)
            self.owner.register_buffer(_slot(name), free)
            self.kept.register_buffer(_slot(name), parameter.detach().clone())
            if name.rpartition(".")[0] == output_layer:
                for task, classes in enumerate(self._heads):
                    free[classes] = task
        self.register_buffer("task", torch.tensor(-1))  # in training; -1 before any
        self.register_buffer("pruned", torch.tensor(-1))  # the last one that was pruned
        self.register_buffer("closed", torch.tensor(0))  # how many are past
        self._mix: dict[str, tuple[Tensor, Tensor]] | None = None

    def train(self, mode: bool = True) -> "PackedNetwork":
        """Set the mode; normalisation stays as the first task left it."""
        super().train(mode)
        if int(self.closed):
            for part in self.modules():
                if isinstance(part, _NormBase):
                    part.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, C) of x (batch, *input_shape)."""
        present = int(self.task)
        if self.training and self._mix is not None:
            return self._run(x, self._mix)
        logits = self._run(x, self._mixed(present))
        for task, classes in enumerate(self._heads[: max(present, 0)]):
            logits[:, classes] = self._run(x, self._mixed(task))[:, classes]
        return logits

    @torch.no_grad()
    def enter(self, experience: Experience, progress: float | None) -> None:
        """Close the task before, if this is another one; prune this one when its time has come.

        Raises:
            ValueError: The task is past: its weights are fixed.
        """
        task, present = experience.task_label, int(self.task)
        if task < present:
            raise ValueError(
                f"continual=packnet: cannot train task {task} again, the network is at {present}"
            )
        if task > present:
            if present >= 0:
                self._close(present)
            self.task = torch.full_like(self.task, task)
            self.train(self.training)
        elif (
            self._retrain_from is not None
            and progress is not None
            and progress >= self._retrain_from - 1e-9
            and int(self.pruned) < task < len(self._heads) - 1
        ):
            self._prune(task)
        self._mix = self._mixed(task)

    def _run(self, x: Tensor, mixed: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
        weights = {
            name: torch.where(live, self.model.get_parameter(name), fixed)
            for name, (live, fixed) in mixed.items()
        }
        logits: Tensor = functional_call(self.model, weights, (x,))
        return logits

    @torch.no_grad()
    def _mixed(self, task: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return for each parameter where `task` reads it live, and what it reads elsewhere."""
        present, mixed = int(self.task), {}
        for name, _, owner, kept in self._weights():
            live = owner >= present  # of later tasks: their rows of the output layer, still hidden
            if 0 <= present <= int(self.pruned):
                live &= owner < len(self._heads)
            if task < present:
                live = torch.zeros_like(live)
            past = (owner < present) & (owner <= task)
            mixed[name] = live, torch.where(past, kept, 0.0)
        return mixed

    def _close(self, task: int) -> None:
        """Fix the weights of `task` as they are now."""
        if int(self.pruned) < task:
            self._prune(task)
        for name, parameter, owner, kept in self._weights():
            setattr(self.kept, _slot(name), torch.where(owner == task, parameter.detach(), kept))
        self.closed = self.closed + 1

    def _prune(self, task: int) -> None:
        """Give `task` its share of what is free, the weights of the largest magnitude."""
        for name, parameter, owner, _ in self._weights():
            free = (owner == len(self._heads)).flatten().nonzero().squeeze(1)
            if name in self._prunable:
                magnitude = parameter.detach().abs().flatten()[free]
                count = int(len(free) * self._share_to_prune(task))
                free = free[magnitude.argsort(stable=True)[count:]]
            flat = owner.flatten().index_fill(0, free, task)
            setattr(self.owner, _slot(name), flat.view_as(owner))
        self.pruned = torch.full_like(self.pruned, task)

    def _share_to_prune(self, task: int) -> float:
        left = len(self._heads) - task
        if left == 1:
            return 0.0
        return 1 - 1 / left if self._prune_proportion is None else self._prune_proportion

    def _weights(self) -> Iterator[tuple[str, nn.Parameter, Tensor, Tensor]]:
        """Yield name, parameter, owner and kept values of all weights."""
        for name, parameter in self.model.named_parameters():
            slot = _slot(name)
            yield name, parameter, getattr(self.owner, slot), getattr(self.kept, slot)


def _slot(name: str) -> str:
    """Return the buffer's name for a parameter's: it may have no dot."""
    return name.replace(".", "/")
