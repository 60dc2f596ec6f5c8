"""Memory aware synapses, as Avalanche has it.

R. Aljundi et al., "Memory Aware Synapses: Learning what (not) to forget", ECCV 2018, eq. 2-4, with
the importances of past and present experience averaged by `alpha` (the paper sums them).
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import at_least, within


def mas(
    *,
    training: LocalTraining,
    lambda_reg: float = 0.1,
    alpha: float = 0.5,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return MAS. A client keeps 2 times the parameters, with the local anchor 3 times.

    Args:
        training: What local training is made of.
        lambda_reg: Weight of the penalty, at least 0. The default is, of 0.03, 0.1 and 0.3, the
            most accurate on permuted digits (protocol of `strategies.continual.avalanche.ewc`). The
            paper and Avalanche have 1, which diverges at a learning rate of 0.1 without
            ``max_grad_norm``.
        alpha: Share of the old importances in the new ones, in [0, 1].
        anchor: Where an experience is consolidated.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("lambda_reg", lambda_reg, 0)
    within("alpha", alpha, 0, 1)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, lambda_reg, alpha),
        keeps=("plugins.0.params", "plugins.0.importance"),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(lambda_reg: float, alpha: float) -> list[Any]:
    from strategies.continual.avalanche.corrections.mas import MAS

    return [MAS(lambda_reg, alpha)]
