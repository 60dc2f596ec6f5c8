"""Synaptic intelligence.

F. Zenke, B. Poole, S. Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017; the
equations stand in `strategies.continual.avalanche.corrections.si`.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import above, at_least


def si(
    *,
    training: LocalTraining,
    si_lambda: float = 1.0,
    damping: float = 0.1,
    max_importance: float | None = None,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return SI. A client keeps 3 times the parameters, with the local anchor 4 times.

    Args:
        training: What local training is made of.
        si_lambda: The paper's c, at least 0. (Avalanche's is 2c.)
        damping: The paper's xi, greater than 0. (Avalanche: 1e-7.)
        max_importance: Importances are cut here, greater than 0; None for never, as in the paper.
            (Avalanche: 1e-3, which makes any usual c do nothing.)
        anchor: Where an experience is consolidated.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("si_lambda", si_lambda, 0)
    above("damping", damping, 0)
    above("max_importance", max_importance, 0)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, si_lambda, damping, max_importance),
        keeps=(
            "plugins.0.ewc_data.0",
            "plugins.0.syn_data.trajectory",
            "plugins.0.syn_data.cum_trajectory",
        ),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(si_lambda: float, damping: float, max_importance: float | None) -> list[Any]:
    from strategies.continual.avalanche.corrections.si import SynapticIntelligence

    return [SynapticIntelligence(si_lambda, damping, max_importance)]
