"""Dark experience replay: the twin of `strategies.continual.avalanche.der_plus_plus`, cited there.

It serves ``continual=der`` (beta = 0) and ``continual=der_plus_plus``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlearn.losses import Loss
from fedlearn.types import LocalTraining
from strategies.continual.bounds import at_least
from strategies.continual.functional.continual import Anchor, FunctionalContinual
from strategies.continual.functional.method import Method, mean, mean_loss
from strategies.continual.functional.network import Network
from strategies.continual.functional.reservoirs import Reservoirs
from strategies.continual.functional.trees import Batch, Tree, together


def der_plus_plus(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    alpha: float = 0.1,
    beta: float = 0.5,
    memory_batch_size: int | None = None,
    anchor: Anchor = "local",
) -> FunctionalContinual:
    """Return DER++. A client keeps three integers, a key and C logits for each sample in memory.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, over all experiences, at least 1.
        alpha: Weight of the distance to the remembered logits, at least 0.
        beta: Weight of the loss on memory, at least 0; with 0 this is DER.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        anchor: Whose logits are remembered. ``"local"`` keeps the client's weights too.

    Raises:
        ValueError: A setting is out of bounds, or the optimiser has no twin.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("alpha", alpha, 0)
    at_least("beta", beta, 0)
    at_least("memory_batch_size", memory_batch_size, 1)
    memory = Reservoirs(
        memory_per_client, memory_batch_size, drop_last=True, keeps_logits=True, by="class"
    )
    return FunctionalContinual(training, DarkReplay(alpha, beta), memory, anchor)


@dataclass(frozen=True)
class DarkReplay(Method[None]):
    """DER and DER++.

    Attributes:
        alpha: Weight of the distance to the remembered logits.
        beta: Weight of the loss on memory.
    """

    alpha: float
    beta: float

    def loss(
        self, network: Network, params: Tree, batch: Batch, memory: None, criterion: Loss
    ) -> Tensor:
        """Return CE(present) + alpha * MSE(logits) + beta * CE(memory)."""
        if "replayed" not in batch:
            return mean_loss(criterion, network.logits(params, batch), batch)
        past = batch["replayed"]
        logits = network.logits(params, together(past, batch))
        old, new = torch.split(logits, [len(past["y"]), len(batch["y"])])
        present = mean_loss(criterion, new, batch)
        distance = mean((old - past["logits"]).square().mean(1), past)
        return present + self.alpha * distance + self.beta * mean_loss(criterion, old, past)
