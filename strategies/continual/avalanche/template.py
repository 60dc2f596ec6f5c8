"""Avalanche's supervised template, made to live for one turn at a time and to read tensors.

`TurnByTurn` changes how an Avalanche strategy is fed and seeded, and nothing of what it learns: its
own ``train()``, hooks, plugins and clock run as they are. One deviation: whatever iterates over
memory starts anew with each epoch, from the epoch's own seed (Avalanche keeps one iterator for all
the epochs of a ``train()``). That makes R rounds of one epoch exactly one round of R epochs.

What the epochs read is `TurnByTurn.epoch_tensors`: a strategy that trains on other data than the
experience's (GDumb, the upper bounds) overrides it. A plugin that replaces the model's layers
(growing heads) needs a template of its own.
"""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Self

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import avalanche_forward
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlearn.seeding import reseed_global
from fedlearn.types import DivergedError, Turn
from strategies.continual.avalanche.adapter import Criterion
from strategies.continual.avalanche.dataset import ClientExperience, Stream, gather, identity
from strategies.continual.batches import Change, MemoryBatches, TensorBatches


class NoEvaluation(SupervisedPlugin):  # type: ignore[misc]
    """Stands in for Avalanche's evaluator, which warns if it has nothing to log to."""

    def get_last_metrics(self) -> dict[str, float]:
        """Return no metrics."""
        return {}


class TurnByTurn:
    """Mix-in, left of an Avalanche template: a strategy that is fed tensors, for one turn.

    A strategy is made by `for_turn` from a prototype, because Avalanche's constructors inspect the
    signatures of all their base classes: 1.5 ms, more than a small client trains for.

    Attributes:
        turn: Where the client stands.
        stream: The client's experience of a given index.
        steps: Optimiser steps so far.
        metrics: What plugins report of the turn, as floats.
        augment: Changes the inputs of each batch; see `LocalTraining`.
        max_loss: The largest loss that a turn may have; see `LocalTraining`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    plugins: list[Any]
    clock: Clock
    experience: ClientExperience
    dataloader: Any
    mbatch: list[Tensor]
    loss: Tensor
    train_mb_size: int
    train_epochs: int
    is_training: bool
    turn: Turn
    stream: Stream
    steps: int
    metrics: dict[str, float]
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    max_loss: float = math.inf
    _steps_left: int | None
    _seed: Callable[..., int]
    _next_epoch: int
    _memories: list[MemoryBatches]
    _drawn: int
    _tensors: tuple[ClientExperience | None, list[Tensor]]
    _losses: list[Tensor]
    _sizes: list[int]
    _norms: list[nn.Module]

    @classmethod
    def prototype(cls, criterion: Criterion, **settings: Any) -> Self:
        """Return what `for_turn` copies; `settings` are the Avalanche template's own."""
        return cls(  # type: ignore[call-arg]
            model=nn.Identity(),
            optimizer=None,
            criterion=criterion,
            evaluator=NoEvaluation,
            **settings,
        )

    def for_turn(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        plugins: Sequence[SupervisedPlugin],
        turn: Turn,
        stream: Stream,
    ) -> Self:
        """Return a strategy that remembers nothing, on `model`, seeded by `turn`."""
        strategy = copy.copy(self)
        strategy.model, strategy.optimizer = model, optimizer
        strategy.device = next(model.parameters()).device
        strategy.train_mb_size, strategy.train_epochs = turn.batch_size, turn.epochs
        strategy.is_training = True
        strategy.turn, strategy.stream, strategy._seed = turn, stream, turn.seed
        strategy.steps, strategy._next_epoch = 0, turn.first_epoch
        strategy.metrics, strategy._steps_left = {}, None
        strategy._norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
        strategy._memories, strategy._drawn, strategy._tensors = [], 0, (None, [])
        # Avalanche's evaluator and periodic evaluation have nothing to do here and cost every hook.
        strategy.clock = Clock()
        strategy.plugins = [*plugins, strategy.clock]
        strategy.forget()
        return strategy

    def forget(self) -> None:
        """Make anew what the template itself remembers."""

    def end_turn(self) -> None:
        """Finish the turn, after its last epoch: what is left in the model travels with it."""

    def epoch_tensors(self) -> list[Tensor]:
        """Return what the epochs of a turn read: inputs, labels and task labels, on the device."""
        return self.experience.tensors(self.device)

    @property
    def tensors(self) -> list[Tensor]:
        """What the present epoch reads, whole and unchanged; see `epoch_tensors`."""
        return self._tensors[1]

    @property
    def replayed(self) -> int:
        """Samples drawn from memory so far."""
        return self._drawn + sum(memory.drawn for memory in self._memories)

    @property
    def mean_loss(self) -> float:
        """Mean loss over the samples of the latest epoch, every term included."""
        losses = torch.cat(self._losses)
        taken = self._sizes[: len(losses)]  # the last pass of a turn of steps may be cut short
        sizes = torch.tensor(taken, dtype=losses.dtype, device=losses.device)
        return float(losses @ sizes / sizes.sum())

    def remembered(self, dataset: Any) -> list[Tensor]:
        """Return inputs, labels and task labels of an Avalanche data set, on the device."""
        return self.gathered(identity(dataset))

    def gathered(self, rows: Tensor) -> list[Tensor]:
        """Return inputs, labels and task labels of `rows` (n, 2), n at least 1, on the device."""
        return [tensor.to(self.device) for tensor in gather(self.stream, rows)]

    def drew(self, samples: int) -> None:
        """Count `samples` that came from memory in another way than by `draw_from`."""
        self._drawn += samples

    def logits_of(self, x: Tensor, task_labels: Tensor) -> Tensor:
        """Return the model's logits (n, C) on samples beside the batch, as training sees them.

        One sample alone has no variance: batch normalisation then uses what is known of others.
        """
        norms = [norm for norm in self._norms if norm.training] if len(x) == 1 else []
        for norm in norms:
            norm.eval()
        logits: Tensor = avalanche_forward(self.model, x, task_labels)
        for norm in norms:
            norm.train()
        return logits

    def draw_from(
        self, samples: Sequence[Tensor], batch_size: int, drop_last: bool = False
    ) -> MemoryBatches:
        """Return endless batches of `samples` from memory, on the latest epoch's own seed."""
        epoch, place = self._next_epoch - 1, len(self._memories)
        generator = torch.Generator().manual_seed(self._seed("replay", epoch, place))
        change = self._augmentation(epoch, 1 + place)
        self._memories.append(MemoryBatches(samples, batch_size, generator, drop_last, change))
        return self._memories[-1]

    def _augmentation(self, *numbers: int) -> Change | None:
        """Return what changes the inputs of each batch, with draws of its own, if anything does."""
        augment = self.augment
        if augment is None:
            return None
        generator = torch.Generator().manual_seed(self._seed("augment", *numbers))
        return lambda x: augment(x, generator)

    # What Avalanche calls.

    def train_dataset_adaptation(self, **_: Any) -> None:
        """Build no data set: training reads tensors."""

    def make_train_dataloader(self, **_: Any) -> None:
        """Build no loader: every epoch has its own."""

    def forward(self) -> Tensor:
        """Return logits (batch, C)."""
        output: Tensor = avalanche_forward(self.model, self.mbatch[0], self.mbatch[2])
        return output

    def _unpack_minibatch(self) -> None:
        """Do nothing: a batch is a list of tensors on the device already."""

    def _before_training_exp(self, **kwargs: Any) -> None:
        reseed_global(self._seed("set-up", self.experience.current_experience))
        super()._before_training_exp(**kwargs)  # type: ignore[misc]

    def _after_training_exp(self, **kwargs: Any) -> None:
        reseed_global(self._seed("consolidate", self.experience.current_experience))
        super()._after_training_exp(**kwargs)  # type: ignore[misc]

    def _train_exp(self, *args: Any, **kwargs: Any) -> None:
        if self.turn.steps is None and self.turn.work == 1:
            super()._train_exp(*args, **kwargs)  # type: ignore[misc]
        else:
            self._train_steps()
        self.end_turn()

    def _train_steps(self) -> None:
        while self._steps_left != 0:
            self._before_training_epoch()
            if self._steps_left is None:  # the first pass shows how many steps one has
                self._steps_left = self.turn.num_steps(len(self.dataloader))
            self.training_epoch()
            self._after_training_epoch()

    def _before_training_epoch(self, **kwargs: Any) -> None:
        epoch, self._next_epoch = self._next_epoch, self._next_epoch + 1
        reseed_global(self._seed("epoch", epoch))
        if self._tensors[0] is not self.experience:
            self._tensors = self.experience, self.epoch_tensors()
        tensors = self._tensors[1]
        generator = torch.Generator().manual_seed(self._seed("batches", epoch))
        order = torch.randperm(len(tensors[0]), generator=generator).to(self.device)
        batches = TensorBatches(
            tensors, self.train_mb_size, order, bool(self._norms), self._augmentation(epoch)
        )
        if 1 in batches.sizes:  # one sample has no variance: use what is known of others
            for norm in self._norms:
                norm.eval()
        self.dataloader, self._sizes = batches, batches.sizes
        self._memories, self._drawn = [], self.replayed
        self._losses = []
        super()._before_training_epoch(**kwargs)  # type: ignore[misc]

    def training_epoch(self, **kwargs: Any) -> None:
        """Train one pass, or what is left of a turn's steps."""
        if self._steps_left is not None:
            self.dataloader = islice(self.dataloader, self._steps_left)
        super().training_epoch(**kwargs)  # type: ignore[misc]

    def _after_training_epoch(self, **kwargs: Any) -> None:
        worst = float(torch.cat(self._losses).max())
        if not math.isfinite(worst):
            raise DivergedError(f"the loss is {worst}")
        if worst > self.max_loss:
            raise DivergedError(f"the loss is {worst:g}, above local.max_loss={self.max_loss:g}")
        if self._steps_left is not None:
            self._steps_left -= len(self._losses)
        super()._after_training_epoch(**kwargs)  # type: ignore[misc]

    def _after_training_iteration(self, **kwargs: Any) -> None:
        self._losses.append(self.loss.detach())
        self.steps += 1
        super()._after_training_iteration(**kwargs)  # type: ignore[misc]


class TensorTemplate(TurnByTurn, SupervisedTemplate):  # type: ignore[misc]
    """Avalanche's supervised template, turn by turn."""
