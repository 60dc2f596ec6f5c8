"""Weighted: who has more samples trains more often."""

from dataclasses import dataclass

from fedlearn.cohorts.sampler import Candidates, CohortSampler, Told, draw_by_samples


@dataclass(frozen=True)
class Weighted(CohortSampler):
    """Draws in proportion to the samples of a client's present experience, without replacement.

    Aggregations that weigh replies by their samples then count them twice over: large clients come
    more often and weigh more. Clients without samples are never chosen.
    """

    def choose(self, candidates: Candidates, told: Told) -> list[int]:
        """Return a round's cohort; see `CohortSampler.choose`."""
        generator = candidates.generator("cohort-weighted")
        return sorted(draw_by_samples(candidates, candidates.size, generator))
