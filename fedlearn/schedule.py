"""The task clock: which experience a client is in at a round, whoever was sampled."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The synchronous clock: every client spends the same rounds in each experience.

    Rounds are 1-based, experiences 0-based: rounds ``1..R`` are experience 0, ``R+1..2R``
    experience 1, and so on.

    Attributes:
        num_experiences: T, at least 1.
        rounds_per_experience: R, at least 1.
    """

    num_experiences: int
    rounds_per_experience: int

    def __post_init__(self) -> None:
        for key in ("num_experiences", "rounds_per_experience"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")

    @property
    def num_rounds(self) -> int:
        """Rounds in the whole run."""
        return self.num_experiences * self.rounds_per_experience

    def experience(self, client_id: int, server_round: int) -> int:
        """Return the experience, 0-based, that `client_id` is in at `server_round`."""
        if not 1 <= server_round <= self.num_rounds:
            raise ValueError(f"round={server_round}: must be in 1..{self.num_rounds}")
        return (server_round - 1) // self.rounds_per_experience

    def progress(self, client_id: int, server_round: int) -> float:
        """Return the share of `client_id`'s present experience that is over, in [0, 1)."""
        return (server_round - 1) % self.rounds_per_experience / self.rounds_per_experience

    def ends_experience(self, server_round: int) -> bool:
        """Whether `server_round` is the last round of its experience."""
        return server_round % self.rounds_per_experience == 0
