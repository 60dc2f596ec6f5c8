"""Synaptic intelligence: the twin of `strategies.continual.avalanche.si`.

The equations stand in `strategies.continual.avalanche.corrections.si`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from fedlearn.types import LocalTraining
from strategies.continual.bounds import above, at_least
from strategies.continual.functional.continual import Anchor, FunctionalContinual
from strategies.continual.functional.method import Learnt, Method
from strategies.continual.functional.network import Network
from strategies.continual.functional.springs import Spring
from strategies.continual.functional.trees import Tree


def si(
    *,
    training: LocalTraining,
    si_lambda: float = 1.0,
    damping: float = 0.1,
    max_importance: float | None = None,
    anchor: Anchor = "local",
) -> FunctionalContinual:
    """Return SI. A client keeps 3 times the parameters, with the local anchor 4 times.

    Args:
        training: What local training is made of.
        si_lambda: The paper's c, at least 0.
        damping: The paper's xi, greater than 0.
        max_importance: Importances are cut here, greater than 0; None for never, as in the paper.
        anchor: Where an experience is consolidated.

    Raises:
        ValueError: A setting is out of bounds, or the optimiser has no twin.
    """
    at_least("si_lambda", si_lambda, 0)
    above("damping", damping, 0)
    above("max_importance", max_importance, 0)
    method = SynapticIntelligence(si_lambda, damping, max_importance)
    return FunctionalContinual(training, method, anchor=anchor)


class Path(NamedTuple):
    """What SI remembers, by parameter; normalisation layers have no part in it.

    Attributes:
        anchor: theta*, the weights at the last experience's end.
        trajectory: Sum of gradient times step over the present experience, -omega.
        total: Sum of trajectory / (distance^2 + xi) over past experiences, -Omega before floor and
            cap. Empty before the first consolidation, as is `stiffness`.
        stiffness: Omega.
    """

    anchor: Tree
    trajectory: Tree
    total: Tree
    stiffness: Tree


@dataclass(frozen=True)
class SynapticIntelligence(Method[Path]):
    """Synaptic intelligence.

    Attributes:
        strength: c.
        damping: xi.
        max_importance: Omega is cut here; None for never.
    """

    strength: float
    damping: float
    max_importance: float | None = None

    memory: ClassVar[type[Path]] = Path
    derived: ClassVar[tuple[str, ...]] = ("stiffness",)
    moving: ClassVar[tuple[str, ...]] = ("trajectory",)

    def enter(self, memory: Path | None, params: Tree, network: Network) -> Path:
        """Return the memory with theta* at `params` and a new path."""
        anchor = {
            name: tensor for name, tensor in params.items() if name not in network.normalisation
        }
        path = {name: torch.zeros_like(tensor) for name, tensor in anchor.items()}
        if memory is None:
            return Path(anchor, path, {}, {})
        return memory._replace(anchor=anchor, trajectory=path)

    def springs(self, memory: Path) -> tuple[Spring]:
        """Return the spring."""
        return (Spring(self.strength, memory.anchor, memory.stiffness),)

    def after_step(self, memory: Path, before: Tree, after: Tree, gradient: Tree) -> Path:
        """Return the memory with the path one step longer."""
        trajectory = {
            name: torch.addcmul(sum_, gradient[name], after[name] - before[name])
            if name in gradient
            else sum_
            for name, sum_ in memory.trajectory.items()
        }
        return memory._replace(trajectory=trajectory)

    def consolidate(self, memory: Path | None, learnt: Learnt) -> Path:
        """Return the memory with the path turned into importances and theta* moved here."""
        assert memory is not None
        anchor = {name: learnt.weights[name] for name in memory.anchor}
        total = {}
        for name, trajectory in memory.trajectory.items():
            moved = (anchor[name] - memory.anchor[name]).square()
            gained = trajectory / (moved + self.damping)
            total[name] = memory.total[name] + gained if memory.total else gained
        return self.completed(memory._replace(anchor=anchor, total=total))

    def completed(self, memory: Path) -> Path:
        """Return `memory` with Omega."""
        stiffness = {
            name: (-total).clamp(min=0.0, max=self.max_importance)
            for name, total in memory.total.items()
        }
        return memory._replace(stiffness=stiffness)
