"""Learning without forgetting, as Avalanche has it.

Z. Li, D. Hoiem, "Learning without Forgetting", ECCV 2016. The distillation term is
``alpha * KL(softmax(teacher / T) || softmax(student / T))`` over the classes learnt before, without
the factor T^2 of some later work.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import above, at_least


def lwf(
    *,
    training: LocalTraining,
    alpha: float = 1.0,
    temperature: float = 2.0,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return LwF. A client keeps its teacher: one model, with the local anchor two.

    Args:
        training: What local training is made of.
        alpha: Weight of the distillation, at least 0.
        temperature: T, greater than 0.
        anchor: Where the teacher is taken from.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("alpha", alpha, 0)
    above("temperature", temperature, 0)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, alpha, temperature),
        keeps=(
            "plugins.0.lwf.prev_model",
            "plugins.0.lwf.prev_classes_by_task",
            "plugins.0.lwf.expcount",
        ),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(alpha: float, temperature: float) -> list[Any]:
    from strategies.continual.avalanche.corrections.lwf import LwF

    return [LwF(alpha, temperature)]
