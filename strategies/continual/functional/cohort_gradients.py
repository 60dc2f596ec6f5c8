"""Losses and gradients of a stack of clients, by a chain of layers or by ``vmap``."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from fedlearn.losses import Loss
from strategies.continual.functional.chain import Chain, Tape
from strategies.continual.functional.cohort import Stateless, part
from strategies.continual.functional.cohort_batches import CohortBatch
from strategies.continual.functional.method import Method
from strategies.continual.functional.network import Network
from strategies.continual.functional.slopes import (
    Handed,
    any_slope,
    is_mean,
    loss_of,
    mean_slope,
)
from strategies.continual.functional.step import Step, by_leaves
from strategies.continual.functional.trees import Batch, Tree

SURVEYED = 8 * 2**20
"""Bytes of inputs that go through a chain together where importances are measured."""


class Gradients(Protocol):
    """Gradients of K clients. Trees and tensors are stacked, class weights (K, C)."""

    def __call__(
        self, params: Tree, memory: Any, batch: CohortBatch, class_weights: Tensor | None
    ) -> tuple[Tensor, Tree, Tree | None]:
        """Return losses (K,), gradients and references, as `Step.differentiated` does."""
        ...

    def importances(
        self, params: Tree, batches: Iterable[CohortBatch], class_weights: Tensor | None
    ) -> Tree:
        """Return the sums over batches of `Method.importance`, in evaluation mode."""
        ...

    def outputs(self, params: Tree, batch: CohortBatch) -> Tensor:
        """Return outputs (K, samples, C) in evaluation mode, those of other heads hidden."""
        ...


class Slope(NamedTuple):
    """What the backward pass starts from.

    Attributes:
        loss: (K,).
        tape: Of the forward pass.
        slope: (K, samples, C), of each client's loss in its outputs.
    """

    loss: Tensor
    tape: Tape
    slope: Tensor


@dataclass(frozen=True)
class ByChain:
    """Gradients by a chain's own backward pass. A chain is the same in training and evaluation.

    Attributes:
        chain: The model.
        method: The continual strategy.
        handed: Stands for the model where a loss is asked for its slope.
        criterion: Loss of a sample, without class weights.
    """

    chain: Chain
    method: Method[Any]
    handed: Handed
    criterion: Loss

    def __call__(
        self, params: Tree, memory: Any, batch: CohortBatch, class_weights: Tensor | None
    ) -> tuple[Tensor, Tree, Tree | None]:
        """Return losses (K,), gradients and references."""
        reference = None
        if self.method.projects and batch.replays:
            replayed = batch.batch()["replayed"]
            outputs, tape = self.chain.forward(params, replayed["x"])
            _, slope = self._reference({**replayed, "x": outputs}, class_weights)
            reference = self.chain.gradient(params, tape, slope)
        loss, tape, slope = self.slope(params, memory, batch, class_weights)
        return loss, self.chain.gradient(params, tape, slope), reference

    def slope(
        self,
        params: Tree,
        memory: Any,
        batch: CohortBatch,
        class_weights: Tensor | None,
        alike: bool = False,
        chain: Chain | None = None,
    ) -> Slope:
        """Run forward, and return the slope of the loss in the outputs.

        Args:
            params: See `Chain.forward`, as `alike`.
            memory: Stacked; None for nothing.
            batch: What is learnt.
            class_weights: (K, C), or None.
            alike: Whether all clients have the same parameters.
            chain: What runs; None for this object's.
        """
        method = self.method
        x = batch.x
        if method.projects:  # by what is replayed, which is no part of the loss
            x = x[:, : batch.width]
        outputs, tape = (chain or self.chain).forward(params, x, alike)
        if is_mean(method) and (method.blends or not batch.replays or method.projects):
            loss, slope = mean_slope(
                self.handed, self.criterion, batch.whole(outputs), class_weights
            )
            return Slope(loss, tape, slope)
        taught = None
        if memory is not None and (teacher := method.teacher(memory)) is not None:
            taught = self.chain.outputs(teacher, x)
        loss, slope = any_slope(
            loss_of(method, self.handed),
            self.criterion,
            batch.batch(outputs),
            memory,
            class_weights,
            taught,
        )
        return Slope(loss, tape, slope)

    def importances(
        self, params: Tree, batches: Iterable[CohortBatch], class_weights: Tensor | None
    ) -> Tree:
        """Return the sums over batches of `Method.importance`.

        Batches of one shape go through the chain together.
        """
        totals = {name: torch.zeros_like(each) for name, each in params.items()}
        for group in _alike(batches) if self.chain.surveys else ([each] for each in batches):
            clients, parts = group[0].clients, len(group)
            first, joined = slice(clients), _side_by_side(group)
            own = part(params, first)
            weights = None if class_weights is None else class_weights[first]
            outputs, tape = self.chain.forward(own, joined.x)
            seen = _apart(joined.whole(outputs), clients * parts)
            if weights is not None:
                weights = weights.repeat_interleave(parts, 0)
            slope = self._sensitivity(seen, weights).view(outputs.shape)
            if self.chain.surveys:
                size = joined.width // parts
                add = self.method.add_importance
                self.chain.survey(own, tape, slope, size, part(totals, first), add)
                continue
            for name, gradient in self.chain.gradient(own, tape, slope).items():
                self.method.add_importance(totals[name][first], gradient)
        return totals

    def _sensitivity(self, batch: Batch, class_weights: Tensor | None) -> Tensor:
        """Return the slope (K, samples, C) of `Method.sensitivity` in the outputs."""
        if type(self.method).sensitivity is Method.sensitivity:
            return mean_slope(self.handed, self.criterion, batch, class_weights)[1]
        return self._any(self.method.sensitivity, batch, class_weights)[1]

    def outputs(self, params: Tree, batch: CohortBatch) -> Tensor:
        """Return outputs (K, samples, C), those of other heads hidden."""
        return _seen(self.handed, self.chain.outputs(params, batch.x), batch)

    def _reference(self, replayed: Batch, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        if type(self.method).reference is Method.reference:
            return mean_slope(self.handed, self.criterion, replayed, class_weights)
        return self._any(self.method.reference, replayed, class_weights)

    def _any(
        self,
        scalar: Callable[[Network, Tree, Batch, Loss], Tensor],
        batch: Batch,
        class_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return value and slope of a scalar that is not the loss."""

        def value(batch: Batch, _memory: None, criterion: Loss) -> Tensor:
            return scalar(self.handed, {}, batch, criterion)

        return any_slope(value, self.criterion, batch, None, class_weights)


@dataclass(frozen=True)
class ByTransform:
    """Gradients by ``vmap`` of the model.

    Attributes:
        step: On a `Stateless` network, with `by_transform`.
        surveyed: The network in evaluation mode.
        used: By whether something is replayed: names of the parameters that the loss depends on.
    """

    step: Step[Any]
    surveyed: Stateless
    used: dict[Any, tuple[str, ...]]

    def __call__(
        self, params: Tree, memory: Any, batch: CohortBatch, class_weights: Tensor | None
    ) -> tuple[Tensor, Tree, Tree | None]:
        """Return losses (K,), gradients and references."""
        stacked = batch.batch()
        key = (memory is None, batch.replays)
        if key not in self.used:
            own = part(params, 0)
            leaves = {name: each.detach().requires_grad_() for name, each in own.items()}
            step = replace(self.step, differentiate=by_leaves)
            first = None if memory is None else part(memory, 0)
            _, gradient, _ = step.differentiated(leaves, first, part(stacked, 0))
            self.used[key] = tuple(gradient)
        used = self.used[key]

        def one(
            params: Tree, others: Tree, memory: Any, batch: Batch, weights: Tensor | None
        ) -> tuple[Tensor, Tree, Tree]:
            network = _With(self.step.network, others) if others else self.step.network
            step = replace(self.step, network=network, criterion=self._criterion(weights))
            loss, gradient, reference = step.differentiated(params, memory, batch)
            return loss, gradient, {} if reference is None else reference

        trained = {name: params[name] for name in used}
        others = {name: each for name, each in params.items() if name not in trained}
        loss, gradient, reference = _over(one, trained, others, memory, stacked, class_weights)
        return loss, gradient, reference or None

    def importances(
        self, params: Tree, batches: Iterable[CohortBatch], class_weights: Tensor | None
    ) -> Tree:
        """Return the sums over batches of `Method.importance`."""
        totals = {name: torch.zeros_like(each) for name, each in params.items()}
        for batch in batches:
            first = slice(batch.clients)
            weights = None if class_weights is None else class_weights[first]
            gradient = self._sensitivity(part(params, first), batch, weights)
            for name, each in gradient.items():
                self.step.method.add_importance(totals[name][first], each.detach())
        return totals

    def _sensitivity(self, params: Tree, batch: CohortBatch, class_weights: Tensor | None) -> Tree:
        """Return the gradient of `Method.sensitivity`, 0 where nothing depends on a parameter."""

        def one(params: Tree, batch: Batch, weights: Tensor | None) -> Tree:
            criterion = self._criterion(weights)
            _, gradient = self.step.differentiate(
                lambda own: self.step.method.sensitivity(self.surveyed, own, batch, criterion),
                params,
            )
            return gradient

        found: Tree = _over(one, params, batch.batch(), class_weights)
        return found

    def outputs(self, params: Tree, batch: CohortBatch) -> Tensor:
        """Return outputs (K, samples, C) in evaluation mode, those of other heads hidden."""
        with torch.no_grad():
            outputs: Tensor = _over(self.surveyed, params, batch.x)
        return _seen(self.surveyed, outputs, batch)

    def _criterion(self, class_weights: Tensor | None) -> Loss:
        if class_weights is None:
            return self.step.criterion
        return replace(self.step.criterion, class_weights=class_weights)


def _alike(batches: Iterable[CohortBatch]) -> Iterator[list[CohortBatch]]:
    """Return batches in groups that can be put side by side."""
    group: list[CohortBatch] = []
    for batch in batches:
        whole = batch.present is None and bool(group) and group[0].present is None
        fits = sum(each.x.nbytes for each in group) < SURVEYED
        if not (whole and fits and group[0].x.shape == batch.x.shape):
            if group:
                yield group
            group = []
        group.append(batch)
    if group:
        yield group


def _side_by_side(group: Sequence[CohortBatch]) -> CohortBatch:
    """Return batches of one shape as one, (K, parts * samples, ...)."""
    if len(group) == 1:
        return group[0]
    columns: dict[str, Any] = {
        name: torch.cat([getattr(each, name) for each in group], 1)
        for name in ("x", "y", *(("task",) if group[0].task is not None else ()))
    }
    return replace(group[0], width=sum(each.width for each in group), **columns)


def _apart(batch: Batch, clients: int) -> Batch:
    """Return a stacked batch with its parts as clients of their own, views."""
    return {name: each.view(clients, -1, *each.shape[2:]) for name, each in batch.items()}  # type: ignore[attr-defined,return-value]


class _With:
    """A network some of whose weights nobody takes gradients for."""

    def __init__(self, network: Network, others: Tree) -> None:
        self._network, self._others = network, others
        self.trainable, self.normalisation = network.trainable, network.normalisation

    def __call__(self, params: Tree, x: Tensor) -> Tensor:
        return self._network(self._others | params, x)

    def seen(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self._network.seen(outputs, batch)

    def logits(self, params: Tree, batch: Batch) -> Tensor:
        return self._network.logits(self._others | params, batch)

    def teach(self, weights: Tree, x: Tensor) -> Tensor:
        return self._network.teach(weights, x)


def _over(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `function` returns for each client; None stands for no argument."""
    return vmap(function, tuple(None if each is None else 0 for each in arguments))(*arguments)


def _seen(network: Network, outputs: Tensor, batch: CohortBatch) -> Tensor:
    """Return `outputs` (K, samples, C) with those of other tasks' heads hidden."""
    if batch.task is None:
        return outputs
    flat: Batch = {"x": outputs, "y": batch.y, "task": batch.task.flatten()}
    return network.seen(outputs.flatten(0, 1), flat).view(outputs.shape)
