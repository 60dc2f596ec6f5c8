"""Replay with asymmetric cross-entropy: the twin of `strategies.continual.avalanche.er_ace`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.heads import hide
from fedlearn.losses import Loss
from fedlearn.types import LocalTraining
from strategies.continual.bounds import at_least
from strategies.continual.functional.continual import FunctionalContinual
from strategies.continual.functional.method import Method, mean_loss
from strategies.continual.functional.network import Network
from strategies.continual.functional.reservoirs import RankedMemory
from strategies.continual.functional.trees import Batch, Tree, together


def er_ace(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    memory_batch_size: int | None = None,
) -> FunctionalContinual:
    """Return ER-ACE. A client keeps three integers and a key for each sample in memory.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, shared equally by the classes, at least
            1.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.

    Raises:
        ValueError: A setting is out of bounds, or the optimiser has no twin.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("memory_batch_size", memory_batch_size, 1)
    memory = RankedMemory(memory_per_client, memory_batch_size, shows_present=True)
    return FunctionalContinual(training, AsymmetricReplay(), memory)


@dataclass(frozen=True)
class AsymmetricReplay(Method[None]):
    """ER-ACE: the present batch sees its own classes only, memory sees all."""

    def loss(
        self, network: Network, params: Tree, batch: Batch, memory: None, criterion: Loss
    ) -> Tensor:
        """Return the mean of CE(memory) over all classes and CE(present) over the batch's own."""
        if "replayed" not in batch:
            return mean_loss(criterion, network.logits(params, batch), batch)
        replayed = batch["replayed"]
        logits = network.logits(params, together(replayed, batch))
        old, new = torch.split(logits, [len(replayed["y"]), len(batch["y"])])
        past = mean_loss(criterion, old, replayed)
        present = mean_loss(criterion, hide(new, _classes(batch, new.shape[1])), batch)
        return (past + present) / 2


def _classes(batch: Batch, num_classes: int) -> Tensor:
    """Return (C,) bool: the classes of the samples that are present."""
    own = batch["y"][:, None] == torch.arange(num_classes, device=batch["y"].device)
    if "present" in batch:
        own = own & batch["present"][:, None]
    return own.any(0)
