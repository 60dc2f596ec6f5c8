"""Averaged gradient episodic memory.

A. Chaudhry et al., "Efficient Lifelong Learning with A-GEM", ICLR 2019, eq. 11: where the gradient
g opposes the gradient g_ref on a sample of memory (g . g_ref < 0), it becomes
``g - (g . g_ref / g_ref . g_ref) g_ref``.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.bounds import at_least


def agem(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    sample_size: int = 64,
) -> AvalancheContinual:
    """Return A-GEM. A client keeps two integers for each sample in memory.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, shared equally by its experiences, at
            least 1. (Avalanche bounds each experience's part instead, so its memory grows.)
        sample_size: Samples behind each g_ref, at least 1, shared equally by the experiences.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("sample_size", sample_size, 1)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, memory_per_client, sample_size),
        keeps=("plugins.0.buffers",),
        consolidates="data",
    )


def _plugins(memory_per_client: int, sample_size: int) -> list[Any]:
    from strategies.continual.avalanche.corrections.agem import AGEM

    return [AGEM(memory_per_client, sample_size)]
