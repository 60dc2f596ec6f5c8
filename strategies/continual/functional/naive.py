"""Plain fine-tuning: the twin of `strategies.continual.avalanche.naive`."""

from fedlearn.types import LocalTraining
from strategies.continual.functional.continual import FunctionalContinual
from strategies.continual.functional.method import Method


def naive(*, training: LocalTraining) -> FunctionalContinual:
    """Return a continual strategy that only trains. It keeps no state.

    Args:
        training: What local training is made of.

    Raises:
        ValueError: The optimiser has no twin.
    """
    return FunctionalContinual(training, Method())
