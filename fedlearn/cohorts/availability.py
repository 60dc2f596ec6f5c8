"""Availability: clients that can be reached in some rounds only, and uniform draws among those.

Unlike those that the task clock has away, such clients are part of the federation all the time:
`fraction_train` counts them, and they test themselves where an experience ends. Their experiences
go on meanwhile. A round has fewer clients, or none, where fewer can be reached.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedlearn.cohorts.sampler import Candidates, CohortSampler, Integers, Told, sample_clients
from fedlearn.seeding import numpy_generator


class Trace(CohortSampler):
    """Availability from a file."""

    def __init__(self, path: str) -> None:
        """Read a trace.

        Args:
            path: A JSON file: an object with, for each client id from 0, a list of spans
                ``[from, to]`` of rounds, both 1-based and included, in which the client can be
                reached. Spans may overlap. Clients beyond those of the run are not used.

        Raises:
            ValueError: The file cannot be read, or holds something else.
        """
        self._path = path
        spans = _read_spans(path)
        self._known = set(spans)
        flat = [(client_id, *span) for client_id, own in spans.items() for span in own]
        self._spans: Integers = np.array(flat, dtype=np.int64).reshape(-1, 3)

    def check(self, num_clients: int, size: int, num_rounds: int) -> None:
        """Check that the file has every client, and that the run is not over before it begins."""
        missing = sorted(set(range(num_clients)) - self._known)
        if missing:
            raise ValueError(
                f"cohort.path={self._path}: has no client {missing[0]}; num_clients={num_clients} "
                f"needs 0..{num_clients - 1}"
            )
        client_ids, first, _ = self._spans.T
        if not ((client_ids < num_clients) & (first <= num_rounds)).any():
            raise ValueError(
                f"cohort.path={self._path}: nobody can be reached in rounds 1..{num_rounds}"
            )

    def choose(self, candidates: Candidates, told: Told) -> list[int]:
        """Return a round's cohort; see `CohortSampler.choose`."""
        reached = self._reached(candidates.server_round)
        return _sample(candidates, np.intersect1d(candidates.client_ids, reached))

    def _reached(self, server_round: int) -> Integers:
        client_ids, first, last = self._spans.T
        reached: Integers = client_ids[(first <= server_round) & (server_round <= last)]
        return reached


@dataclass(frozen=True)
class DayNight(CohortSampler):
    """Availability that comes and goes: each client is on for a part of each day.

    Client k is on in round t where ``(t + phase_k) mod period < share_on * period``; the phase is
    drawn uniformly from [0, period), by (seed, client). So each client is on in one stretch a day,
    in a share `share_on` of the rounds, and in each round that share of the clients is, on average.

    Attributes:
        period: Rounds of a day, at least 2.
        share_on: In (0, 1].
    """

    period: int = 24
    share_on: float = 0.5

    def __post_init__(self) -> None:
        if self.period < 2:
            raise ValueError(f"cohort.period={self.period}: must be at least 2")
        if not 0 < self.share_on <= 1:
            raise ValueError(f"cohort.share_on={self.share_on}: must be in (0, 1]")

    def choose(self, candidates: Candidates, told: Told) -> list[int]:
        """Return a round's cohort; see `CohortSampler.choose`."""
        ids, period = candidates.client_ids, self.period
        phases = period * numpy_generator(candidates.run_seed, "day-night").random(int(ids[-1]) + 1)
        on = (candidates.server_round + phases) % period < self.share_on * period
        return _sample(candidates, ids[on[ids]])


def _sample(candidates: Candidates, reached: Integers) -> list[int]:
    """Return as many of `reached` as there are to choose, or all."""
    size = min(candidates.size, len(reached))
    return sample_clients(candidates.run_seed, "cohort", candidates.server_round, reached, size)


def _read_spans(path: str) -> dict[int, list[tuple[int, int]]]:
    try:
        content = json.loads(
            Path(path).expanduser().read_text(encoding="utf-8"), object_pairs_hook=_unique
        )
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cohort.path={path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"cohort.path={path}: must be an object of client ids")
    return {_client_id(path, key): _spans(path, key, value) for key, value in content.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"client {key} comes twice")
        content[key] = value
    return content


def _client_id(path: str, key: str) -> int:
    if not (key.isascii() and key.isdecimal() and str(int(key)) == key):
        raise ValueError(f"cohort.path={path}: {key!r} is no client id: they are 0, 1, 2, ...")
    return int(key)


def _spans(path: str, key: str, value: Any) -> list[tuple[int, int]]:
    spans = value if isinstance(value, list) else [value]
    for span in spans:
        pair = isinstance(span, list) and len(span) == 2 and all(type(each) is int for each in span)
        if not pair or not 1 <= span[0] <= span[1] < 2**63:
            raise ValueError(
                f"cohort.path={path}: client {key}: {json.dumps(span)[:60]} is no span of rounds "
                "[from, to], 1 <= from <= to"
            )
    return [(span[0], span[1]) for span in spans]
