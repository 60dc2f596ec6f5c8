"""By loss: of some clients drawn, those train whose loss is largest (power-of-choice)."""

from dataclasses import dataclass
from math import inf

from fedlearn.cohorts.sampler import Candidates, CohortSampler, Told, draw_by_samples


@dataclass(frozen=True)
class ByLoss(CohortSampler):
    """The variant "rpow-d" of Y. J. Cho, J. Wang, G. Joshi (AISTATS 2022), section 3.

    "Towards Understanding Biased Client Selection in Federated Learning". In each round

    1. d candidates are drawn without replacement, in proportion to their samples;
    2. the m of them with the largest losses train: not the global model's loss at the client, which
       would cost a question to each candidate, but the loss that a client reported with its latest
       turn; infinite for who has reported none. Ties are broken at random.

    Deviations: samples are those of the client's present experience, so who has none is no
    candidate; the loss is that of a turn's last epoch and not the mean over all of its steps, and
    of the experience that the client was in then.

    Attributes:
        candidates: d, at least the cohort's size m: 1 would be blind, all clients are greedy. Null
            for 2m.
    """

    candidates: int | None = None

    by_losses = True

    def __post_init__(self) -> None:
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(f"cohort.candidates={self.candidates}: must be at least 1")

    def check(self, num_clients: int, size: int, num_rounds: int) -> None:
        """Check that there are as many candidates as a round has clients."""
        if self.candidates is not None and not size <= self.candidates <= num_clients:
            raise ValueError(
                f"cohort.candidates={self.candidates}: must be in {size}..{num_clients}, from the "
                "clients of a round to all clients"
            )

    def choose(self, candidates: Candidates, told: Told) -> list[int]:
        """Return a round's cohort; see `CohortSampler.choose`."""
        generator = candidates.generator("cohort-by-loss")
        number = 2 * candidates.size if self.candidates is None else self.candidates
        drawn = draw_by_samples(candidates, number, generator)
        generator.shuffle(drawn)  # the sort below is stable: so ties are broken at random
        drawn.sort(key=lambda client_id: -told.losses.get(client_id, inf))
        return sorted(drawn[: candidates.size])
