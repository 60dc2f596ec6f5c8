"""Uniform: every client that is there is as likely as any other."""

from dataclasses import dataclass

from fedlearn.cohorts.sampler import Candidates, CohortSampler, Told, sample_clients


@dataclass(frozen=True)
class Uniform(CohortSampler):
    """Draws without replacement, anew in each round (McMahan et al. 2017, Algorithm 1)."""

    def choose(self, candidates: Candidates, told: Told) -> list[int]:
        """Return a round's cohort; see `CohortSampler.choose`."""
        return sample_clients(
            candidates.run_seed,
            "cohort",
            candidates.server_round,
            candidates.client_ids,
            candidates.size,
        )
