"""The site's own clock: which experience its client is in, where the site says so, and no round.

The site moves on by a call (``fedlearn deploy advance``), on a date that it has named, or when a
part of its data arrives (`fedlearn.arrivals`). What it says is a file of its node; when a run has
seen it is kept with the run, so that a client's schedule is what it was, whatever is restarted.
"""

import json
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np

from fedlearn.config.errors import ConfigError
from fedlearn.schedule import Schedule

SITE, SEEN = "site.json", "experiences.json"


@dataclass(frozen=True)
class SiteClock:
    """What a site has said.

    Attributes:
        now: The experience that was begun by a call, 0-based.
        dates: When later ones begin, by experience: ISO dates.
    """

    now: int = 0
    dates: dict[int, str] | None = None

    @classmethod
    def read(cls, folder: Path) -> "SiteClock":
        """Return what is written in a node's folder; nothing said is experience 0."""
        path = folder / SITE
        if not path.is_file():
            return cls()
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(told["now"], {int(key): day for key, day in told["dates"].items()})

    def write(self, folder: Path) -> None:
        """Write it down in a node's folder."""
        draft = folder / f"{SITE}.draft"
        told = {"now": self.now, "dates": self.dates or {}}
        draft.write_text(json.dumps(told) + "\n", encoding="utf-8")
        draft.replace(folder / SITE)

    def advanced(self, to: int | None, on: str | None, today: date) -> "SiteClock":
        """Return the clock moved on.

        Args:
            to: The experience to go on to; None for the next.
            on: The date that it begins, as ``2026-12-31``; None for now.
            today: The date.

        Raises:
            ConfigError: Clocks do not go back, and that is no date.
        """
        reached = self.at(today)
        to = reached + 1 if to is None else to
        if to <= reached:
            raise ConfigError(f"--to={to}: must be above {reached}, the experience that it is in")
        if on is None:
            return replace(self, now=to)
        try:
            date.fromisoformat(on)
        except ValueError as error:
            raise ConfigError(f"--on={on}: is no date; write it as 2026-12-31") from error
        return replace(self, dates={**(self.dates or {}), to: on})

    def at(self, today: date, arrived: int = 0) -> int:
        """Return the experience that the site is in.

        Args:
            today: The date.
            arrived: Parts of its data that are there: the first is of experience 0.
        """
        begun = [index for index, on in (self.dates or {}).items() if on <= today.isoformat()]
        return max([self.now, arrived - 1, *begun])


def schedule_at_site(nominal: Schedule, client_id: int, seen: list[int]) -> Schedule:
    """Return the clock of a run with one client's row as its site has it.

    Args:
        nominal: The run's.
        client_id: The site's.
        seen: The first round at which each experience, as far as the site has come, was seen;
            those that it has passed over have that of the next one.
    """
    length, rounds = nominal.num_experiences, nominal.num_rounds
    begins, ends = nominal.begins.copy(), nominal.ends.copy()
    begun = np.array([*seen, *[rounds + 1] * (length - len(seen))])
    begins[client_id] = begun
    ends[client_id] = np.array([*(begun[1:] - 1), rounds])
    return Schedule(begins, ends, nominal.away)


def note_experience(folder: Path, reached: int, length: int, server_round: int) -> list[int]:
    """Take down that a site has come to an experience, and return when each began.

    Args:
        folder: Of the run, on the node; made if it is missing.
        reached: 0-based; one past the last stays in the last.
        length: T.
        server_round: The present one.

    Returns:
        See `schedule_at_site`.
    """
    path = folder / SEEN
    seen: list[int] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    reached = min(reached, length - 1)
    if len(seen) <= reached:
        first = server_round if seen else 1  # the first lasts from the run's beginning
        seen = [*seen, *[first] * (reached + 1 - len(seen))]
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(seen), encoding="utf-8")
        draft.replace(path)
    return seen
