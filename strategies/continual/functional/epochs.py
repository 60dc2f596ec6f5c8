"""The epochs of one client's turn: batches in the Avalanche engine's order, one step for each."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Generic, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlearn.seeding import reseed_global
from fedlearn.types import DivergedError, LocalTraining, Turn
from strategies.continual.batches import Change, MemoryBatches, TensorBatches
from strategies.continual.functional.method import M
from strategies.continual.functional.network import Live
from strategies.continual.functional.rehearsal import Draw, Rehearsal
from strategies.continual.functional.step import Step
from strategies.continual.functional.trees import Batch, batch_of


class Remembered:
    """The samples in memory, gathered for a turn."""

    def __init__(self, rehearsal: Rehearsal, samples: Batch, groups: Tensor) -> None:
        """Hold what is remembered.

        Args:
            rehearsal: Says how it is drawn.
            samples: All of it, as one batch.
            groups: (n,) int64, on the CPU, the group of each sample.
        """
        self._rehearsal, self._groups = rehearsal, groups
        self._names = tuple(samples)
        self._tensors: list[Tensor] = [
            each for each in samples.values() if isinstance(each, Tensor)
        ]

    def batches(self, batch_size: int, draw: Draw) -> Iterator[Batch]:
        """Return what one epoch replays, step by step, without end; see `Rehearsal.batches`."""
        for tensors in self._rehearsal.batches(self._tensors, self._groups, batch_size, draw):
            yield cast(Batch, dict(zip(self._names, tensors, strict=True)))


class Epochs(Generic[M]):
    """Trains one client for one turn.

    Attributes:
        steps: Optimiser steps taken.
        metrics: What the turn reports besides.
    """

    def __init__(
        self,
        model: nn.Module,
        live: Live,
        step: Step[M],
        turn: Turn,
        training: LocalTraining,
        remembered: Remembered | None,
    ) -> None:
        """Prepare the turn.

        Args:
            model: What is trained, in training mode.
            live: The same, as a function of its weights.
            step: One optimiser step on it.
            turn: How long, and every seed.
            training: What local training is made of.
            remembered: What memory holds; None for nothing.
        """
        self._live, self._step, self._turn, self._training = live, step, turn, training
        self._remembered = remembered
        self._norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
        self._losses: list[Tensor] = []
        self._sizes: list[int] = []
        self._lengths: list[Tensor] = []
        self._memories: list[MemoryBatches] = []
        self._drawn = 0
        self.steps = 0
        self.metrics: dict[str, float] = {}

    @property
    def replayed(self) -> int:
        """Samples drawn from memory so far."""
        return self._drawn + sum(memory.drawn for memory in self._memories)

    @property
    def mean_loss(self) -> float:
        """Mean loss over the samples of the latest pass, every term included."""
        losses = torch.stack(self._losses)
        taken = self._sizes[: len(losses)]  # the last pass of a turn of steps may be cut short
        sizes = torch.tensor(taken, dtype=losses.dtype, device=losses.device)
        return float(losses @ sizes / sizes.sum())

    def run(self, samples: Sequence[Tensor], memory: M | None) -> M | None:
        """Train, and return what the method remembers at the end.

        Args:
            samples: Inputs, labels and, where there are heads, task labels of the experience.
            memory: What the method remembers at the start.

        Raises:
            DivergedError: The loss, or the gradient's norm, is lost.
        """
        live, step = self._live, self._step
        leaves, slots = live.leaves, step.optimizer.initial(live.leaves)
        epoch, left = self._turn.first_epoch, None
        while left != 0:
            reseed_global(self._turn.seed("epoch", epoch))
            batches = self._batches(epoch, samples)
            if left is None:  # the first pass shows how many steps one has
                left = self._turn.num_steps(len(self._sizes))
            self._losses = losses = []
            for batch in islice(batches, left):
                after, slots, memory, measures = step(leaves, slots, memory, batch)
                live.load(after)
                losses.append(measures["loss"])
                if step.measures_gradient:
                    self._lengths.append(measures["gradient_norm"])
            self._check()
            self.steps += len(losses)
            left -= len(losses)
            epoch += 1
        return memory

    def _batches(self, epoch: int, samples: Sequence[Tensor]) -> Iterator[Batch]:
        """Return what one pass learns from, and set the model's normalisation layers for it."""
        size, seed = self._turn.batch_size, self._turn.seed
        generator = torch.Generator().manual_seed(seed("batches", epoch))
        order = torch.randperm(len(samples[0]), generator=generator).to(samples[0].device)
        present = TensorBatches(samples, size, order, bool(self._norms), self._change(epoch))
        if 1 in present.sizes:  # one sample has no variance: use what is known of others
            for norm in self._norms:
                norm.eval()
        self._sizes, self._drawn, self._memories = present.sizes, self.replayed, []

        def draw(tensors: Sequence[Tensor], batch_size: int, drop_last: bool) -> MemoryBatches:
            place = len(self._memories)
            generator = torch.Generator().manual_seed(seed("replay", epoch, place))
            change = self._change(epoch, 1 + place)
            memory = MemoryBatches(tensors, batch_size, generator, drop_last, change)
            self._memories.append(memory)
            return memory

        batches = map(batch_of, present)
        if self._remembered is None:
            return batches
        return map(_with_memory, batches, self._remembered.batches(size, draw))

    def _change(self, *numbers: int) -> Change | None:
        """Return what changes the inputs of each batch, with draws of its own, if anything does."""
        augment = self._training.augment
        if augment is None:
            return None
        generator = torch.Generator().manual_seed(self._turn.seed("augment", *numbers))
        return lambda x: augment(x, generator)

    def _check(self) -> None:
        """Look at the pass's losses, and at the gradients so far."""
        worst, most = float(torch.stack(self._losses).max()), self._training.max_loss
        if not math.isfinite(worst):
            raise DivergedError(f"the loss is {worst}")
        if worst > most:
            raise DivergedError(f"the loss is {worst:g}, above local.max_loss={most:g}")
        if self._step.measures_gradient:
            lengths = torch.stack(self._lengths)
            mean, largest = torch.stack([lengths.mean(), lengths.max()]).tolist()
            if not math.isfinite(mean):
                raise DivergedError(f"the gradient's norm is {largest}")
            self.metrics |= {"grad-norm": mean, "grad-norm-max": largest}


def _with_memory(batch: Batch, replayed: Batch) -> Batch:
    batch["replayed"] = replayed
    return batch
