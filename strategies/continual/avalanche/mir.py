"""Maximally interfered retrieval.

R. Aljundi et al., "Online Continual Learning with Maximally Interfered Retrieval", NeurIPS 2019,
Algorithm 1 (ER-MIR): of `subsample` samples from memory, those are replayed whose loss a step on
the present batch, ``theta_v = theta - lr * gradient``, would raise the most. Their mean loss is
added to the batch's.

Deviations: theta_v is a step of plain gradient descent at the optimiser's learning rate, whatever
the optimiser is (as in Avalanche). Losses are compared in evaluation mode. Memory takes samples in
at an experience's end, not at every step, and is balanced over classes (as in Avalanche).
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.bounds import at_least


def mir(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    subsample: int = 50,
    memory_batch_size: int | None = None,
) -> AvalancheContinual:
    """Return MIR. A client keeps two integers and a key for each sample in memory.

    A step runs the model three times more: on the subsample before and after the virtual step, and
    on what is replayed. `Report.replayed` counts the subsample.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, shared equally by the classes, at least
            1.
        subsample: Samples from memory that a step chooses from, at least 1.
        memory_batch_size: How many it chooses, at least 1; None for the batch size. Where it is no
            less than `subsample` or memory, MIR is plain replay.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("subsample", subsample, 1)
    at_least("memory_batch_size", memory_batch_size, 1)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, memory_per_client, subsample, memory_batch_size),
        keeps=("plugins.0.memory",),
        consolidates="data",
    )


def _plugins(memory_per_client: int, subsample: int, memory_batch_size: int | None) -> list[Any]:
    from strategies.continual.avalanche.corrections.mir import MIR

    return [MIR(memory_per_client, subsample, memory_batch_size)]
