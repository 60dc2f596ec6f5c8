"""Less-forgetful learning, as Avalanche has it.

H. Jung et al., "Less-forgetting Learning in Deep Neural Networks", 2016, section 3: after the first
experience the head (the last linear layer) stands still, so that the decision boundaries do, and
the loss gets ``lambda_e * mean((f - f_old)^2)``, f being the head's input and f_old that of the
last experience's model. The paper's L_e is half the *sum* over units and samples, so its lambda_e
is smaller by half the number of both; its smaller learning rate is left to the optimiser.

The paper is about new domains of the same classes. Where classes are new, a head that stands still
is a random one for them: ``freeze_head=False`` lets it learn.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import at_least


def lfl(
    *,
    training: LocalTraining,
    lambda_e: float = 1.0,
    freeze_head: bool = True,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return LFL. A client keeps its teacher: one model, with the local anchor two.

    Args:
        training: What local training is made of.
        lambda_e: Weight of the distance between features, at least 0.
        freeze_head: Whether a client's head stands still after its first experience.
        anchor: Where the teacher is taken from.

    Raises:
        ValueError: A setting is out of bounds, or (in a turn) the model has no linear layer.
    """
    at_least("lambda_e", lambda_e, 0)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, lambda_e, freeze_head),
        keeps=("plugins.0.prev_model",),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(lambda_e: float, freeze_head: bool) -> list[Any]:
    from strategies.continual.avalanche.corrections.lfl import LFL

    return [LFL(lambda_e, freeze_head)]
