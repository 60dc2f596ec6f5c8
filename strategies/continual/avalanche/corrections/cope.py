"""CoPE, corrected."""

from typing import Any, cast

import torch
from torch import Tensor

from strategies.continual.avalanche.networks.cope import CopeNetwork
from strategies.continual.avalanche.template import TensorTemplate
from strategies.continual.batches import MemoryBatches
from strategies.continual.reservoir import Reservoir, keys_of, labels_of


def ppp_loss(embedded: Tensor, labels: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Return the pseudo-prototypical proxy loss, a scalar, of a batch B of n samples.

    With P(c|x; p) = e(p, x) / (e(p, x) + sum over k != c of e(p_k, x)), e(p, x) = exp(p.x / T), and
    pseudo-prototypes, the embeddings of the batch, held fixed:

        attractor of x_i in class c: log of the mean of P(c|x_i; p) over p_c and the other x_j in c
        repellor of x_i in c and x_j not in c: log(1 - (P(c|x_j; x_i) + P(c|x_j; p_c)) / 2)
        loss = -(sum of attractors + sum of repellors) / n

    Upstream goes class by class, and computes 1 - P, which is 0 once P is near 1: infinite loss.
    Here all classes at once, and 1 - P as the other part of the denominator.

    Args:
        embedded: (n, e), of length 1.
        labels: (n,) int64.
        prototypes: (C, e), of length 1, without gradient.
        temperature: T, greater than 0.
    """
    pseudo = (embedded.detach() @ embedded.T / temperature).exp()  # [i, j]: x_i as prototype of x_j
    proxy = (prototypes @ embedded.T / temperature).exp()  # [c, j]
    others = 1 - torch.eye(len(prototypes), dtype=proxy.dtype, device=proxy.device)
    rest = (others @ proxy)[labels]  # [i, j]: x_j to the prototypes of other classes than x_i's
    own = proxy[labels]
    same = labels[:, None] == labels[None, :]

    near = (pseudo / (pseudo + rest)).masked_fill(~same, 0)
    near = near.masked_fill(torch.eye(len(labels), dtype=torch.bool, device=near.device), 0)
    to_own = (own / (own + rest)).diagonal()
    attractor = ((near.sum(0) + to_own) / same.sum(0)).log().sum()

    apart = (rest / (pseudo + rest) + rest / (own + rest)) / 2
    repellor = apart.masked_fill(same, 1).log().sum()
    return -(attractor + repellor) / len(labels)


class CoPE(TensorTemplate):
    """Continual prototype evolution, turn by turn.

    Avalanche's ``CoPEPlugin`` stops an experience after one batch and then updates prototypes and
    memory: it expects each batch to be an experience. Here prototypes move after every step.

    Attributes:
        memory_size: Samples kept over all experiences, shared equally by the classes.
        memory_batch_size: Samples from memory a step; None for as many as the batch has.
        alpha: Share of the old prototype in the new one.
        temperature: T of the loss.
        memory: Samples of past experiences.
    """

    memory_size: int
    memory_batch_size: int | None
    alpha: float
    temperature: float
    memory: Reservoir

    def forget(self) -> None:
        """Empty memory."""
        self.memory = Reservoir(self.memory_size)
        self._replay: list[Tensor] | None = None
        self._draw: MemoryBatches | None = None

    @property
    def network(self) -> CopeNetwork:
        """The equipped model."""
        return cast(CopeNetwork, self.model)

    def criterion(self) -> Tensor:
        """Return the pseudo-prototypical proxy loss of the batch."""
        output: Tensor = self.mb_output.float()
        return ppp_loss(output, self.mb_y, self.network.directions(), self.temperature)

    def _train_exp(self, *args: Any, **kwargs: Any) -> None:
        self.network.begin_turn()
        super()._train_exp(*args, **kwargs)

    def _before_training_epoch(self, **kwargs: Any) -> None:
        super()._before_training_epoch(**kwargs)
        if self._replay is None:
            self._replay = self.gathered(self._with_present().rows)
        self._draw = self.draw_from(self._replay, self.memory_batch_size or self.train_mb_size)

    def _before_forward(self, **kwargs: Any) -> None:
        super()._before_forward(**kwargs)
        assert self._draw is not None
        pairs = zip(self.mbatch, next(self._draw), strict=True)
        self.mbatch = [torch.cat(pair) for pair in pairs]

    def _after_training_iteration(self, **kwargs: Any) -> None:
        super()._after_training_iteration(**kwargs)
        self.network.evolve(self.mb_output.detach().float(), self.mb_y, self.alpha)

    def _after_training_exp(self, **kwargs: Any) -> None:
        super()._after_training_exp(**kwargs)
        self.memory = self._with_present()
        self._replay = None

    def _with_present(self) -> Reservoir:
        """Return what memory will be once it has taken in the present experience."""
        rows, keys = keys_of(self.experience.origin, self._seed)
        labels = labels_of(self.stream, torch.cat([self.memory.rows, rows]))
        memory = Reservoir(self.memory_size, self.memory.rows, self.memory.keys)
        memory.offer_balanced(rows, keys, labels)
        return memory
