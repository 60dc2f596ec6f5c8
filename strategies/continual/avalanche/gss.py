"""Gradient-based sample selection, greedy.

R. Aljundi, M. Lin, B. Goujaud, Y. Bengio, "Gradient based sample selection for online continual
learning", NeurIPS 2019, Algorithm 2. A sample's score is the largest cosine between its gradient
and those of random parts of memory; samples whose gradients point elsewhere take the places of
those with high scores. Memory knows no experiences: it changes with every step. Each batch is
followed by one from memory, and the loss is the mean over both.

Deviations: as in Avalanche, samples compete batch by batch, and only where the gradient of the
batch has a negative cosine with every part of memory. Replay reads memory as it was when the epoch
began (the paper: when the step began; Avalanche: when the experience began). The paper's stream
brings each sample once, and so memory is offered the samples of an experience in the client's first
epoch there (Avalanche: in every epoch, which leaves nothing of the past). Gradients are measured in
evaluation mode.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.bounds import at_least


def gss(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    num_references: int = 5,
    memory_batch_size: int | None = None,
) -> AvalancheContinual:
    """Return GSS. A client keeps two integers and a score for each sample in memory.

    A step of the first epoch measures `num_references` gradients more, and one for each sample of
    the batch while memory fills and where samples compete.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, at least 1.
        num_references: Parts of memory that scores are measured against, each as large as a batch,
            at least 1. Fewer where memory holds fewer.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("num_references", num_references, 1)
    at_least("memory_batch_size", memory_batch_size, 1)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, memory_per_client, num_references, memory_batch_size),
        keeps=("plugins.0.rows", "plugins.0.scores", "plugins.0.offered"),
        consolidates="data",
    )


def _plugins(
    memory_per_client: int, num_references: int, memory_batch_size: int | None
) -> list[Any]:
    from strategies.continual.avalanche.corrections.gss import GSS

    return [GSS(memory_per_client, num_references, memory_batch_size)]
