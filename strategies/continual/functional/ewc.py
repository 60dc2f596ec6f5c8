"""Elastic weight consolidation: the twin of `strategies.continual.avalanche.ewc`, cited there.

Separate EWC keeps one spring for each past experience there. Here they are merged into one
(`springs.moved`), which pulls exactly as all of them do, and keeps 3 times the parameters however
many experiences have passed.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from fedlearn.types import LocalTraining
from strategies.continual.ewc_settings import Mode, check_springs
from strategies.continual.functional.continual import Anchor, FunctionalContinual
from strategies.continual.functional.method import Learnt, Method
from strategies.continual.functional.springs import Spring, moved
from strategies.continual.functional.trees import Tree


def ewc(
    *,
    training: LocalTraining,
    ewc_lambda: float = 200.0,
    mode: Mode = "separate",
    decay_factor: float | None = None,
    anchor: Anchor = "local",
) -> FunctionalContinual:
    """Return EWC. A client keeps 3 times the parameters, online 2 times; local anchor: +1.

    Args:
        training: What local training is made of. Large lambdas need its ``max_grad_norm``.
        ewc_lambda: Weight of the penalty, at least 0.
        mode: One penalty per past experience, or a single decayed one.
        decay_factor: What is left of old importances at each experience's end, in [0, 1]; needed
            by, and only allowed for, ``mode="online"``.
        anchor: Where an experience is consolidated.

    Raises:
        ValueError: A setting is out of bounds, or the optimiser has no twin.
    """
    check_springs(ewc_lambda, mode, decay_factor)
    return FunctionalContinual(training, EWC(ewc_lambda, decay_factor), anchor=anchor)


class Fisher(NamedTuple):
    """What EWC remembers, by parameter.

    Attributes:
        stiffness: Diagonal of the Fisher information, over all past experiences.
        anchor: The weights at the last one's end.
        slope: Where older experiences pull the anchor; empty for online EWC.
        offset: What their penalties are there, a scalar; 0 for online EWC.
    """

    stiffness: Tree
    anchor: Tree
    slope: Tree
    offset: Tensor


@dataclass(frozen=True)
class EWC(Method[Fisher]):
    """Elastic weight consolidation.

    Attributes:
        strength: Avalanche's ``ewc_lambda``.
        decay: What is left of old importances at an experience's end; None for separate EWC.
    """

    strength: float
    decay: float | None = None

    memory: ClassVar[type[Fisher]] = Fisher
    measures: ClassVar[bool] = True

    def springs(self, memory: Fisher) -> tuple[Spring]:
        """Return the one spring that stands for all past experiences."""
        stiffness, anchor, slope, offset = memory
        return (Spring(self.strength, anchor, stiffness, slope, offset),)

    def importance(self, gradient: Tensor) -> Tensor:
        """Return the squared gradient."""
        return gradient.square()

    def add_importance(self, total: Tensor, gradient: Tensor) -> None:
        """Add the squared gradient to `total`."""
        total.addcmul_(gradient, gradient)

    def consolidate(self, memory: Fisher | None, learnt: Learnt) -> Fisher:
        """Return the memory with the experience's Fisher information."""
        fresh = learnt.importance
        anchor = {name: learnt.weights[name] for name in fresh}
        at_rest = next(iter(anchor.values())).new_zeros(())
        if memory is None:
            return Fisher(fresh, anchor, {}, at_rest)
        if self.decay is not None:
            stiffness = {name: self.decay * memory.stiffness[name] + fresh[name] for name in fresh}
            return Fisher(stiffness, anchor, {}, at_rest)
        (old,) = self.springs(memory)
        old = moved(old, anchor)
        stiffness = {name: memory.stiffness[name] + fresh[name] for name in fresh}
        return Fisher(stiffness, anchor, old.slope, at_rest if old.offset is None else old.offset)
