"""RAR, corrected."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import avalanche_forward
from torch import Tensor, nn

from strategies.continual.avalanche.corrections.second_pass import second_pass
from strategies.continual.avalanche.corrections.virtual_step import virtual_step
from strategies.continual.avalanche.networks.features import head_of, inputs_of
from strategies.continual.batches import MemoryBatches
from strategies.continual.reservoir import Reservoir, keys_of


class RAR(SupervisedPlugin):  # type: ignore[misc]
    """Retrospective adversarial replay: ``RARPlugin``, with the paper's attack.

    What upstream does, and what is done here:

    - Its attack climbs the loss of a class of the batch, so it moves a sample away from that class;
      takes the class of the farthest sample, for want of a ``break``; and takes `attack_steps` - 1
      steps along one gradient. Here every step descends, by a gradient of its own, towards the
      features of the nearest sample of another class.
    - It looks for that sample among what is replayed too. Here in the present batch.
    - It copies the model and traces its graph in every step, and so knows neither task heads nor
      models that cannot be traced. Here the weights move for a while, and the features are what the
      last linear layer reads.
    - It cuts batches of the present experience to the size of those from memory, and goes on with
      the memory of an earlier experience until that is used up.
    - It clamps samples to [0, 1]. Here to the range of what is remembered.

    Attributes:
        memory: Samples of past experiences, a uniform part of all.
    """

    def __init__(
        self,
        memory_size: int,
        memory_batch_size: int | None,
        beta: float,
        epsilon: float,
        attack_steps: int,
        attack_momentum: float,
    ) -> None:
        """Create the plugin; arguments as for `strategies.continual.avalanche.rar.rar`."""
        super().__init__()
        self.memory = Reservoir(memory_size)
        self._memory_batch_size = memory_batch_size
        self._beta = beta
        self._epsilon = epsilon
        self._attack_steps = attack_steps
        self._attack_momentum = attack_momentum
        self._samples: list[Tensor] | None = None
        self._head: nn.Linear | None = None
        self._range = (0.0, 0.0)
        self._draw: MemoryBatches | None = None

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Start drawing from memory."""
        self._draw = None
        if not len(self.memory):
            return
        if self._samples is None:
            self._samples = strategy.gathered(self.memory.rows)
            self._range = float(self._samples[0].min()), float(self._samples[0].max())
            self._head = head_of(strategy.model, "rar")
        size = self._memory_batch_size or strategy.train_mb_size
        self._draw = strategy.draw_from(self._samples, size)

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Add (1 - beta) CE(memory) + beta CE(attacked memory)."""
        if self._draw is None:
            return
        x, y, t = next(self._draw)
        attacked = self.attack(strategy, x, y, t)
        logits = strategy.logits_of(torch.cat([x, attacked]), torch.cat([t, t]))
        past = strategy._criterion(logits[: len(y)], y)
        boundary = strategy._criterion(logits[len(y) :], y)
        strategy.loss += (1 - self._beta) * past + self._beta * boundary

    def attack(self, strategy: Any, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        """Return `x` moved towards the samples of the present batch that it is likest to.

        Args:
            strategy: Its loss is that of the present batch.
            x: (n, *input_shape), from memory.
            y: (n,) labels.
            t: (n,) task labels.
        """
        rate = strategy.optimizer.param_groups[0]["lr"]
        present, labels, tasks = strategy.mbatch
        with virtual_step(strategy.loss, strategy.model, rate), second_pass(strategy.model):
            with torch.no_grad():
                here = self._features(strategy.model, x, t)
                there = self._features(strategy.model, present, tasks)
            distances = torch.cdist(here, there).masked_fill(y[:, None] == labels, torch.inf)
            nearest, at = distances.min(1)
            moved = self._descend(strategy.model, x, t, there[at])
        alike = nearest.isinf().view(-1, *[1] * (x.dim() - 1))  # nobody of another class
        return torch.where(alike, x, moved)

    def _descend(self, model: nn.Module, x: Tensor, t: Tensor, targets: Tensor) -> Tensor:
        """Return `x` moved by MI-FGSM so that its features come near `targets` (n, d)."""
        moved, momentum = x, torch.zeros_like(x)
        for _ in range(self._attack_steps):
            moved = moved.detach().requires_grad_()
            distance = (self._features(model, moved, t) - targets).pow(2).sum()
            (slope,) = torch.autograd.grad(distance, moved)
            length = slope.flatten(1).abs().sum(1).clamp(min=1e-12)
            slope = slope / length.view(-1, *[1] * (x.dim() - 1))
            momentum = self._attack_momentum * momentum + slope
            moved = moved - self._epsilon / self._attack_steps * momentum.sign()
            moved = moved.clamp(*self._range)
        return moved.detach()

    def _features(self, model: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        """Return (n, d): what the head reads."""
        assert self._head is not None
        with inputs_of(self._head) as seen:
            avalanche_forward(model, x, t)
        return seen[-1].flatten(1)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Put samples of the experience into memory."""
        self.memory.offer(*keys_of(strategy.experience.origin, strategy._seed))
        self._samples = None
