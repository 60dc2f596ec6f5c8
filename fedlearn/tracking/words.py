"""Words: numbers as people read them."""

from collections.abc import Mapping
from typing import Any


def percent(fraction: float) -> str:
    """Return a fraction as ``71.2 %``."""
    return f"{100 * fraction:.1f} %"


def points(difference: float) -> str:
    """Return a difference of fractions in percentage points, as ``+1.5`` or ``-12.0``."""
    return f"{100 * difference:+.1f}"


def bare_points(fraction: float) -> str:
    """Return a fraction, or a difference of two, in percentage points: ``12.0``."""
    return f"{100 * fraction:.1f}"


def human_bytes(count: float) -> str:
    """Return a number of bytes as ``7.5 kB`` or ``1.2 GB``, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Return a time as ``0.21 s``, ``12.5 s``, ``3 min 20 s`` or ``1 h 02 min``."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes + (rest >= 30), 60)
    return f"{hours} h {minutes:02d} min"


def executor_words(description: Mapping[str, Any]) -> str:
    """Return what executes clients, in a few words; empty for the plainest."""
    name = description.get("executor", "serial")
    if name == "serial":
        return ""
    noun = "node" if name == "deployment" else "worker"
    words = f"{name} by {counted(description['workers'], noun)}"
    if formulation := description.get("formulation"):
        words += f" ({formulation}, {counted(description['chunk'], 'client')} at once)"
    return words


def counted(number: int, noun: str) -> str:
    """Return ``1 client`` or ``5 clients``, with thin groups of digits: ``7 510 parameters``."""
    return f"{number:,}".replace(",", " ") + f" {noun}{'' if number == 1 else 's'}"


def score_of(told: Mapping[str, Any]) -> str:
    """Return what the accuracies of a run are called, by its ``start`` event or its summary."""
    return str(told.get("score", "accuracy"))
