"""Task heads: a single-head model that Avalanche sees as a multi-task one."""

from collections.abc import Iterator
from typing import Any

from avalanche.models import MultiTaskModule
from torch import Tensor, nn

from fedlearn.heads import hide


class TaskHeads(MultiTaskModule):  # type: ignore[misc]
    """A model seen through the head of each sample's task.

    Being a ``MultiTaskModule``, it makes Avalanche pass task labels wherever it runs the model
    (training, Fisher, importances, memory) and LwF distil every head of the past. The parameters
    are the model's own tensors under the model's own names: what a plugin keeps by name needs no
    translation.
    """

    def __init__(self, model: nn.Module, table: Tensor) -> None:
        """Wrap `model`.

        Args:
            model: Outputs logits (batch, C).
            table: (num_heads, C) bool, on the model's device: the outputs of each head.
        """
        super().__init__()
        self.model = model
        self._table = table

    def adaptation(self, experience: Any) -> None:
        """Do nothing: the heads have their full size from the start."""

    def forward(self, x: Tensor, task_labels: Tensor | None) -> Tensor | dict[int, Tensor]:
        """Return logits (batch, C) with the outputs of other heads hidden.

        Args:
            x: (batch, *input_shape).
            task_labels: (batch,) int64; None for a dictionary of all heads' logits, by task label.
        """
        logits: Tensor = self.model(x)
        if task_labels is None:
            return {task: hide(logits, outputs) for task, outputs in enumerate(self._table)}
        return hide(logits, self._table[task_labels.to(self._table.device)])

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the model's parameters under the model's names."""
        return self.model.named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the model's state under the model's names."""
        state: dict[str, Any] = self.model.state_dict(*args, **kwargs)
        return state

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model's state under the model's names."""
        return self.model.load_state_dict(*args, **kwargs)
