"""FeCAM: the Mahalanobis distance to class means, with a covariance of each class.

D. Goswami, Y. Liu, B. Twardowski, J. van de Weijer, "FeCAM: Exploiting the Heterogeneity of Class
Distributions in Exemplar-Free Continual Learning", NeurIPS 2023. Features go through Tukey's ladder
of powers; a class's covariance is shrunk, ``S + g1 v I + g2 c (1 - I)`` with v the mean variance
and c the mean covariance of two features, and scaled to a diagonal of 1; distances are between
directions (vectors of length 1).

As in the paper, the default trains the backbone in the first experience only and keeps no samples:
every class's counts, sums and products of features federate exactly, see
`strategies.continual.avalanche.slda`. With ``train_backbone="always"`` it is Avalanche's
``MemoryFeCAMUpdate`` instead: experience replay, and statistics of the experience's samples and of
memory at the end of each turn.

Deviations. Covariances are divided by the number of samples, not by one less: their scale cancels.
Avalanche shrinks each covariance twice, the paper once; its mean covariance leaves out zeros, and
is NaN where there is nothing else; a class of one sample, and a feature below 0, give NaN: here a
covariance of 0 becomes the identity, and a feature keeps its sign.
"""

from functools import partial
from typing import Literal

from torch import nn

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.ncm import check_memory, replaying
from strategies.continual.avalanche.networks.covariances import ClassCovariances
from strategies.continual.avalanche.slda import settling
from strategies.continual.bounds import above, at_least, one_of, within


def fecam(
    *,
    training: LocalTraining,
    train_backbone: Literal["first", "never", "always"] = "first",
    memory_per_client: int = 0,
    memory_batch_size: int | None = None,
    tukey: float = 0.5,
    shrink_variance: float = 1.0,
    shrink_covariance: float = 1.0,
) -> AvalancheContinual:
    """Return FeCAM. A client keeps C (1 + d + d (d + 1) / 2) numbers for d features.

    With ``train_backbone="always"`` three numbers a sample in memory and one a class instead. As
    many travel with the model in either case: with hundreds of features and of classes, more than
    the model itself; `strategies.continual.avalanche.slda` then needs less.

    Tukey's power and both shrinkages are the paper's. On Split-Digits (5 clients, Dirichlet 0.5, 10
    rounds an experience, SGD 0.1) settled features and all samples reach 97 %, replay with 20
    samples a client 86 %: 20 samples say little about a covariance.

    Args:
        training: What local training is made of.
        train_backbone: When the model is trained: in the first experience, never, or always.
        memory_per_client: Samples that a client may keep, at least 0; needs ``"always"``.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        tukey: Power of Tukey's transformation, in (0, 1]; 1 leaves features as they are.
        shrink_variance: g1, at least 0.
        shrink_covariance: g2, in [0, g1], or shrunk covariances may not be covariances.

    Raises:
        ValueError: A setting is out of bounds.
    """
    one_of("train_backbone", train_backbone, ("first", "never", "always"))
    check_memory(memory_per_client, memory_batch_size)
    above("tukey", tukey, 0)
    within("tukey", tukey, 0, 1)
    at_least("shrink_variance", shrink_variance, 0)
    within("shrink_covariance", shrink_covariance, 0, shrink_variance)
    equipment = partial(_equipment, tukey, shrink_variance, shrink_covariance)
    if train_backbone == "always":
        return AvalancheContinual(
            training,
            template=partial(replaying, memory_per_client, memory_batch_size),
            keeps=("exemplars", "met") if memory_per_client else (),
            consolidates="data" if memory_per_client else "nothing",
            equipment=equipment,
        )
    if memory_per_client:
        raise ValueError(
            f"continual.memory_per_client={memory_per_client}: only train_backbone=always has a "
            "memory; use 0"
        )
    return AvalancheContinual(
        training,
        template=partial(settling, train_backbone == "first"),
        keeps=("past",),
        consolidates="model",
        anchor="global",
        equipment=equipment,
    )


def _equipment(
    tukey: float,
    shrink_variance: float,
    shrink_covariance: float,
    model: nn.Module,
    training: LocalTraining,
) -> nn.Module:
    return ClassCovariances("fecam", model, training, tukey, shrink_variance, shrink_covariance)
