"""Continual prototype evolution: classes are points on the unit sphere that move with the data.

M. De Lange, T. Tuytelaars, "Continual Prototype Evolution: Learning Online from Non-Stationary Data
Streams", ICCV 2021: embeddings of length 1, a loss between batch and prototypes, prototypes that
follow by a moving average, a class-balanced memory of which each batch gets as many samples again,
and prediction by the nearest prototype. See `strategies.continual.avalanche.corrections.cope`.

What online means here. The paper sees every sample once. A client in rounds sees its samples in
each round of the experience, and the method does not mind: no step asks whether a sample is new.
``local.epochs=1`` keeps to one pass a turn. Boundaries between experiences change nothing but what
memory holds: in the paper it takes in each batch after its step; here it holds, from the
experience's first step on, what it will hold at its end, past and present classes in equal parts.
Every prototype of the scenario's classes is there from the start, at a random place, and repels, as
in Avalanche.

In rounds, clients average prototypes, too: over those that saw the class in the round, in their
data or their memory. The loss is the method's own: the run's settings of the loss do not matter.
"""

from functools import partial
from typing import Any

from torch import nn

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual, Criterion
from strategies.continual.avalanche.networks.output_layer import split_off
from strategies.continual.bounds import above, at_least, within


def cope(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    memory_batch_size: int | None = None,
    embedding_size: int = 100,
    alpha: float = 0.99,
    temperature: float = 0.1,
) -> AvalancheContinual:
    """Return CoPE. A client keeps three numbers for each sample in memory.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, over all classes, at least 1.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        embedding_size: Dimensions of the sphere's space, at least 2. A layer of its own, freshly
            drawn, takes the place of the model's output layer.
        alpha: Share of the old prototype that a step leaves, in [0, 1].
        temperature: Of the softmax between prototypes, greater than 0.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("memory_batch_size", memory_batch_size, 1)
    at_least("embedding_size", embedding_size, 2)
    within("alpha", alpha, 0, 1)
    above("temperature", temperature, 0)
    return AvalancheContinual(
        training,
        template=partial(
            _template,
            memory_per_client=memory_per_client,
            memory_batch_size=memory_batch_size,
            alpha=alpha,
            temperature=temperature,
        ),
        keeps=("memory",),
        consolidates="data",
        equipment=partial(_equipment, embedding_size=embedding_size, temperature=temperature),
    )


def _template(
    criterion: Criterion,
    *,
    memory_per_client: int,
    memory_batch_size: int | None,
    alpha: float,
    temperature: float,
) -> Any:
    from strategies.continual.avalanche.corrections.cope import CoPE

    prototype = CoPE.prototype(criterion)
    prototype.memory_size, prototype.memory_batch_size = memory_per_client, memory_batch_size
    prototype.alpha, prototype.temperature = alpha, temperature
    return prototype


def _equipment(
    model: nn.Module, training: LocalTraining, *, embedding_size: int, temperature: float
) -> nn.Module:
    from strategies.continual.avalanche.networks.cope import CopeNetwork

    backbone, head = split_off(model, training.num_classes, "cope")
    embedding = nn.Linear(head.in_features, embedding_size)
    return CopeNetwork(backbone, embedding, training.num_classes, temperature)
