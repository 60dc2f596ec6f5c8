"""Learning-rate schedules over rounds: what the optimiser's rate is multiplied by in a round.

Pure functions of the round: a client that was not sampled for a while finds the rate where the
others have it, and one that is rebuilt needs to remember nothing. Within a turn the rate is
constant. The paper's symbols: eta_t = factor(t) * optimizer.lr.
"""

import math
import sys
from dataclasses import dataclass
from typing import Literal, get_args

from fedlearn.schedule import Schedule

Span = Literal["run", "experience"]
"""What a schedule extends over: all rounds, or each experience's rounds anew."""


@dataclass(frozen=True)
class LrSchedule:
    """What all schedules share: the span, and the warm-up.

    Attributes:
        over: The span that rounds are counted in.
        warmup: Rounds before the full rate, which grows to it linearly: round t of them, from 0,
            has (t+1)/(warmup+1) of it (Goyal et al. 2017, section 2.2). At least 0.
    """

    over: Span = "run"
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.over not in get_args(Span):
            raise ValueError(
                f"lr_schedule.over={self.over}: must be one of {', '.join(get_args(Span))}"
            )
        _bounded("warmup", self.warmup, self.warmup >= 0, "at least 0")

    def factor(self, round_in_span: int, rounds: int) -> float:
        """Return the factor, greater than 0, of a round.

        Args:
            round_in_span: 0-based.
            rounds: Of the whole span; greater than `round_in_span`.
        """
        if round_in_span < self.warmup:
            return (round_in_span + 1) / (self.warmup + 1)
        factor = self._after_warmup(round_in_span - self.warmup, max(rounds - self.warmup, 1))
        return max(factor, sys.float_info.min)  # powers underflow, and a rate of 0 trains nothing

    def _after_warmup(self, at: int, rounds: int) -> float:
        """Return the factor of round `at` (0-based) of the `rounds` that follow the warm-up."""
        raise NotImplementedError


@dataclass(frozen=True)
class Constant(LrSchedule):
    """1 in every round."""

    def _after_warmup(self, at: int, rounds: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Step(LrSchedule):
    """``gamma ** floor(t / every)``: torch's ``StepLR``, by the round.

    Attributes:
        every: Rounds between two steps, at least 1.
        gamma: In (0, 1].
    """

    every: int = 10
    gamma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _bounded("every", self.every, self.every >= 1, "at least 1")
        _bounded("gamma", self.gamma, 0 < self.gamma <= 1, "in (0, 1]")

    def _after_warmup(self, at: int, rounds: int) -> float:
        return self.gamma ** (at // self.every)


@dataclass(frozen=True)
class Exponential(LrSchedule):
    """``gamma ** t``: torch's ``ExponentialLR``, by the round.

    Attributes:
        gamma: In (0, 1].
    """

    gamma: float = 0.98

    def __post_init__(self) -> None:
        super().__post_init__()
        _bounded("gamma", self.gamma, 0 < self.gamma <= 1, "in (0, 1]")

    def _after_warmup(self, at: int, rounds: int) -> float:
        return self.gamma**at


@dataclass(frozen=True)
class Cosine(LrSchedule):
    """``end + (1-end)/2 * (1 + cos(pi t / rounds))``: SGDR's eq. 5 without restarts in the span.

    I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.
    With ``over="experience"`` every experience is a restart.

    Attributes:
        end: What it falls towards, in [0, 1]; the last round is one step before it.
    """

    end: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _bounded("end", self.end, 0 <= self.end <= 1, "in [0, 1]")

    def _after_warmup(self, at: int, rounds: int) -> float:
        return self.end + (1 - self.end) / 2 * (1 + math.cos(math.pi * at / rounds))


@dataclass(frozen=True)
class Linear(LrSchedule):
    """From 1 in the first round to `end` in the last, in equal steps.

    Attributes:
        end: In (0, 1].
    """

    end: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _bounded("end", self.end, 0 < self.end <= 1, "in (0, 1]")

    def _after_warmup(self, at: int, rounds: int) -> float:
        return 1 - (1 - self.end) * at / max(rounds - 1, 1)


def check_warmup(lr_schedule: LrSchedule, schedule: Schedule) -> None:
    """Check that the warm-up leaves rounds to train at the full rate.

    Raises:
        ValueError: It does not.
    """
    by_run = lr_schedule.over == "run"
    shortest = int((schedule.ends - schedule.begins).min()) + 1
    rounds = schedule.num_rounds if by_run else shortest
    if lr_schedule.warmup >= rounds:
        span = "the run" if by_run else "an experience"
        raise ValueError(
            f"lr_schedule.warmup={lr_schedule.warmup}: must be less than the {rounds} rounds "
            f"of {span}"
        )


def _bounded(key: str, value: float, holds: bool, bound: str) -> None:
    if not holds:
        raise ValueError(f"lr_schedule.{key}={value}: must be {bound}")
