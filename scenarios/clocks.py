"""Clocks: in which order, when and for how long each client meets its experiences."""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fedlearn.schedule import Rounds, Schedule
from fedlearn.seeding import numpy_generator

Order = Literal["same", "shuffled"]
"""Whether clients meet the experiences in the stream's order, or each in one of its own."""


@dataclass(frozen=True)
class Clock:
    """A client's time: the order of its experiences, their begin and end, and its absences.

    By default all are in step. Every draw is a pure function of the seed and of what the clock is
    for: K, T and the rounds.

    Attributes:
        order: ``"shuffled"`` gives each client an order of its own.
        delay: The most rounds that a client begins later than the first; uniform in 0..delay.
        spread: How much experiences differ in length: each lasts a number of rounds drawn
            uniformly from rounds_per_experience * (1 - spread) to * (1 + spread), at least one; in
            [0, 1).
        joining: Share of the clients that are not there at first and join in a round drawn
            uniformly from the second to the last, in [0, 1]. They miss what they miss.
        leaving: Share of the others that leave for good before a round drawn likewise, in [0, 1].
        pausing: Share of those left that are away from one to another of two rounds drawn
            uniformly, both included, in [0, 1].
    """

    order: Order = "same"
    delay: int = 0
    spread: float = 0.0
    joining: float = 0.0
    leaving: float = 0.0
    pausing: float = 0.0

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(
                f"clock.order={self.order}: must be one of {', '.join(get_args(Order))}"
            )
        if self.delay < 0:
            raise ValueError(f"clock.delay={self.delay}: must be at least 0")
        if not 0 <= self.spread < 1:
            raise ValueError(f"clock.spread={self.spread}: must be in [0, 1)")
        for key in ("joining", "leaving", "pausing"):
            if not 0 <= getattr(self, key) <= 1:
                raise ValueError(f"clock.{key}={getattr(self, key)}: must be in [0, 1]")
        for key in ("spread", "joining", "leaving", "pausing"):
            object.__setattr__(self, key, float(getattr(self, key)))  # 0 and 0.0 are one protocol

    def orders(self, orders: Tensor, seed: int) -> Tensor:
        """Return the topics (K, T) of each client's stream, given those in the stream's order."""
        if self.order == "same":
            return orders
        rng = numpy_generator(seed, "clock-order")
        return torch.from_numpy(rng.permuted(orders.numpy(), axis=1))

    def schedule(
        self, num_clients: int, num_experiences: int, rounds_per_experience: int, seed: int
    ) -> Schedule:
        """Return when each client is in which experience."""
        in_step = Schedule.in_step(num_clients, num_experiences, rounds_per_experience)
        begins, ends = in_step.begins, in_step.ends
        if self.spread:
            rng = numpy_generator(seed, "clock-spread")
            # Rounded first, because 0.29 * 100 is a little less than 29.
            reach = math.floor(round(rounds_per_experience * self.spread, 9))
            least, most = max(1, rounds_per_experience - reach), rounds_per_experience + reach
            lengths = rng.integers(least, most + 1, size=begins.shape)
            ends = lengths.cumsum(1)
            begins = ends - lengths + 1
        if self.delay:
            rng = numpy_generator(seed, "clock-delay")
            delays = rng.integers(0, self.delay + 1, size=num_clients)
            delays -= delays.min()  # somebody begins in the first round
            begins, ends = begins + delays[:, None], ends + delays[:, None]
        return Schedule(begins, ends, self._away(num_clients, int(ends.max()), seed))

    def _away(self, num_clients: int, num_rounds: int, seed: int) -> Rounds | None:
        """Return the round from which, and that up to which, each client is away: (K, 2)."""
        if not (self.joining or self.leaving or self.pausing):
            return None
        rng = numpy_generator(seed, "clock-away")
        drawn = rng.random((num_clients, 3))
        joins = drawn[:, 0] < self.joining
        leaves = ~joins & (drawn[:, 1] < self.leaving)
        pauses = ~joins & ~leaves & (drawn[:, 2] < self.pausing)
        turn = rng.integers(2, max(num_rounds, 2) + 1, size=num_clients)
        early, late = np.sort(rng.integers(1, num_rounds + 1, size=(num_clients, 2)), axis=1).T
        start = np.select([joins, leaves, pauses], [np.ones_like(turn), turn, early])
        end = np.select(
            [joins, leaves, pauses], [turn, np.full_like(turn, num_rounds + 1), late + 1]
        )
        return np.stack([start, end], axis=1)


@dataclass(frozen=True)
class OnSite(Clock):
    """A clock that each site moves on by itself: see `fedlearn.deployment.site_clock`.

    The server, which is told only afterwards, tests as if all were in step.
    """

    def schedule(
        self, num_clients: int, num_experiences: int, rounds_per_experience: int, seed: int
    ) -> Schedule:
        """Return when the server takes whom to be in which experience."""
        nominal = super().schedule(num_clients, num_experiences, rounds_per_experience, seed)
        return replace(nominal, at_sites=True)
