"""Experience replay.

A. Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019: each batch is followed
by one from memory, and the loss is the mean over both. Memory is shared equally by the experiences;
what stays of each is a uniform random part (reservoir sampling).
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.bounds import at_least


def replay(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    memory_batch_size: int | None = None,
) -> AvalancheContinual:
    """Return experience replay. A client keeps two integers for each sample in memory.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, over all experiences, at least 1.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    if memory_batch_size is not None:
        at_least("memory_batch_size", memory_batch_size, 1)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, memory_per_client, memory_batch_size),
        keeps=("plugins.0.storage_policy.buffer_groups", "plugins.0.storage_policy._num_exps"),
        consolidates="data",
    )


def _plugins(memory_per_client: int, memory_batch_size: int | None) -> list[Any]:
    from strategies.continual.avalanche.corrections.replay import Replay

    return [Replay(memory_per_client, memory_batch_size)]
