"""Prototypes on features that settle: the base of streaming LDA and of FeCAM without memory.

Upstream wants a backbone that somebody has pretrained elsewhere. Federated users often have none,
so here the clients may train it together in the stream's first experience. Later nobody does, and
what a class's samples look like to it stays as it is: the statistics of past experiences need
no samples, only addition.

When an experience ends, a client measures its samples once more, at the global weights that it
receives at its first turn of the next: those of the backbone as it stays.
"""

from typing import Any, cast

import torch
from torch import Tensor

from strategies.continual.avalanche.corrections.prototypes import PrototypeTemplate, prototypes_of
from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.networks.covariances import Covariances
from strategies.continual.avalanche.networks.prototypes import BATCH, Prototypes, Statistics, total


class SettlingTemplate(PrototypeTemplate):
    """Training in the first experience only, and statistics of all experiences.

    The backbone has settled for a client that is in any other experience than the stream's first,
    also where it had no sample of the first. For everybody else it settles with the reply of such a
    client, whose buffer ``settled`` is 1: the mean that all receive is then greater than 0.

    Attributes:
        trains_first: Whether the backbone is trained in the first experience, or never.
        past: Statistics of the experiences that are over.
    """

    trains_first: bool = True
    past: Statistics
    _settled: bool = False

    def forget(self) -> None:
        """Make the statistics anew."""
        super().forget()
        self.past = {}

    def _train_exp(self, *args: Any, **kwargs: Any) -> None:
        model = cast(Covariances, prototypes_of(self.model))
        over = self.experience.current_experience > 0 or self.clock.train_exp_counter > 0
        self._settled = not self.trains_first or over or bool(model.settled > 0)
        if self._settled:
            model.settled.fill_(1)
            self.model.eval()
            super().end_turn()  # features do not move any more: the loss is that of new prototypes
            if self.turn.steps is None:  # nothing is updated between two batches
                self.train_mb_size = max(self.train_mb_size, BATCH)
        super()._train_exp(*args, **kwargs)

    def forward(self) -> Tensor:
        """Return logits, or where the backbone has settled the scores, (batch, C)."""
        with torch.set_grad_enabled(not self._settled):
            return super().forward()

    def backward(self) -> None:
        """Measure the gradient, unless the backbone has settled."""
        if not self._settled:
            super().backward()

    def optimizer_step(self) -> None:
        """Make a step, unless the backbone has settled."""
        if not self._settled:
            super().optimizer_step()

    def end_turn(self) -> None:
        """Refresh the prototypes, unless that is done."""
        if not self._settled:
            super().end_turn()

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        model = prototypes_of(self.model)
        with second_pass(model):
            self.past = self.statistics(model)

    def statistics(self, model: Prototypes) -> Statistics:
        """Return the sums over all experiences so far."""
        return total(self.past, super().statistics(model))
