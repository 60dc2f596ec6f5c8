"""Plain fine-tuning: what every continual strategy is measured against."""

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual


def naive(*, training: LocalTraining) -> AvalancheContinual:
    """Return a continual strategy that only trains. It keeps no state.

    Args:
        training: What local training is made of.
    """
    return AvalancheContinual(training)
