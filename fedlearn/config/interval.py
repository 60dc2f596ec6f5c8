"""Intervals as the field writes them: ``(0, 1]`` holds 1 and not 0."""

import math
import re
from dataclasses import dataclass

_NOTATION = re.compile(r"([\[(])\s*([^,\s]+)\s*,\s*([^,\s]+)\s*([\])])")


@dataclass(frozen=True)
class Interval:
    """A range of numbers.

    Attributes:
        least: Lower end; ``-inf`` for none.
        most: Upper end; ``inf`` for none.
        holds_least: Whether `least` itself is allowed.
        holds_most: Whether `most` itself is allowed.
    """

    least: float
    most: float
    holds_least: bool
    holds_most: bool

    @classmethod
    def parse(cls, notation: str) -> "Interval":
        """Read ``[0, 1)``, ``(0, inf)`` and the like.

        Raises:
            ValueError: The notation is not an interval.
        """
        found = _NOTATION.fullmatch(notation.strip())
        if found is None:
            raise ValueError(f"{notation!r} is not an interval such as '[0, 1)' or '(0, inf)'")
        opening, least, most, closing = found.groups()
        return cls(float(least), float(most), opening == "[", closing == "]")

    def __contains__(self, value: float) -> bool:
        above = value >= self.least if self.holds_least else value > self.least
        below = value <= self.most if self.holds_most else value < self.most
        return above and below

    def __str__(self) -> str:
        """Return the bound in words: ``at least 1``, ``in (0, 1]``, ``exactly 1``."""
        if self.least == self.most:
            return f"exactly {self.least:g}"
        if math.isinf(self.most):
            return f"{'at least' if self.holds_least else 'greater than'} {self.least:g}"
        if math.isinf(self.least):
            return f"{'at most' if self.holds_most else 'less than'} {self.most:g}"
        brackets = "(["[self.holds_least], ")]"[self.holds_most]
        return f"in {brackets[0]}{self.least:g}, {self.most:g}{brackets[1]}"
