"""How every contender reports: one line of JSON with its rounds' seconds, start-up and memory."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from speed.memory import tree_mib
from torch import Tensor

STARTED = "SPEED_STARTED"
"""The environment variable that says when the process was started, on the monotonic clock."""


class Stopwatch:
    """Takes the time at the end of every round.

    A round lasts from the end of the one before it to its own, whatever is done between, and the
    first from the process's start: that is start-up, imports and data included.
    """

    def __init__(self, rounds: int) -> None:
        """Make a stopwatch for so many rounds."""
        self._rounds = rounds
        self._last = float(os.environ[STARTED])
        self._seconds: list[float] = []
        self._mib = 0.0

    def round_ends(self, untimed: float = 0.0) -> None:
        """Note that a round is over, the new global weights being known.

        Args:
            untimed: Seconds of it that do not count.
        """
        now = time.monotonic()
        self._seconds.append(now - self._last - untimed)
        self._last = now
        if len(self._seconds) == self._rounds:  # workers may end before there is a report
            self._mib = tree_mib(os.getpid())

    def report(self, weights: Iterable[Tensor], path: Path) -> None:
        """Write the final weights, in the order of the network's parameters, and print the line."""
        torch.save([each.detach().cpu().clone() for each in weights], path)
        startup, *seconds = self._seconds
        line = {"startup_s": startup, "seconds": seconds, "mib": self._mib}
        print("\n" + json.dumps(line), flush=True)


def report_skipped(reason: str) -> None:
    """Print the line of a contender that does not do this workload."""
    print("\n" + json.dumps({"skipped": " ".join(reason.split())}), flush=True)
