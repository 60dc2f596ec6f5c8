"""Gradient episodic memory.

D. Lopez-Paz, M. Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017. Where the
gradient g of a batch opposes the gradient g_k on what is remembered of any past experience k
(g . g_k < 0), it becomes ``g + G^T v``, the rows of G being the g_k and v the solution of

    min_v  1/2 v^T G G^T v + (G g)^T v   with  v >= gamma                         (eq. 11)

As in the authors' code, 1e-3 is added to the diagonal of G G^T, and gamma (`memory_strength`)
bounds v: the paper's text adds it to v.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.bounds import at_least


def gem(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    memory_strength: float = 0.5,
) -> AvalancheContinual:
    """Return GEM. A client keeps two integers and a key for each sample in memory.

    A step runs the model once more for each past experience that memory holds samples of.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, shared equally by its experiences, at
            least 1. (Avalanche bounds each experience's part instead, so its memory grows.)
        memory_strength: gamma, at least 0; 0 only keeps the losses of the past from rising, more
            pushes them down.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("memory_strength", memory_strength, 0)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, memory_per_client, memory_strength),
        keeps=("plugins.0.memory",),
        consolidates="data",
    )


def _plugins(memory_per_client: int, memory_strength: float) -> list[Any]:
    from strategies.continual.avalanche.corrections.gem import GEM

    return [GEM(memory_per_client, memory_strength)]
