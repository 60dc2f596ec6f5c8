"""Clients at their first turn of an experience: what the one before left is consolidated.

The passes over the old experiences' samples run for many at once. What is kept of them is made
client by client: states differ in structure with how many experiences they have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fedlearn.losses import class_weights
from fedlearn.turns import Integers, Turns
from fedlearn.types import Experience, LocalTraining
from strategies.continual.functional.cohort import stack
from strategies.continual.functional.cohort_batches import CohortBatch, batches
from strategies.continual.functional.cohort_draws import Domains, in_order, own_table
from strategies.continual.functional.cohort_gradients import Gradients
from strategies.continual.functional.consolidation import classes_of
from strategies.continual.functional.method import Learnt, Method
from strategies.continual.functional.network import Network
from strategies.continual.functional.past import Past
from strategies.continual.functional.rehearsal import Arrival, Rehearsal
from strategies.continual.functional.trees import Tree


@dataclass(frozen=True)
class Entry:
    """Sets clients up for a new experience, as `FunctionalContinual.train_turn` does for one.

    Attributes:
        training: What local training is made of.
        method: The continual strategy.
        rehearsal: Which samples are remembered; None for none.
        anchor: Where an experience is consolidated.
        gradients: Of the clients.
        network: The model.
        chunk: How many clients run at once.
        device: Where the model is.
    """

    training: LocalTraining
    method: Method[Any]
    rehearsal: Rehearsal | None
    anchor: Literal["local", "global"]
    gradients: Gradients
    network: Network
    chunk: int
    device: torch.device

    def __call__(self, pasts: Sequence[Past], turns: Turns, received: Tree) -> list[Past]:
        """Return what each client brings along once it has entered its present experience.

        Args:
            pasts: What each brought along from its last turn.
            turns: The clients' turns.
            received: Parameters and buffers, by their names in the model's state.

        Raises:
            ValueError: A client has lost the state that it had.
        """
        left = [turns.previous(at) for at in range(len(turns))]
        entering = [
            at
            for at, past in enumerate(pasts)
            if left[at] is not None or past.experience != int(turns.experiences[at])
        ]
        weights: dict[int, Tree] = {}
        for at in entering:
            own = left[at] is not None and self.anchor == "local" and self._reads_model
            weights[at] = pasts[at].weights if own else received
            if not weights[at]:
                raise ValueError(f"client {turns.client_ids[at]} has lost the state it had")
        leaving = {at: each for at in entering if (each := left[at]) is not None}
        importance, logits = self._surveyed(leaving, weights, turns)
        after = list(pasts)
        for at in entering:
            past = after[at]
            if (previous := leaving.get(at)) is not None:
                found = Learnt(weights[at], importance.get(at, {}), self._classes(previous))
                past = self._consolidated(past, previous, found, logits.get(at), turns.turn(at))
            if self.method.memory is not None:
                params = {name: weights[at][name] for name in self.network.trainable}
                past = past._replace(memory=self.method.enter(past.memory, params, self.network))
            after[at] = past
        return after

    @property
    def _reads_model(self) -> bool:
        keeps_logits = self.rehearsal is not None and self.rehearsal.keeps_logits
        return self.method.memory is not None or keeps_logits

    def _consolidated(
        self, past: Past, previous: Experience, left: Learnt, logits: Tensor | None, turn: Any
    ) -> Past:
        memory, kept = past.memory, past.kept
        if self.method.memory is not None:
            memory = self.method.consolidate(memory, left)
        if self.rehearsal is not None:
            arrival = Arrival(previous, turn.seed)
            if logits is not None:
                arrival = replace(arrival, logits=logits)
            kept = self.rehearsal.update(kept, arrival)
        return past._replace(memory=memory, kept=kept, consolidated=past.consolidated + 1)

    def _classes(self, previous: Experience) -> Tensor:
        labels = previous.samples.targets(previous.rows)
        return classes_of(labels.to(self.device), previous.task_label, self.training)

    def _surveyed(
        self, leaving: dict[int, Experience], weights: dict[int, Tree], turns: Turns
    ) -> tuple[dict[int, Tree], dict[int, Tensor]]:
        """Return importances and, where memory keeps them, logits of the clients that leave."""
        importance: dict[int, Tree] = {}
        logits: dict[int, Tensor] = {}
        keeps_logits = self.rehearsal is not None and self.rehearsal.keeps_logits
        if not (self.method.measures or keeps_logits):
            return importance, logits
        places = np.array(sorted(leaving, key=lambda at: -len(leaving[at])), dtype=np.int64)
        for begin in range(0, len(places), self.chunk):
            some = places[begin : begin + self.chunk]
            own, at = turns.select(some), some.tolist()
            params = stack(
                [{name: weights[each][name] for name in self.network.trainable} for each in at]
            )
            if self.method.measures:
                balance = self._balance([leaving[each] for each in at])
                found = self._importance(params, self._batches(own), balance, own)
                importance |= zip(at, found, strict=True)
            if keeps_logits:
                said = self._logits(params, self._batches(own), own)
                logits |= zip(at, said, strict=True)
        return importance, logits

    def _batches(self, turns: Turns) -> Iterator[CohortBatch]:
        """Return all samples of what each client has left, once, in order."""
        begins, sizes = _slices(turns)
        domains = Domains(turns, self.training.heads is not None)
        table = own_table(turns, begins, sizes, turns.last, domains)
        draws, steps = in_order(sizes, turns.batch_size, table)
        return batches(turns.scenario.train, steps, draws, None, self.device)

    def _balance(self, left: Sequence[Experience]) -> Tensor | None:
        return class_balance(self.training, left, self.device)

    def _importance(
        self, params: Tree, samples: Iterator[CohortBatch], balance: Tensor | None, turns: Turns
    ) -> list[Tree]:
        """Return each client's importances, the mean over its batches."""
        total = self.gradients.importances(params, samples, balance)
        counts = -(-_slices(turns)[1] // turns.batch_size)
        return [
            {name: each[place] / count for name, each in total.items()}
            for place, count in enumerate(counts.tolist())
        ]

    def _logits(self, params: Tree, samples: Iterator[CohortBatch], turns: Turns) -> list[Tensor]:
        """Return each client's logits (n, C) of what it has left, on the CPU."""
        found: list[list[Tensor]] = [[] for _ in range(len(turns))]
        for batch in samples:
            own = {name: each[: batch.clients] for name, each in params.items()}
            for parts, said in zip(found, self.gradients.outputs(own, batch).cpu(), strict=False):
                parts.append(said)
        sizes = _slices(turns)[1].tolist()
        return [torch.cat(parts)[:size] for parts, size in zip(found, sizes, strict=True)]


def class_balance(
    training: LocalTraining, experiences: Sequence[Experience], device: torch.device
) -> Tensor | None:
    """Return what a sample of each class weighs for each client, (K, C); None for 1 each."""
    if training.class_balance is None:
        return None
    found = [
        class_weights(
            each.samples.targets(each.rows).to(device), training.num_classes, training.class_balance
        )
        for each in experiences
    ]
    return torch.stack(found)


def _slices(turns: Turns) -> tuple[Integers, Integers]:
    """Return where the rows of what each client has left begin, and how many there are."""
    shares, pairs = turns.scenario.shares, (turns.client_ids, turns.last)
    begins: Integers = shares.begins.numpy()[pairs].astype(np.int64)
    sizes: Integers = shares.ends.numpy()[pairs] - begins
    return begins, sizes
