"""MER, corrected."""

from typing import Any

import torch
from avalanche.training.templates import SupervisedMetaLearningTemplate
from torch import Tensor

from strategies.continual.avalanche.corrections.online_memory import OnlineMemory


class MER(OnlineMemory, SupervisedMetaLearningTemplate):  # type: ignore[misc]
    """Meta-experience replay, turn by turn.

    Attributes:
        passes: s, over the batch and as many draws from memory, each followed by a Reptile update.
        inner_batch_size: Samples in each of a pass's steps.
        beta: Share of what a pass moved the weights that is kept.
        gamma: Share of what a step moved them that is kept.
    """

    passes: int
    inner_batch_size: int
    beta: float
    gamma: float

    def forget(self) -> None:
        """Empty memory."""
        super().forget()
        self._moving = [each for each in self.model.parameters() if each.requires_grad]

    def _inner_updates(self, **_: Any) -> None:
        self._start = self._weights()
        for _pass in range(self.passes):
            start = self._start if not _pass else self._weights()
            self._mixed = self.with_memory()
            parts = [torch.split(tensor, self.inner_batch_size) for tensor in self._mixed]
            for x, y, t in zip(*parts, strict=True):
                self._step_on(x, y, t)
            self._return_to(start, self.beta)

    def _step_on(self, x: Tensor, y: Tensor, t: Tensor) -> None:
        """Take a step of the optimiser, with the hooks of any other template's."""
        self.optimizer.zero_grad()
        self.loss = self._make_empty_loss() + self._criterion(self.logits_of(x, t), y)
        self._before_backward()
        self.backward()
        self._after_backward()
        self._before_update()
        self.optimizer_step()
        self._after_update()

    def _outer_update(self, **_: Any) -> None:
        self._return_to(self._start, self.gamma)

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._moving]

    @torch.no_grad()
    def _return_to(self, start: list[Tensor], share: float) -> None:
        """Keep `share` of the way from `start` to here."""
        for parameter, then in zip(self._moving, start, strict=True):
            parameter.lerp_(then, 1 - share)

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Return logits of the batch and memory after the step: for the loss that is reported.

        Batch normalisation cannot learn its statistics from single samples: it does here.
        """
        return self.logits_of(self._mixed[0], self._mixed[2])

    def _after_training_iteration(self, **kwargs: Any) -> None:
        self.loss = self._criterion(self.mb_output, self._mixed[1]).reshape(1)
        super()._after_training_iteration(**kwargs)
