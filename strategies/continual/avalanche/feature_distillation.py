"""Feature distillation, as Avalanche has it.

The loss gets ``alpha * (1 - cos(f, f_old))``, the mean over the batch, f being what the last linear
layer reads and f_old that of the last experience's model: the less-forget constraint of S. Hou et
al., "Learning a Unified Classifier Incrementally via Rebalancing", CVPR 2019, eq. 6, without that
paper's cosine head and margin. ``mode="mse"`` takes ``mean((f - f_old)^2)`` instead.
"""

from functools import partial
from typing import Any, Literal

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import at_least, one_of


def feature_distillation(
    *,
    training: LocalTraining,
    alpha: float = 1.0,
    mode: Literal["cosine", "mse"] = "cosine",
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return feature distillation. A client keeps its teacher: one model, local anchor two.

    Args:
        training: What local training is made of.
        alpha: Weight of the distance between features, at least 0.
        mode: Which distance.
        anchor: Where the teacher is taken from.

    Raises:
        ValueError: A setting is out of bounds, or (in a turn) the model has no linear layer.
    """
    at_least("alpha", alpha, 0)
    one_of("mode", mode, ("cosine", "mse"))
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, alpha, mode),
        keeps=("plugins.0.prev_model",),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(alpha: float, mode: str) -> list[Any]:
    from strategies.continual.avalanche.corrections.feature_distillation import FeatureDistillation

    return [FeatureDistillation(alpha, mode)]
