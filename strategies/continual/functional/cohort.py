"""Many clients at once: the pieces of a turn, batched by ``torch.func.vmap``.

Weights, slots, memories and batches of K clients are stacked along a leading axis. Batches that are
smaller than the others, and steps that a client has no samples for, are padded: ``present`` says
which samples count.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from fedlearn.types import LocalTraining
from strategies.continual.functional.network import Outputs
from strategies.continual.functional.optimizers import Optimizer, Slots
from strategies.continual.functional.step import Step
from strategies.continual.functional.trees import Batch, Tree


class Stateless(Outputs):
    """The model as a pure function of its trainable weights.

    What is not trained (frozen parameters, buffers) is the wrapped model's own.
    """

    def __init__(self, model: nn.Module, training: LocalTraining, evaluating: bool = False) -> None:
        """Wrap a copy of `model`.

        Args:
            model: Any.
            training: What local training is made of.
            evaluating: Whether it runs in evaluation mode, as a `Survey` needs it.

        Raises:
            ValueError: Clients of such a model cannot be stacked.
        """
        check_stackable(model)
        super().__init__(model, training)
        self._model = copy.deepcopy(model).train(not evaluating)
        self._evaluating = self._model if evaluating else copy.deepcopy(model).eval()

    def __call__(self, params: Tree, x: Tensor) -> Tensor:
        """Return the model's outputs (batch, C) for x (batch, *input_shape) at `params`."""
        return self._run(self._model, params, x)

    def logits(self, params: Tree, batch: Batch) -> Tensor:
        """Return the outputs (batch, C) for a batch, those of other tasks' heads hidden."""
        return self.seen(self(params, batch["x"]), batch)

    def teach(self, weights: Tree, x: Tensor) -> Tensor:
        """Return the outputs (batch, C) at `weights` in evaluation mode, without gradients."""
        with torch.no_grad():
            return self._run(self._evaluating, weights, x)

    def _run(self, model: nn.Module, weights: Tree, x: Tensor) -> Tensor:
        with self._precision():
            outputs: Tensor = functional_call(model, weights, (x,))
        return outputs.float() if self._low else outputs


def check_stackable(model: nn.Module) -> None:
    """Check that clients of `model` can be stacked.

    Raises:
        ValueError: A layer's training depends on more than one client's weights and samples.
    """
    for path, module in model.named_modules():
        reason = None
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            continue  # frozen: it normalises with the statistics that it has
        if isinstance(module, _BatchNorm):
            reason = "mixes a batch with its padding and tracks statistics; use group normalisation"
        elif isinstance(module, _NormBase) and module.track_running_stats:
            reason = "tracks running statistics; use group normalisation"
        elif isinstance(module, _DropoutNd) and module.p:
            reason = "draws other numbers than a client alone would; use dropout=0"
        if reason is not None:
            raise ValueError(
                f"runtime.executor=vectorized: {path} ({type(module).__name__}) {reason}, "
                "or another executor"
            )


def initial_slots(optimizer: Optimizer, params: Tree) -> Slots:
    """Return what K clients' optimisers remember before the first step on stacked `params`."""
    first = next(iter(params.values()))
    steps = torch.zeros(len(first), dtype=torch.float64, device=first.device)
    return vmap(optimizer.initial)(params, steps)


def over_cohort(step: Step[Any]) -> Callable[..., tuple[Tree, Slots, Any, dict[str, Tensor]]]:
    """Return `step` for K clients at once: stacked arguments, stacked results.

    A client none of whose samples is present does not step. The returned function takes params,
    slots, memory (None for a method without one) and batch, as `Step` does, and class_weights
    (K, C), which replace those of the step's criterion where given.

    Args:
        step: On a `Stateless` network, with `by_transform`.
    """

    def one(
        params: Tree, slots: Slots, memory: Any, batch: Batch, class_weights: Tensor | None
    ) -> Any:
        own = step
        if class_weights is not None:
            own = replace(step, criterion=replace(step.criterion, class_weights=class_weights))
        *after, measures = own(params, slots, memory, batch)
        if "present" in batch:
            steps = batch["present"].any()
            after = [
                _where(steps, new, old)
                for new, old in zip(after, (params, slots, memory), strict=True)
            ]
        if memory is None:
            after[-1] = ()  # None may go into vmap, but not out of it
        return *after, measures

    def of_all(
        params: Tree,
        slots: Slots,
        memory: Any,
        batch: Batch,
        class_weights: Tensor | None = None,
    ) -> tuple[Tree, Slots, Any, dict[str, Tensor]]:
        axes = (0, 0, None if memory is None else 0, 0, None if class_weights is None else 0)
        after, slots, left, measures = vmap(one, axes)(params, slots, memory, batch, class_weights)
        return after, slots, None if memory is None else left, measures

    return of_all


def stack(clients: Sequence[Any]) -> Any:
    """Return one tree of stacked tensors out of one a client, all of one structure."""
    first = clients[0]
    if isinstance(first, Tensor):
        return torch.stack(list(clients))
    if isinstance(first, dict):
        return {key: stack([each[key] for each in clients]) for key in first}
    if isinstance(first, tuple):  # a NamedTuple
        return type(first)(*(stack(each) for each in zip(*clients, strict=True)))
    return torch.tensor(clients, dtype=torch.float64)  # steps taken


def unstack(cohort: Any, client: int) -> Any:
    """Return the tree of one client, by its place in the stack; its tensors are views."""
    if isinstance(cohort, Tensor):
        return cohort[client]
    if isinstance(cohort, dict):
        return {key: unstack(value, client) for key, value in cohort.items()}
    return type(cohort)(*(unstack(value, client) for value in cohort))


def _where(condition: Tensor, new: Any, old: Any) -> Any:
    """Return `new` where `condition` holds, `old` elsewhere, tensor by tensor."""
    if isinstance(new, Tensor):
        return torch.where(condition, new, old)
    if isinstance(new, dict):
        return {key: _where(condition, value, old[key]) for key, value in new.items()}
    if isinstance(new, tuple):
        pairs = zip(new, old, strict=True)
        return type(new)(*(_where(condition, value, before) for value, before in pairs))
    return new
