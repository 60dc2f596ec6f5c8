"""One optimiser step of a stack of clients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fedlearn.types import LocalTraining
from strategies.continual.functional.chain_deferral import Deferral
from strategies.continual.functional.cohort import part
from strategies.continual.functional.cohort_batches import CohortBatch
from strategies.continual.functional.cohort_gradients import ByChain, Gradients
from strategies.continual.functional.cohort_springs import PullInPlace
from strategies.continual.functional.method import Method
from strategies.continual.functional.optimizers import SGD, Optimizer
from strategies.continual.functional.springs import Spring
from strategies.continual.functional.step import Step
from strategies.continual.functional.trees import Tree


@dataclass
class Following:
    """K clients' steps by any optimiser, with anything done to the gradient.

    Attributes:
        step: What a step is; its network and criterion are not used.
        gradients: Of the loss without quadratic penalties.
        params: The weights (K, *shape); finished clients' ones are written back to them.
        memory: Stacked; None for nothing. Afterwards that of the clients who took the last step.
        class_weights: (K, C), or None.
    """

    step: Step[Any]
    gradients: Gradients
    params: Tree
    memory: Any
    class_weights: Tensor | None

    def __post_init__(self) -> None:
        self._now = self.params
        self._slots = self.step.optimizer.initial(self.params)
        self._clients = len(next(iter(self.params.values())))
        self._left: list[dict[str, Any]] = []

    def __call__(self, batch: CohortBatch, losses: Tensor, lengths: Tensor | None) -> None:
        """Take a step; write losses and lengths of gradients (k,)."""
        self._finish(batch.clients)
        weights = None if self.class_weights is None else self.class_weights[: batch.clients]
        params, memory = self._now, self.memory
        loss, gradient, reference = self.gradients(params, memory, batch, weights)
        with torch.no_grad():
            measures, gradient, followed = self._directed(params, memory, loss, gradient, reference)
            losses.copy_(measures["loss"])
            if lengths is not None:
                lengths.copy_(measures["gradient_norm"])
            # Optimisers work number by number, so a stack is as good as one client.
            after, self._slots = self.step.optimizer.update(params, followed, self._slots)
            if memory is not None and self.step.method.moving:
                moved = vmap(self._moved)(memory, params, after, gradient)
                self.memory = memory._replace(**moved)
        self._now = after

    def end(self) -> list[dict[str, Any]]:
        """Write the last weights back; return what changed in each client's memory, if anything."""
        self._finish(0)
        return self._left[::-1]

    def _moved(self, memory: Any, before: Tree, after: Tree, gradient: Tree) -> dict[str, Any]:
        """Return the fields of one client's memory that a step changes."""
        method = self.step.method
        left = method.after_step(memory, before, after, gradient)
        return {field: getattr(left, field) for field in method.moving}

    def _directed(
        self, params: Tree, memory: Any, loss: Tensor, gradient: Tree, reference: Tree | None
    ) -> tuple[dict[str, Tensor], Tree, Tree]:
        step = self.step
        as_it_is = (
            (memory is None or type(step.method).springs is Method.springs)
            and step.proximal is None
            and reference is None
            and step.max_grad_norm is None
            and not step.measures_gradient
        )
        if as_it_is:
            return {"loss": loss}, gradient, gradient
        arguments = (params, memory, loss, gradient, reference)
        axes = tuple(None if each is None else 0 for each in arguments)
        found: tuple[dict[str, Tensor], Tree, Tree] = vmap(step.directed, axes)(*arguments)
        return found

    def _finish(self, clients: int) -> None:
        """Let go of all but the first clients."""
        if clients == self._clients:
            return
        done = slice(clients, self._clients)
        for name, home in self.params.items():
            home[done].copy_(self._now[name][done])
        if self.memory is not None and self.step.method.moving:
            moving = {field: getattr(self.memory, field) for field in self.step.method.moving}
            self._left += [part(moving, at) for at in reversed(range(clients, self._clients))]
        first = slice(clients)
        self._now = part(self._now, first)
        self.memory = None if self.memory is None else part(self.memory, first)
        self._slots = self._slots._replace(trees=part(self._slots.trees, first))
        self._clients = clients


@dataclass
class Descending:
    """K clients' steps by plain SGD along the gradient of a chain, all in place.

    Attributes:
        step: What a step is; its network and criterion are not used.
        gradients: Of the loss without quadratic penalties.
        params: The weights (K, *shape), the same for all clients; modified.
        memory: Stacked, as far as the loss needs it; None for nothing.
        class_weights: (K, C), or None.
        springs: Of each client; empty for none.
        room: Memory that springs work in; see `cohort_springs.PullInPlace`.
    """

    step: Step[Any]
    gradients: ByChain
    params: Tree
    memory: Any
    class_weights: Tensor | None
    springs: Sequence[Sequence[Spring]]
    room: Tree

    def __post_init__(self) -> None:
        held = bool(self.springs) and bool(self.springs[0])
        lr = self.step.optimizer.lr
        self._pull = PullInPlace(self.springs, self.params, lr, self.room) if held else None
        self._untouched = [name for name in self.params if name not in self.gradients.chain.trained]
        self._clients = 0
        self._alike = True

    def __call__(self, batch: CohortBatch, losses: Tensor, lengths: Tensor | None) -> None:
        """Take a step; write losses (k,)."""
        clients, chain = batch.clients, self.gradients.chain
        if clients != self._clients:
            self._clients, first = clients, slice(clients)
            self._now = part(self.params, first)
            self._memory = None if self.memory is None else part(self.memory, first)
            self._weights = None if self.class_weights is None else self.class_weights[:clients]
        alike, self._alike = self._alike, False
        loss, tape, slope = self.gradients.slope(
            self._now, self._memory, batch, self._weights, alike
        )
        lr = self.step.optimizer.lr
        if self._pull is None:
            chain.descend(self._now, tape, slope, lr, alike=alike)
            losses.copy_(loss)
            return
        for name in self._untouched:
            self._pull.pull(name, range(clients))
        chain.descend(self._now, tape, slope, lr, self._pull.pull, alike)
        torch.add(loss, self._pull.energies(clients), out=losses)

    def end(self) -> list[dict[str, Any]]:
        """Return nothing: no memory has changed."""
        return []


@dataclass
class Deferring:
    """K clients' steps by plain SGD along the gradient of a chain, which only remembers them.

    Attributes:
        gradients: Of a loss without quadratic penalties.
        deferral: Of these clients.
        memory: Stacked, as far as the loss needs it; None for nothing.
        class_weights: (K, C), or None.
    """

    gradients: ByChain
    deferral: Deferral
    memory: Any
    class_weights: Tensor | None

    def __call__(self, batch: CohortBatch, losses: Tensor, lengths: Tensor | None) -> None:
        """Take a step; write losses (k,)."""
        clients, chain = batch.clients, self.deferral.chain
        memory = None if self.memory is None else part(self.memory, slice(clients))
        weights = None if self.class_weights is None else self.class_weights[:clients]
        loss, tape, slope = self.gradients.slope({}, memory, batch, weights, chain=chain)
        chain.descend({}, tape, slope, self.deferral.rate)
        losses.copy_(loss)

    def end(self) -> list[dict[str, Any]]:
        """Return nothing: no memory has changed."""
        return []


def descends(optimizer: Optimizer, training: LocalTraining, method: Method[Any]) -> bool:
    """Return whether nothing is done to the gradient but to follow it, springs apart."""
    plain = (
        isinstance(optimizer, SGD)
        and not optimizer.momentum
        and not optimizer.weight_decay
        and not optimizer.maximize
    )
    return (
        plain
        and training.max_grad_norm is None
        and not training.gradient_metrics
        and not method.projects
        and not method.moving
    )
