"""Which samples each of many clients gets at each step of its turn: the tables of a round."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedlearn.seeding import seeds
from fedlearn.turns import Integers, Turns
from fedlearn.types import Transform
from strategies.continual.batches import MemoryBatches, memory_sizes
from strategies.continual.functional.cohort_batches import Draws, Table, cut, shuffled
from strategies.continual.functional.rehearsal import Kept, Rehearsal


@dataclass(frozen=True)
class Clock:
    """When each client takes which step.

    Attributes:
        passes: (steps, n) int64, the pass that each step belongs to, from 0.
        places: (steps, n) int64, the step's place in its pass.
        steps: (n,) int64, steps of each client, in descending order.
    """

    passes: Integers
    places: Integers
    steps: Integers

    @property
    def active(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(steps, n): which client takes which step."""
        found: np.ndarray[Any, np.dtype[np.bool_]] = (
            np.arange(len(self.passes))[:, None] < self.steps
        )
        return found


class Domains:
    """The domains and heads of experiences, looked up where they matter at all."""

    def __init__(self, turns: Turns, with_heads: bool) -> None:
        """Look at whose samples these are.

        Args:
            turns: The clients.
            with_heads: Whether task labels are asked for.
        """
        scenario = turns.scenario
        self._scenario = scenario
        self._heads = with_heads
        self._changes = scenario.views is not None or any(
            topic.transform is not None for topic in scenario.topics
        )
        self._numbers: dict[int, int] = {}
        self._found: dict[tuple[int, int], tuple[int, int]] = {}
        self.transforms: list[Transform | None] = []

    def table(
        self,
        rows: Integers,
        clients: Integers,
        experiences: Integers,
        logits: Tensor | None = None,
    ) -> Table:
        """Return a table of samples.

        Args:
            rows: (m,) int64, rows of the store.
            clients: (m,) int64, whose each is.
            experiences: (m,) int64, from which of its experiences.
            logits: (m, C), what the model once said of each.
        """
        if not (self._heads or self._changes):
            return Table(rows, logits=logits)
        count = self._scenario.num_experiences  # a pair as one number is sorted many times as fast
        pairs, of = np.unique(clients * count + experiences, return_inverse=True)
        found = np.array([self._look_up(*divmod(pair, count)) for pair in pairs.tolist()])[of]
        return Table(
            rows,
            found[:, 1] if self._heads else None,
            found[:, 0] if self._changes else None,
            self.transforms,
            logits,
        )

    def _look_up(self, client: int, index: int) -> tuple[int, int]:
        """Return the number of an experience's domain, and its task label."""
        experience = self._scenario.experience(client, index)
        transform = experience.transform
        if id(transform) not in self._numbers:
            self._numbers[id(transform)] = len(self.transforms)
            self.transforms.append(transform)  # which keeps it, and so its id
        return self._numbers[id(transform)], experience.task_label


def present_draws(turns: Turns, domains: Domains, avoid_one: bool) -> tuple[Draws, Clock]:
    """Return what clients draw from their present experiences.

    Args:
        turns: Clients in descending order of their steps.
        domains: Of their experiences.
        avoid_one: See `strategies.continual.batches.batch_sizes`.
    """
    sizes, steps = turns.sizes, turns.num_steps()
    begins, counts, passes = cut(sizes, steps, turns.batch_size, avoid_one)
    batches = -(-sizes // turns.batch_size)
    num_passes = -(-steps // batches)
    which: Integers = np.repeat(np.arange(len(turns)), num_passes)  # of every pass
    of_pass = np.arange(len(which)) - np.repeat(num_passes.cumsum() - num_passes, num_passes)
    orders = shuffled(
        sizes[which],
        seeds(
            turns.run_seed,
            "batches",
            turns.client_ids[which],
            turns.first_epochs[which] + of_pass,
        ),
    )
    drawn = num_passes * sizes
    picks = orders + np.repeat(sizes.cumsum() - sizes, drawn)
    begins = begins + passes * sizes + (drawn.cumsum() - drawn)
    table = own_table(turns, turns.begins, sizes, turns.experiences, domains)
    places = np.arange(len(passes))[:, None] - passes * batches
    return Draws(table, picks, begins, counts), Clock(passes, places, steps)


def own_table(
    turns: Turns, begins: Integers, sizes: Integers, experiences: Integers, domains: Domains
) -> Table:
    """Return the samples of one experience of each client, one client behind the other.

    Args:
        turns: The clients.
        begins: (n,) int64, where in ``shares.rows`` each client's rows begin.
        sizes: (n,) int64, how many there are.
        experiences: (n,) int64.
        domains: Of their experiences.
    """
    at = np.arange(sizes.sum()) + np.repeat(begins - (sizes.cumsum() - sizes), sizes)
    rows: Integers = turns.scenario.shares.rows.numpy()[at]
    return domains.table(rows, np.repeat(turns.client_ids, sizes), np.repeat(experiences, sizes))


def in_order(sizes: Integers, batch_size: int, table: Table) -> tuple[Draws, Integers]:
    """Return draws of all samples of a table once, in order, and each client's steps.

    Args:
        sizes: (n,) int64, samples of each client, one behind the other, those with the most first.
        batch_size: At least 1.
        table: All of their samples.
    """
    steps: Integers = -(-sizes // batch_size)
    begins, counts, _ = cut(sizes, steps, batch_size)
    offsets: Integers = sizes.cumsum() - sizes
    return Draws(table, np.arange(sizes.sum()), begins + offsets, counts), steps


@dataclass(frozen=True)
class Replay:
    """What comes back from memory.

    Attributes:
        draws: Which samples at each step.
        parts: (steps, n) lists of how many come from each shuffle of memory; None for one.
    """

    draws: Draws
    parts: list[list[list[int]]] | None = None


def replay_draws(
    turns: Turns, clock: Clock, kept: Sequence[Kept], rehearsal: Rehearsal, domains: Domains
) -> Replay:
    """Return what clients draw from their memories.

    Args:
        turns: Clients in descending order of their steps.
        clock: When they take them.
        kept: What each remembers, at least one sample.
        rehearsal: Says how it is drawn.
        domains: Of their experiences.
    """
    sizes = np.array([len(each.rows) for each in kept])
    pairs = torch.cat([each.rows for each in kept]).numpy()
    logits = torch.cat([each.logits for each in kept]) if rehearsal.keeps_logits else None
    table = domains.table(pairs[:, 1], np.repeat(turns.client_ids, sizes), pairs[:, 0], logits)
    offsets = sizes.cumsum() - sizes
    if type(rehearsal).batches is not Rehearsal.batches:
        return _drawn_one_by_one(turns, clock, kept, rehearsal, table, offsets)
    size = rehearsal.batch_size or turns.batch_size
    spans = [memory_sizes(count, size, rehearsal.drop_last) for count in sizes.tolist()]
    batch_sizes, used = np.array(spans).T
    batches = -(-used // batch_sizes)
    shuffles, at = np.divmod(clock.places, batches)
    num_shuffles = shuffles.max(0, where=clock.active, initial=0) + 1  # of each pass
    num_passes = clock.passes.max(0, where=clock.active, initial=0) + 1
    picks = _shuffles(turns, num_passes, num_shuffles, sizes, used, offsets)
    drawn = num_passes * num_shuffles * used
    begins = (clock.passes * num_shuffles + shuffles) * used + at * batch_sizes
    begins = np.where(clock.active, begins, 0) + (drawn.cumsum() - drawn)
    return Replay(Draws(table, picks, begins, np.minimum(batch_sizes, used - at * batch_sizes)))


def _shuffles(
    turns: Turns,
    num_passes: Integers,
    num_shuffles: Integers,
    sizes: Integers,
    used: Integers,
    offsets: Integers,
) -> Integers:
    """Return the shuffles of all clients' memories, pass by pass, as places in their table."""
    generator = torch.Generator()
    orders: list[Tensor] = []
    turn = turns.turn
    for client, (passes, shuffles) in enumerate(zip(num_passes, num_shuffles, strict=True)):
        own, first = turn(client), int(turns.first_epochs[client])
        size, last, offset = int(sizes[client]), int(used[client]), int(offsets[client])
        for epoch in range(first, first + int(passes)):
            generator.manual_seed(own.seed("replay", epoch, 0))
            orders += [
                torch.randperm(size, generator=generator)[:last].add_(offset)
                for _ in range(int(shuffles))
            ]
    found: Integers = torch.cat(orders).numpy()
    return found


def _drawn_one_by_one(
    turns: Turns,
    clock: Clock,
    kept: Sequence[Kept],
    rehearsal: Rehearsal,
    table: Table,
    offsets: Integers,
) -> Replay:
    """Return what clients draw from memories that are drawn from in a way of their own."""
    picks: list[Tensor] = []
    sizes = np.ones(clock.passes.shape, dtype=np.int64)
    parts: list[list[list[int]]] = [[[] for _ in kept] for _ in clock.passes]
    for client, own in enumerate(kept):
        turn = turns.turn(client)
        names = [torch.arange(len(own.rows)) + int(offsets[client])]
        batches: Iterator[Sequence[Tensor]] = iter(())
        for step in range(int(clock.steps[client])):
            if clock.places[step, client] == 0:
                epoch = turn.first_epoch + int(clock.passes[step, client])
                memories: list[MemoryBatches] = []

                def draw(
                    tensors: Sequence[Tensor],
                    batch_size: int,
                    drop_last: bool,
                    epoch: int = epoch,
                    memories: list[MemoryBatches] = memories,
                    seed: Any = turn.seed,
                ) -> MemoryBatches:
                    generator = torch.Generator().manual_seed(seed("replay", epoch, len(memories)))
                    memories.append(MemoryBatches(tensors, batch_size, generator, drop_last))
                    return memories[-1]

                batches = iter(rehearsal.batches(names, own.groups, turns.batch_size, draw))
                before: list[int] = []
            (rows,) = next(batches)
            after = [memory.drawn for memory in memories]
            parts[step][client] = [
                now - then for now, then in zip(after, before or [0] * len(after), strict=True)
            ]
            before = after
            picks.append(rows)
            sizes[step, client] = len(rows)
    counts = np.where(clock.active, sizes, 0).T.ravel()  # client by client, as they were drawn
    begins = (counts.cumsum() - counts).reshape(len(kept), -1).T
    return Replay(Draws(table, torch.cat(picks).numpy(), begins, sizes), parts)
