"""A teacher's features beside the student's: what the last linear layer, the head, reads."""

import copy
from typing import Any

import torch
from avalanche.models import avalanche_forward
from torch import Tensor, nn

from strategies.continual.avalanche.networks.features import head_of, inputs_of


class FeatureTeacher:
    """Mix-in, left of an Avalanche plugin: the model of the last experience, for its features.

    Attributes:
        continual: The continual strategy's name, for errors.
        prev_model: The teacher; None before the first consolidation.
    """

    continual: str
    prev_model: nn.Module | None
    _student: Tensor | None = None

    def head(self, model: nn.Module) -> nn.Linear:
        """Return the head of `model`."""
        return head_of(model, self.continual)

    def before_forward(self, strategy: Any, **_: Any) -> None:
        """Let the coming forward pass leave its features here."""
        if self.prev_model is None:
            return

        def collect(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._student = inputs[0]
            handle.remove()

        handle = self.head(strategy.model).register_forward_pre_hook(collect)

    def features(self, strategy: Any) -> tuple[Tensor, Tensor]:
        """Return student's and teacher's features (batch, ...) of the present batch."""
        student, teacher = self._student, self.prev_model
        assert student is not None
        assert teacher is not None
        with torch.no_grad(), inputs_of(self.head(teacher)) as taught:
            avalanche_forward(teacher, strategy.mb_x, strategy.mb_task_id)
        self._student = None
        return student, taught[-1]

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Make the present model the teacher."""
        self.prev_model = copy.deepcopy(strategy.model).eval().requires_grad_(False)
