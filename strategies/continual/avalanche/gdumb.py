"""GDumb: a greedy sampler and a dumb learner.

A. Prabhu, P. Torr, P. Dokania, "GDumb: A Simple Approach that Questions Our Progress in Continual
Learning", ECCV 2020. Memory is kept as balanced over classes as can be, and the learner is trained
on memory only: what a strategy for class-incremental streams has to beat.

Deviations. The paper trains a new model from scratch for each test; here the received global
weights are the model, in every round, because the clients learn together. A sample of a class is
kept by a uniform draw over all of its samples so far (as in Avalanche), not by having come first,
so memory holds every domain of a domain-incremental stream. CutMix, cosine schedule and warm-up are
left out.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual, Criterion
from strategies.continual.bounds import at_least


def gdumb(*, training: LocalTraining, memory_per_client: int = 20) -> AvalancheContinual:
    """Return GDumb. A client keeps two integers and a key for each sample in memory.

    A turn takes as many steps as memory has batches, however many samples the experience has. The
    client still counts with all samples of its experience when models are averaged.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep and trains on, shared equally by the
            classes, at least 1.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    return AvalancheContinual(
        training,
        template=partial(_template, memory_per_client=memory_per_client),
        keeps=("memory",),
        consolidates="data",
    )


def _template(criterion: Criterion, *, memory_per_client: int) -> Any:
    from strategies.continual.avalanche.corrections.gdumb import GDumb

    prototype = GDumb.prototype(criterion)
    prototype.memory_size = memory_per_client
    return prototype
