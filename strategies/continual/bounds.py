"""Bounds of a continual strategy's settings, with errors written for whoever set them."""

import math

from fedlearn.types import LocalTraining


def at_least(key: str, value: float | None, bound: float) -> None:
    """Raise ``ValueError`` unless `value` is finite and at least `bound`, or None."""
    if value is not None and not bound <= value < math.inf:
        raise ValueError(f"continual.{key}={value}: must be at least {bound:g}")


def above(key: str, value: float | None, bound: float) -> None:
    """Raise ``ValueError`` unless `value` is finite and greater than `bound`, or None."""
    if value is not None and not bound < value < math.inf:
        raise ValueError(f"continual.{key}={value}: must be greater than {bound:g}")


def within(key: str, value: float, low: float, high: float) -> None:
    """Raise ``ValueError`` unless `value` is in [`low`, `high`]."""
    if not low <= value <= high:
        raise ValueError(f"continual.{key}={value}: must be in [{low:g}, {high:g}]")


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"continual.{key}={value}: must be one of {', '.join(choices)}")


def needs_classes(key: str, value: str, training: LocalTraining) -> None:
    """Raise ``ValueError``, because `value` goes by classes, in a regression."""
    if training.regression:
        raise ValueError(f"continual.{key}={value}: goes by classes, which a regression has not")
