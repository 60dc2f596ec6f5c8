"""Supervised contrastive replay.

Z. Mai, R. Li, H. Kim, S. Sanner, "Supervised Contrastive Replay: Revisiting the Nearest Class Mean
Classifier in Online Class-Incremental Continual Learning", CVPR Workshops 2021. Each batch is
followed by one from memory, all of it in two views, the samples themselves and an augmented copy.
The loss (eq. 5) draws the projections of samples of one class together, whichever view they come
from, and pushes those of other classes away. Prediction is by the nearest class mean of features.

The second view of images is shifted, rotated and mirrored as asked for; the paper also crops,
changes colours and drops them. Inputs that are not images have values swapped with other samples of
the batch (`strategies.continual.avalanche.networks.views.corrupted`).

Further deviations: the means are taken over the experience's samples and memory at the end of each
turn, the paper's over memory; like Avalanche, no pass over memory ends an experience (the "review
trick" of the authors' code). The loss is SCR's own: the run's ``local.loss`` and ``head.mask`` have
no say in it, and the model's own head is neither trained nor read.
"""

from functools import partial
from typing import Any

from torch import nn

from fedlearn.augmentation import Augmentation
from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual, Criterion
from strategies.continual.avalanche.networks.views import Contrastive, View
from strategies.continual.bounds import above, at_least, within


def scr(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    memory_batch_size: int = 100,
    temperature: float = 0.1,
    projection_size: int = 128,
    shift: int = 1,
    rotation: float = 15.0,
    flip: bool = False,
    corruption: float = 0.2,
) -> AvalancheContinual:
    """Return SCR. A client keeps three numbers a sample in memory and one a class.

    The memory batch and the projection are the paper's, the temperature is Avalanche's. On
    Split-Digits (5 clients, Dirichlet 0.5, 10 rounds an experience, SGD 0.1; mean of 3 seeds)
    temperatures of 0.07, 0.1 and 0.3 reach 91.9, 92.5 and 93.3 %, and two equal views (no shift, no
    rotation) 91.1 %. Digits are not mirrored, because their mirror images are other signs. Where
    the domains of a stream are pixel permutations, set `shift` and `rotation` to 0: neighbours on
    such an image are not neighbours.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, over all classes, at least 1.
        memory_batch_size: Samples from memory a step, at least 1; all of memory where it has fewer.
        temperature: tau, greater than 0.
        projection_size: Outputs of the projection, at least 1.
        shift: Pixels that an image moves by at most, at least 0.
        rotation: Degrees that an image turns by at most, in [0, 180].
        flip: Whether images are mirrored, one in two.
        corruption: Share of values swapped in inputs that are not images, in [0, 1].

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("memory_batch_size", memory_batch_size, 1)
    above("temperature", temperature, 0)
    at_least("projection_size", projection_size, 1)
    at_least("shift", shift, 0)
    within("rotation", rotation, 0, 180)
    within("corruption", corruption, 0, 1)
    view = View(Augmentation(flip, shift, rotation), corruption)
    return AvalancheContinual(
        training,
        template=partial(_template, memory_per_client, memory_batch_size, temperature, view),
        keeps=("exemplars", "met"),
        consolidates="data",
        equipment=partial(_equipment, projection_size),
    )


def _template(
    memory_per_client: int,
    memory_batch_size: int,
    temperature: float,
    view: View,
    criterion: Criterion,
) -> Any:
    from strategies.continual.avalanche.corrections.scr import SCR
    from strategies.continual.avalanche.corrections.selection import ClassSelection

    prototype = SCR.prototype(criterion)
    prototype.selection = ClassSelection(memory_per_client, None)
    prototype.memory_batch_size = memory_batch_size
    prototype.temperature, prototype.view = temperature, view
    return prototype


def _equipment(projection_size: int, model: nn.Module, training: LocalTraining) -> nn.Module:
    return Contrastive("scr", model, training, projection_size)
