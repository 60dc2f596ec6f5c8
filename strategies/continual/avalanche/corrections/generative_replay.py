"""Generative replay, corrected.

Upstream's plugin drives a second Avalanche strategy, which trains the generator: a loop of its own
is shorter, faster, and can be kept between turns. What upstream's generator does wrong is listed in
`strategies.continual.avalanche.generative_replay`.
"""

import copy
from typing import Any

import torch
from avalanche.models import avalanche_forward
from avalanche.training.plugins import GenerativeReplayPlugin
from torch import Tensor, nn

from strategies.continual.avalanche.networks.vae import VAE
from strategies.continual.batches import MemoryBatches, ReplayBatches


class GenerativeReplay(GenerativeReplayPlugin):  # type: ignore[misc]
    """Replays what a generator makes up, with the labels that the last experience's model gives it.

    Attributes:
        generator: Trained at the end of each experience.
        solver: The model at the end of the last experience; None before the first.
        tasks: Task labels learnt so far, ascending.
    """

    def __init__(
        self,
        generator: VAE,
        steps: int,
        lr: float,
        batch_size: int,
        replay_size: int | None,
        increasing_replay_size: bool,
    ) -> None:
        """Create the plugin.

        Args:
            generator: Untrained.
            steps: Of the generator's training at the end of an experience, at least 1.
            lr: Of the generator's Adam, greater than 0.
            batch_size: Of the generator's training, at least 1.
            replay_size: Generated samples a step; None for the batch size.
            increasing_replay_size: Whether there are as many for each experience of the past.
        """
        super().__init__(replay_size=replay_size, increasing_replay_size=increasing_replay_size)
        self.generator = generator
        self.steps, self.lr, self.batch_size = steps, lr, batch_size
        self.solver: nn.Module | None = None
        self.tasks: list[int] = []

    def before_training(self, strategy: Any, **_: Any) -> None:
        """Do nothing: the generator is there."""

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        """Do nothing: generator and solver stand still until the experience's end."""

    def before_training_iteration(self, strategy: Any, **_: Any) -> None:
        """Do nothing: batches come with what is replayed."""

    def before_backward(self, strategy: Any, **_: Any) -> None:
        """Do nothing: the loss is the mean over present and replayed samples."""

    def before_training_epoch(self, strategy: Any, **_: Any) -> None:
        """Let each batch be followed by generated samples, new in every epoch."""
        if self.solver is None:
            return
        size = self._times(strategy) * (self.replay_size or strategy.train_mb_size)
        x = self.generator.generate(size * len(strategy.dataloader))
        memory = strategy.draw_from([x, *self._answer(x)], size)
        strategy.dataloader = ReplayBatches(strategy.dataloader, memory)

    def after_training_exp(self, strategy: Any, **_: Any) -> None:
        """Train the generator, and make the present model the solver."""
        self._train(strategy)
        self.solver = copy.deepcopy(strategy.model).eval().requires_grad_(False)
        self.tasks = sorted({*self.tasks, strategy.experience.origin.task_label})

    def _times(self, strategy: Any) -> int:
        return strategy.clock.train_exp_counter if self.increasing_replay_size else 1

    @torch.no_grad()
    def _answer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the solver's labels of generated inputs, and the task labels they go with.

        A generated sample has no task. Upstream gives it that of the present one and does not tell
        the solver, which then cannot answer. Here it gets any of the past ones, by equal chance.
        """
        tasks = torch.tensor(self.tasks)[torch.randint(len(self.tasks), (len(x),))].to(x.device)
        return avalanche_forward(self.solver, x, tasks).argmax(1), tasks

    def _train(self, strategy: Any) -> None:
        """Train the generator on the experience's inputs and on what it made up before."""
        x, *_ = strategy.experience.tensors(strategy.device)
        generator = self.generator.to(strategy.device)
        memory = None if self.solver is None else copy.deepcopy(generator)
        # Upstream goes on from the old weights: the codes of new inputs then come to lie beside
        # those of old ones, far from where codes are drawn, and are hardly ever made.
        generator.reset()
        generator.widen(x)
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.lr)
        seed = int(torch.randint(2**62, ()))
        batches = MemoryBatches([x], self.batch_size, torch.Generator().manual_seed(seed))
        for _ in range(self.steps):
            (batch,) = next(batches)
            if memory is not None:
                batch = torch.cat([batch, memory.generate(self._times(strategy) * len(batch))])
            optimizer.zero_grad()
            torch.autograd.backward(generator.loss(batch))
            optimizer.step()
