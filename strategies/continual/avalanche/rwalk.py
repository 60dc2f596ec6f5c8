"""Riemannian walk.

A. Chaudhry et al., "Riemannian Walk for Incremental Learning: Understanding Forgetting and
Intransigence", ECCV 2018; the equations stand in
`strategies.continual.avalanche.corrections.rwalk`. The Fisher is that of each batch's mean loss
under the true labels, as Avalanche has it. In class-incremental scenarios the paper adds samples of
the past: see `strategies.continual.avalanche.plugin`.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import at_least, within


def rwalk(
    *,
    training: LocalTraining,
    ewc_lambda: float = 1.0,
    ewc_alpha: float = 0.9,
    delta_t: int = 10,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return RWalk. A client keeps 7 times the parameters, with the local anchor 8 times.

    Args:
        training: What local training is made of.
        ewc_lambda: Weight of the penalty, at least 0. Importances are at most 2.
        ewc_alpha: Share of a batch in the running Fisher, in [0, 1].
        delta_t: Steps between two updates of the scores, at least 1.
        anchor: Where an experience is consolidated.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("ewc_lambda", ewc_lambda, 0)
    within("ewc_alpha", ewc_alpha, 0, 1)
    at_least("delta_t", delta_t, 1)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, ewc_lambda, ewc_alpha, delta_t),
        keeps=(
            "plugins.0.path",
            "plugins.0.exp_scores",
            "plugins.0.exp_params",
            "plugins.0.exp_penalties",
        ),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(ewc_lambda: float, ewc_alpha: float, delta_t: int) -> list[Any]:
    from strategies.continual.avalanche.corrections.rwalk import RWalk

    return [RWalk(ewc_lambda, ewc_alpha, delta_t)]
