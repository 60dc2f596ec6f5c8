"""Augmentation of a stack of clients' batches, with the draws of each client alone."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Generator, Tensor

from fedlearn.turns import Turns
from strategies.continual.functional.cohort_batches import CohortBatch, Draws
from strategies.continual.functional.cohort_draws import Clock, Replay


def augmented(
    batches: Iterator[CohortBatch],
    augment: Callable[[Tensor, Generator], Tensor],
    turns: Turns,
    present: Draws,
    replay: Replay | None,
    clock: Clock,
) -> Iterator[CohortBatch]:
    """Return `batches` with changed inputs: of each client, and of each memory it draws from.

    Draws depend on how many samples are changed at once, so clients are changed one by one.

    Args:
        batches: Every step's.
        augment: Changes inputs, drawing from a generator; see `fedlearn.types.LocalTraining`.
        turns: The clients.
        present: How many samples each has at a step.
        replay: And how many from each memory; None for none.
        clock: When they take them.
    """
    generators: dict[tuple[int, int], Generator] = {}
    for step, batch in enumerate(batches):
        x = batch.x.clone()
        for client in range(batch.clients):
            sizes = [int(present.sizes[step, client])]
            if replay is not None and replay.parts is not None:
                sizes += replay.parts[step][client]
            elif replay is not None:
                sizes.append(int(replay.draws.sizes[step, client]))
            if clock.places[step, client] == 0:  # a pass begins
                seed, epoch = turns.turn(client).seed, int(turns.first_epochs[client])
                epoch += int(clock.passes[step, client])
                for memory in range(len(sizes)):
                    numbers = (epoch,) if memory == 0 else (epoch, memory)
                    generators[client, memory] = torch.Generator().manual_seed(
                        seed("augment", *numbers)
                    )
            begin = 0
            for memory, size in enumerate(sizes):
                window = slice(begin, begin + size)
                x[client, window] = augment(batch.x[client, window], generators[client, memory])
                begin = batch.width if memory == 0 else begin + size
        yield replace(batch, x=x)
