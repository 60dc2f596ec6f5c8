"""A cohort client by client: for models that cannot be stacked, or are faster alone."""

import copy
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedlearn.turns import CohortReport, Turns
from fedlearn.types import ContinualStrategy, DivergedError, State


class _Strategy(ContinualStrategy, Protocol):
    @property
    def keeps_state(self) -> bool: ...


class LoopTrainer:
    """Trains clients one after another with `train_turn`, on one model object.

    Attributes:
        formulation: See `fedlearn.turns.CohortTrainer`, as `why`, `chunk` and `keeps_state`.
    """

    formulation = "loop"
    chunk = 1

    def __init__(
        self, strategy: _Strategy, model: nn.Module, device: torch.device, why: str
    ) -> None:
        self.why = why
        self.keeps_state = strategy.keeps_state
        self._strategy = strategy
        self._model = copy.deepcopy(model).to(device)

    def train(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        turns: Turns,
        states: Sequence[State],
    ) -> CohortReport:
        """Train the clients of `turns`; see `fedlearn.turns.CohortTrainer`."""
        own = dict(self._model.named_parameters()), _buffers(self._model)
        trained, changed = (
            {name: each.new_empty(len(turns), *each.shape) for name, each in tensors.items()}
            for tensors in own
        )
        report = CohortReport(
            trained,
            losses=np.full(len(turns), np.nan),
            steps=np.zeros(len(turns), dtype=np.int64),
            replayed=np.zeros(len(turns), dtype=np.int64),
            buffers=changed,
        )
        after: list[State] = []
        for at in range(len(turns)):
            self._load(parameters, buffers)
            before = states[at] if self.keeps_state else State()
            try:
                done = self._strategy.train_turn(
                    self._model,
                    turns.experience(at),
                    turns.stream(at),
                    turns.turn(at),
                    before,
                )
            except DivergedError as error:
                report.diverged[at] = str(error)
                after.append(before)
            else:
                report.losses[at], report.steps[at] = done.loss, done.steps
                report.replayed[at] = done.replayed
                for key, value in done.metrics.items():
                    report.metrics.setdefault(key, np.full(len(turns), np.nan))[at] = value
                after.append(done.state)
            with torch.no_grad():
                for home, tensors in ((trained, own[0]), (changed, _buffers(self._model))):
                    for name, each in tensors.items():
                        home[name][at] = each
        if self.keeps_state:
            report.states = after
        return report

    @torch.no_grad()
    def _load(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Give the model what was received."""
        self._model.train()
        for name, parameter in self._model.named_parameters():
            parameter.copy_(parameters[name])
        for name, buffer in _buffers(self._model).items():
            buffer.copy_(buffers[name])


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that are part of the model's state."""
    names = set(model.state_dict())
    return {name: buffer for name, buffer in model.named_buffers() if name in names}
