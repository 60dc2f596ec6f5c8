"""Memory aware synapses: the twin of `strategies.continual.avalanche.mas`, cited there."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedlearn.losses import Loss
from fedlearn.types import LocalTraining
from strategies.continual.bounds import at_least, within
from strategies.continual.functional.continual import Anchor, FunctionalContinual
from strategies.continual.functional.method import Learnt, Method, mean
from strategies.continual.functional.network import Network
from strategies.continual.functional.springs import Spring
from strategies.continual.functional.trees import Batch, Tree


def mas(
    *,
    training: LocalTraining,
    lambda_reg: float = 0.1,
    alpha: float = 0.5,
    anchor: Anchor = "local",
) -> FunctionalContinual:
    """Return MAS. A client keeps 2 times the parameters, with the local anchor 3 times.

    Args:
        training: What local training is made of.
        lambda_reg: Weight of the penalty, at least 0.
        alpha: Share of the old importances in the new ones, in [0, 1].
        anchor: Where an experience is consolidated.

    Raises:
        ValueError: A setting is out of bounds, or the optimiser has no twin.
    """
    at_least("lambda_reg", lambda_reg, 0)
    within("alpha", alpha, 0, 1)
    return FunctionalContinual(training, MAS(lambda_reg, alpha), anchor=anchor)


class Sensitivity(NamedTuple):
    """What MAS remembers.

    Attributes:
        stiffness: How much the outputs depend on each element, by parameter.
        anchor: Where each parameter is held.
        known: Whether there is anything to average with, a bool scalar.
    """

    stiffness: Tree
    anchor: Tree
    known: Tensor


@dataclass(frozen=True)
class MAS(Method[Sensitivity]):
    """Memory aware synapses.

    Attributes:
        strength: Avalanche's ``lambda_reg``.
        alpha: Share of the old importances in the new ones.
    """

    strength: float
    alpha: float

    memory: ClassVar[type[Sensitivity]] = Sensitivity
    measures: ClassVar[bool] = True

    def springs(self, memory: Sensitivity) -> tuple[Spring]:
        """Return the spring."""
        return (Spring(self.strength, memory.anchor, memory.stiffness),)

    def sensitivity(self, network: Network, params: Tree, batch: Batch, criterion: Loss) -> Tensor:
        """Return the mean squared norm of the logits."""
        return mean(network.logits(params, batch).square().sum(1), batch)

    def importance(self, gradient: Tensor) -> Tensor:
        """Return the gradient's size."""
        return gradient.abs()

    def consolidate(self, memory: Sensitivity | None, learnt: Learnt) -> Sensitivity:
        """Return the memory with the experience's importances averaged in."""
        fresh = learnt.importance
        anchor = {name: learnt.weights[name] for name in fresh}
        known = next(iter(anchor.values())).new_ones((), dtype=torch.bool)
        if memory is None:
            return Sensitivity(fresh, anchor, known)
        stiffness = {
            name: torch.where(
                memory.known,
                self.alpha * memory.stiffness[name] + (1 - self.alpha) * fresh[name],
                fresh[name],
            )
            for name in fresh
        }
        return Sensitivity(stiffness, anchor, known)
