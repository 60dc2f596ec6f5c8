"""How a cohort is trained as one program: which formulation suits a model and a device.

- ``chain``: the model is a chain of layers, whose backward pass is written by hand
  (`strategies.continual.functional.chain`);
- ``deferred``: likewise, and clients share the weights that they were sent until a turn ends
  (`strategies.continual.functional.chain_deferral`), wherever SGD is plain and nothing pulls at the
  weights;
- ``vmap``: ``torch.func.vmap`` batches the model's forward and backward pass;
- ``loop``: one client after another, for models that cannot be stacked or are faster alone.
"""

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.func import grad, vmap

from fedlearn.turns import FORMULATIONS, CohortTrainer, Formulation
from fedlearn.types import LocalTraining
from strategies.continual.functional.chain import Chain
from strategies.continual.functional.chain_deferral import Defers, can_defer
from strategies.continual.functional.cohort import Stateless, unstackable
from strategies.continual.functional.cohort_loop import LoopTrainer
from strategies.continual.functional.cohort_steps import descends
from strategies.continual.functional.cohort_trainer import StackedTrainer
from strategies.continual.functional.method import Method
from strategies.continual.functional.trees import Tree

if TYPE_CHECKING:
    from strategies.continual.functional.continual import FunctionalContinual

STACKED_BYTES = 8 * 2**20
"""Bytes of weights that ``vmap`` works on at once on a CPU."""
LARGE = 2**19
"""Bytes of weights beyond which ``vmap`` is slower than a loop on a CPU: an MLP of 784-200-200-10
lost to it by a seventh, one of 64-32-10 won fifteen times."""
_BATCH = 32
"""Samples a step that chunks are sized for; what a turn has is known only later."""


def trainer_of(
    strategy: "FunctionalContinual",
    model: nn.Module,
    device: torch.device,
    formulation: Formulation,
) -> CohortTrainer:
    """Return what trains clients of `model`.

    Args:
        strategy: How they learn.
        model: What they train; not modified.
        device: Where.
        formulation: How, or ``"auto"``.

    Raises:
        ValueError: `formulation` is unknown, or no way to train such a model.
    """
    if formulation not in FORMULATIONS:
        choices = ", ".join(FORMULATIONS)
        raise ValueError(f"runtime.formulation={formulation}: must be one of {choices}")
    if formulation == "loop":
        return LoopTrainer(strategy, model, device, "as asked for")
    model = copy.deepcopy(model).to(device).train()
    not_stacked = unstackable(model)
    chain = not_stacked or _chain(model, strategy.training)
    if isinstance(chain, Chain) and formulation in ("auto", "deferred", "chain"):
        return _by_chain(strategy, model, device, formulation, chain)
    if formulation in ("deferred", "chain"):
        raise ValueError(f"runtime.formulation={formulation}: {chain}")
    obstacle = not_stacked or _obstacle(model, strategy.training)
    if formulation == "auto" and obstacle is None and device.type == "cpu":
        obstacle = _busy(model)
    if obstacle is None:
        chunk = _chunk(model, device)
        return StackedTrainer(strategy, model, device, "vmap", f"{chain}; it can be stacked", chunk)
    if formulation == "vmap":
        raise ValueError(f"runtime.formulation=vmap: {obstacle}")
    return LoopTrainer(strategy, model, device, obstacle)


def _by_chain(
    strategy: "FunctionalContinual",
    model: nn.Module,
    device: torch.device,
    formulation: Formulation,
    chain: Chain,
) -> CohortTrainer:
    """Return what trains clients of a model that is a chain."""
    why = "the model is a chain of layers"
    defers: Defers = "never"
    if formulation == "deferred":
        if not can_defer(chain):
            raise ValueError(
                "runtime.formulation=deferred: there is more to train than linear layers"
            )
        defers = "always"
    elif formulation == "auto" and device.type == "cpu" and can_defer(chain):
        method = strategy.method
        pulls = type(method).springs is not Method.springs
        if not pulls and descends(strategy.optimizer, strategy.training, method):
            why = "linear layers and plain SGD: the updates of short turns are deferred"
            defers = "where it pays"
    chunk = chain.best_chunk(_BATCH, next(model.parameters()).dtype, device)
    chosen = "chain" if defers == "never" else "deferred"
    return StackedTrainer(strategy, model, device, chosen, why, chunk, defers)


def _chain(model: nn.Module, training: LocalTraining) -> Chain | str:
    """Return `model` as a chain, or why it is none."""
    if training.precision != "float32":
        return f"chains of layers have no precision={training.precision}"
    return Chain.of(model)


def _obstacle(model: nn.Module, training: LocalTraining) -> str | None:
    """Return why ``vmap`` fails on `model`; None if it does not, or if inputs are unknown."""
    if not training.input_shape:
        return None
    network = Stateless(model, training)
    weights = dict(model.named_parameters())
    params: Tree = {
        name: weights[name].detach().expand(2, *weights[name].shape) for name in network.trainable
    }
    device = next(iter(params.values())).device
    reason = None
    for dtype in (next(model.parameters()).dtype, torch.int64):  # tokens, else
        x = torch.zeros(2, 2, *training.input_shape, dtype=dtype, device=device)
        try:
            vmap(grad(lambda own, x: network(own, x).square().sum()))(params, x)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            reason = reason or f"vmap cannot run it: {error}".splitlines()[0]
        else:
            return None
    return reason


def _busy(model: nn.Module) -> str | None:
    """Return why clients of `model` are faster alone on a CPU; None if they are not."""
    size = _bytes(model)
    if size > LARGE:
        return f"{size} bytes of weights of one client keep a CPU core busy; stacked it is slower"
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            kind = type(module).__name__
            return f"{path} ({kind}) of one client keeps a CPU core busy; stacked it is slower"
    return None


def _chunk(model: nn.Module, device: torch.device) -> int:
    """Return how many clients ``vmap`` should run at once."""
    if device.type != "cpu":
        return 1024
    return max(1, min(256, STACKED_BYTES // max(1, _bytes(model))))


def _bytes(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())
