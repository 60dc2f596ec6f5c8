"""Which samples of an experience a replay memory keeps.

Each class of this module makes the memory that the end of an experience leaves, out of the one
before: a `Reservoir` of names, whose keys say which sample goes first when memory shrinks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from avalanche.models import avalanche_forward
from torch import Tensor
from torch.nn import functional as F

from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.exemplars import herding
from strategies.continual.avalanche.networks.features import head_of, inputs_of
from strategies.continual.reservoir import Reservoir, balanced, keys_of, labels_of

Order = Callable[[Tensor, int], Tensor]
"""Maps features (n, d) of length 1 and a number m to the positions of the best min(n, m), in
order."""

AT_ONCE = 256
"""Samples whose features are measured in one pass."""


class Selection(Protocol):
    """Makes memory."""

    @property
    def size(self) -> int:
        """Most samples kept."""
        ...

    def __call__(self, strategy: Any, memory: Reservoir) -> Reservoir:
        """Return what is left of `memory` and of the present experience of `strategy`."""
        ...


@dataclass(frozen=True)
class UniformSelection:
    """Every sample so far has the same chance: ``ReservoirSamplingBuffer``.

    Attributes:
        size: Samples kept.
    """

    size: int

    def __call__(self, strategy: Any, memory: Reservoir) -> Reservoir:
        """Return what is left; see `Selection`."""
        kept = Reservoir(self.size, memory.rows, memory.keys)
        kept.offer(*keys_of(strategy.experience.origin, strategy._seed))
        return kept


@dataclass(frozen=True)
class ClassSelection:
    """A uniform part of each class: ``ClassBalancedBuffer``.

    Upstream gives each class a fixed share, so what a class cannot fill stays empty, and gives the
    shares out in the order of a set. Here the other classes fill it, the smallest labels first.

    Attributes:
        size: Samples kept over all classes.
        per_class: Samples kept of each class; None to share `size` equally.
    """

    size: int
    per_class: int | None

    def __call__(self, strategy: Any, memory: Reservoir) -> Reservoir:
        """Return what is left; see `Selection`."""
        rows, keys = keys_of(strategy.experience.origin, strategy._seed)
        rows, keys = torch.cat([memory.rows, rows]), torch.cat([memory.keys, keys])
        return self.best(strategy, rows, keys)

    def best(self, strategy: Any, rows: Tensor, keys: Tensor) -> Reservoir:
        """Return the samples with the largest keys of each class, out of `rows` (n, 2)."""
        labels = labels_of(strategy.stream, rows)
        if self.per_class is None:
            kept = balanced(keys, labels, self.size)
        else:
            kept = best_of_each(keys, labels, self.per_class)
        return Reservoir(self.size, rows[kept], keys[kept])


@dataclass(frozen=True)
class FeatureSelection(ClassSelection):
    """The samples of each class that stand for it best: ``ParametricBuffer(groupby="class")``.

    A sample's key is minus its place in `order`, so that memory shrinks from the end of the order,
    as in iCaRL. Upstream orders what is left anew each time that memory shrinks, by the features of
    that moment and around the mean of what is left. Here only a class that has new samples is
    ordered anew: what was kept of it and the new samples, by the features of now. As in iCaRL,
    features have length 1; upstream's have not.

    Attributes:
        order: Puts the samples of a class in order.
    """

    order: Order

    def __call__(self, strategy: Any, memory: Reservoir) -> Reservoir:
        """Return what is left; see `Selection`."""
        offered, _ = keys_of(strategy.experience.origin, strategy._seed)
        rows = torch.cat([memory.rows, offered])
        labels = labels_of(strategy.stream, rows)
        fresh = labels[len(memory.rows) :]
        old = ~torch.isin(labels[: len(memory.rows)], fresh)
        kept, keys = [memory.rows[old]], [memory.keys[old]]
        most = self.size if self.per_class is None else self.per_class
        for label in sorted(set(fresh.tolist())):
            candidates = rows[labels == label]
            best = self.order(features_of(strategy, candidates), most).cpu()
            kept.append(candidates[best])
            keys.append(-torch.arange(len(best), dtype=torch.float64))
        return self.best(strategy, torch.cat(kept), torch.cat(keys))


@torch.no_grad()
def features_of(strategy: Any, rows: Tensor) -> Tensor:
    """Return features (n, d) of length 1 of the samples `rows` (n, 2), in evaluation mode."""
    x, _, t = strategy.gathered(rows)
    head = head_of(strategy.model, "replay")
    with second_pass(strategy.model), inputs_of(head) as seen:
        for inputs, task_labels in zip(x.split(AT_ONCE), t.split(AT_ONCE), strict=True):
            avalanche_forward(strategy.model, inputs, task_labels)
    return F.normalize(torch.cat(seen).flatten(1), dim=1)


def closest(features: Tensor, size: int) -> Tensor:
    """Return the positions (min(n, size),) of the samples nearest to the mean of `features`."""
    distances: Tensor = torch.linalg.vector_norm(features - features.mean(0), dim=1)
    return distances.argsort(stable=True)[:size]


ORDERS: dict[str, Order] = {"herding": herding, "closest_to_center": closest}
"""How `FeatureSelection` may order samples, by policy."""


def best_of_each(keys: Tensor, groups: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` samples with the largest keys of each group.

    Args:
        keys: (n,) float.
        groups: (n,) int64.
        count: At least 1.
    """
    parts = []
    for group in sorted(set(groups.tolist())):
        at = (groups == group).nonzero().squeeze(1)
        parts.append(at[keys[at].argsort(descending=True, stable=True)[:count]])
    return torch.cat(parts)


def selection_of(policy: str, size: int, per_class: int | None) -> Selection:
    """Return the selection of a `policy` of `strategies.continual.avalanche.replay.replay`."""
    if policy == "reservoir":
        return UniformSelection(size)
    if policy == "class_balanced":
        return ClassSelection(size, per_class)
    return FeatureSelection(size, per_class, ORDERS[policy])
