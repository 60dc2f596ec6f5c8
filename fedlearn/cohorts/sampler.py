"""What a cohort sampler goes by, and what it owes: a pure function of seed, round and past.

A sampler is given whom it may choose from and what the server was told in earlier rounds, and keeps
nothing of its own. So a run that goes on from a checkpoint draws what an unbroken one draws.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.cohort import cohort_size
from fedlearn.schedule import Schedule
from fedlearn.seeding import numpy_generator

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Candidates:
    """Whom a sampler may choose from in a round.

    Attributes:
        run_seed: The run's seed.
        server_round: 1-based.
        client_ids: (n,) int64: the clients that are there, at least one, ascending.
        samples: (n,) int64: each one's training samples of its present experience.
        size: How many to choose, from 1 to n.
    """

    run_seed: int
    server_round: int
    client_ids: Integers
    samples: Integers
    size: int

    def generator(self, purpose: str) -> np.random.Generator:
        """Return this round's generator for `purpose`."""
        return numpy_generator(self.run_seed, purpose, self.server_round)


@dataclass
class Told:
    """What the server knows of earlier rounds: plain values, so that a checkpoint can hold them.

    Attributes:
        losses: The training loss that each client reported last, by client id.
        passes: The pass in which each client was last in a cohort, by client id. A pass (1-based)
            is over when everybody who is there was in a cohort once, and somebody is again.
        latest_pass: The pass that the run is in.
    """

    losses: dict[int, float] = field(default_factory=dict)
    passes: dict[int, int] = field(default_factory=dict)
    latest_pass: int = 1

    def book(self, cohort: Sequence[int], losses: Mapping[int, float]) -> None:
        """Take in a round: who was asked to train, and the losses of those whose reply counts."""
        latest, passes = self.latest_pass, self.passes
        again = [client_id for client_id in cohort if passes.get(client_id) == latest]
        passes.update(dict.fromkeys(cohort, latest))
        if again:
            passes.update(dict.fromkeys(again, latest + 1))
            self.latest_pass = latest + 1
        self.losses.update(losses)

    def state(self) -> dict[str, Any]:
        """Return what a later `restore` needs, as JSON values."""
        return {
            "losses": dict(self.losses),
            "passes": dict(self.passes),
            "latest_pass": self.latest_pass,
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from a `state`; JSON has made strings of client ids."""
        self.losses = {int(client_id): each for client_id, each in values["losses"].items()}
        self.passes = {int(client_id): each for client_id, each in values["passes"].items()}
        self.latest_pass = values["latest_pass"]


class CohortSampler(ABC):
    """What all samplers share.

    Attributes:
        by_losses: Whether choices depend on losses, so that nobody can know them beforehand.
    """

    by_losses: bool = False

    @abstractmethod
    def choose(self, candidates: Candidates, told: Told) -> list[int]:
        """Return a round's cohort: some of the candidates, ascending, without repeats.

        Args:
            candidates: Whom to choose from.
            told: What is known of earlier rounds. Not modified.
        """

    def check(  # noqa: B027 - most samplers suit any run, and leave it as it is
        self, num_clients: int, size: int, num_rounds: int
    ) -> None:
        """Check that the sampler suits a run, before its first round; most suit any.

        Args:
            num_clients: K.
            size: The clients of a round in which everybody is there.
            num_rounds: Of the whole run.

        Raises:
            ValueError: It does not.
        """


def candidates_at(
    server_round: int,
    schedule: Schedule,
    sizes: NDArray[Any],
    run_seed: int,
    fraction_train: float,
    reachable: Integers | None = None,
) -> Candidates | None:
    """Return whom a sampler may choose from in a round, None where nobody is there.

    Args:
        server_round: 1-based.
        schedule: Says who is there, and in which experience.
        sizes: (K, T) int64, the training samples of each client's each experience.
        run_seed: The run's seed.
        fraction_train: Share of those who are there to choose, in (0, 1].
        reachable: Clients that have answered; None for all.
    """
    here = schedule.present(server_round)
    if reachable is not None:
        here = np.intersect1d(here, reachable, assume_unique=True)
    if not len(here):
        return None
    if schedule.is_in_step and len(here) == len(sizes):  # spares looking at every client
        samples = sizes[:, schedule.stage(server_round)]
    else:
        samples = sizes[here, schedule.experiences(here, server_round)]
    size = cohort_size(len(here), fraction_train)
    return Candidates(run_seed, server_round, here, samples, size)


def sample_clients(
    run_seed: int, purpose: str, server_round: int, client_ids: Integers, size: int
) -> list[int]:
    """Return `size` of the clients drawn uniformly, ascending, without repeats.

    Args:
        run_seed: The run's seed.
        purpose: ``"cohort"`` for training, another word for another use: draws are independent.
        server_round: 1-based.
        client_ids: (n,) whom to draw from, ascending.
        size: At most n.
    """
    if size == len(client_ids):
        chosen: list[int] = client_ids.tolist()
        return chosen
    generator = numpy_generator(run_seed, purpose, server_round)
    places = generator.choice(len(client_ids), size=size, replace=False)
    chosen = client_ids[np.sort(places)].tolist()
    return chosen  # noqa: RET504 - named for its type


def draw_by_samples(candidates: Candidates, size: int, generator: np.random.Generator) -> list[int]:
    """Return `size` candidates drawn one after the other, each in proportion to its samples.

    Without replacement: who is drawn is out, and the others' chances grow in proportion. Drawn all
    at once as the smallest of exponential times with the samples as rates (Efraimidis & Spirakis
    2006, "Weighted random sampling with a reservoir"), which is the same law. Clients without
    samples are never drawn, so there may be fewer than `size`; they come in the order of the draws.
    """
    held = np.flatnonzero(candidates.samples)
    times = generator.standard_exponential(len(candidates.samples))[held]
    order = held[(times / candidates.samples[held]).argsort(kind="stable")]
    drawn: list[int] = candidates.client_ids[order[:size]].tolist()
    return drawn
