"""The task clock: which experience a client is in at a round, whoever was sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

Rounds = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """Whose experience lasts from when to when. Rounds are 1-based, experiences 0-based.

    A client's experiences follow each other, perhaps with pauses. Time passes for everybody, here
    or not: who is away while an experience lasts has missed it.

    Attributes:
        begins: (K, T) int64, the first round of each client's each experience.
        ends: (K, T) int64, its last round.
        away: (K, 2) int64: each client is away from the first of these rounds up to, but not
            including, the second; None for nobody.
        at_sites: Whether clients go by clocks of their own, so that this one only says when the
            server tests.
    """

    begins: Rounds
    ends: Rounds
    away: Rounds | None = None
    at_sites: bool = False

    @classmethod
    def in_step(cls, num_clients: int, num_experiences: int, rounds_per_experience: int) -> Self:
        """Return the clock of clients that all spend the same rounds in each experience."""
        for key, value in (
            ("num_experiences", num_experiences),
            ("rounds_per_experience", rounds_per_experience),
        ):
            if value < 1:
                raise ValueError(f"{key}={value}: must be at least 1")
        ends = np.arange(1, num_experiences + 1, dtype=np.int64) * rounds_per_experience
        shape = (num_clients, num_experiences)
        return cls(
            np.broadcast_to(ends - rounds_per_experience + 1, shape), np.broadcast_to(ends, shape)
        )

    @property
    def num_experiences(self) -> int:
        """T."""
        return int(self.ends.shape[1])

    @cached_property
    def num_rounds(self) -> int:
        """Rounds in the whole run."""
        return int(self.ends[:, -1].max())

    @cached_property
    def is_in_step(self) -> bool:
        """Whether all clients, where they are there, are in the same experience."""
        return bool((self.begins == self.begins[0]).all() and (self.ends == self.ends[0]).all())

    def experience(self, client_id: int, server_round: int) -> int | None:
        """Return the experience that `client_id` is in at `server_round`, None in none."""
        if not 1 <= server_round <= self.num_rounds:
            raise ValueError(f"round={server_round}: must be in 1..{self.num_rounds}")
        index = int(np.searchsorted(self.ends[client_id], server_round))
        if index == self.num_experiences or server_round < self.begins[client_id, index]:
            return None
        return index

    def experiences(self, client_ids: Rounds, server_round: int) -> Rounds:
        """Return (n,): the experience that each of `client_ids` (n,) is in, -1 for none."""
        if self.is_in_step:  # then one client's clock tells for all
            alike = self.experience(0, server_round)
            return np.full(len(client_ids), -1 if alike is None else alike)
        index = (self.ends[client_ids] < server_round).sum(1)
        inside = index < self.num_experiences
        begins = self.begins[client_ids, np.minimum(index, self.num_experiences - 1)]
        found: Rounds = np.where(inside & (begins <= server_round), index, -1)
        return found

    def present(self, server_round: int) -> Rounds:
        """Return the clients that are there and in an experience at `server_round`, ascending."""
        if self.is_in_step:  # then one client's clock tells for all
            begins, ends = self.begins[:1], self.ends[:1]
        else:
            begins, ends = self.begins, self.ends
        here = ((begins <= server_round) & (server_round <= ends)).any(1)
        here = np.broadcast_to(here, len(self.begins))
        if self.away is not None:
            here = here & ((server_round < self.away[:, 0]) | (self.away[:, 1] <= server_round))
        return np.flatnonzero(here)

    def rounds_before(self, client_ids: Rounds, server_round: int) -> Rounds:
        """Return (n, T): how many rounds each experience of `client_ids` lasted before this one."""
        ends = np.minimum(self.ends[client_ids], server_round - 1)
        lasted: Rounds = np.maximum(ends - self.begins[client_ids] + 1, 0)
        return lasted

    def stage(self, server_round: int) -> int:
        """Return how many experiences everybody has behind at the start of `server_round`, < T."""
        return min(int((self._last < server_round).sum()), self.num_experiences - 1)

    def entered(self, server_round: int) -> Rounds:
        """Return (K,): how many experiences each client has entered by `server_round`."""
        entered: Rounds = (self.begins <= server_round).sum(1)
        return entered

    def finishing(self, server_round: int) -> list[tuple[int, Sequence[int]]]:
        """Return the experiences that end at `server_round`, each with its clients, ascending."""
        if server_round not in self._end_rounds:
            return []
        clients, experiences = (self.ends == server_round).nonzero()
        return [
            (int(index), clients[experiences == index].tolist()) for index in np.unique(experiences)
        ]

    @cached_property
    def _end_rounds(self) -> frozenset[int]:
        """The rounds at whose end somebody finishes an experience: few, and looked up often."""
        return frozenset(np.unique(self.ends).tolist())

    @cached_property
    def _last(self) -> Rounds:
        """(T,): the round at whose end the last client has finished each experience."""
        last: Rounds = self.ends.max(0)
        return last
