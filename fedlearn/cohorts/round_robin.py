"""Round robin: everybody once before anybody twice."""

from collections.abc import Iterable
from dataclasses import dataclass

from fedlearn.cohorts.sampler import Candidates, CohortSampler, Told
from fedlearn.seeding import numpy_generator


@dataclass(frozen=True)
class RoundRobin(CohortSampler):
    """Takes clients by turns, in passes; each pass has an order of its own, drawn from the seed.

    Where a pass ends within a round, the next one begins with the rest of it. Whoever is away for
    the rest of a pass misses it: nobody is waited for, and nobody catches up.
    """

    def choose(self, candidates: Candidates, told: Told) -> list[int]:
        """Return a round's cohort; see `CohortSampler.choose`."""
        ids, size, latest = candidates.client_ids.tolist(), candidates.size, told.latest_pass
        waiting = (client_id for client_id in ids if told.passes.get(client_id, 0) < latest)
        cohort = _ordered(waiting, candidates.run_seed, latest)[:size]
        if len(cohort) < size:
            others = set(ids).difference(cohort)
            cohort += _ordered(others, candidates.run_seed, latest + 1)[: size - len(cohort)]
        return sorted(cohort)


def _ordered(client_ids: Iterable[int], run_seed: int, number: int) -> list[int]:
    """Return the clients in the order of a pass, which does not depend on who else is there."""
    ids = list(client_ids)
    keys = numpy_generator(run_seed, "cohort-pass", number).random(max(ids, default=0) + 1)
    return sorted(ids, key=keys.__getitem__)
