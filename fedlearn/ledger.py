"""The ledger: what a run cost in bytes, steps, replayed samples and seconds."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OUTCOMES = ("accepted", "idle", "dropped", "diverged", "quarantined", "failed")
"""How a turn can end, as the server sees it."""


@dataclass
class Ledger:
    """Counts of a whole run.

    Attributes:
        up_bytes: Array bytes from clients to server, auxiliary payloads included.
        down_bytes: Array bytes from server to clients, likewise.
        steps: Optimiser steps of all clients.
        replayed: Samples that came from memory, over all steps.
        turns: How many ended how: accepted, idle, dropped, diverged, quarantined or failed.
        state_bytes: What each client kept after its last accepted turn, its tensors, by client id.
        train_s: Seconds spent in clients' turns.
        round_s: Seconds of each round, evaluation included.
        earlier_s: Seconds of the whole run before it was resumed, as far as they still count.
    """

    up_bytes: int = 0
    down_bytes: int = 0
    steps: int = 0
    replayed: int = 0
    turns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    state_bytes: dict[int, float] = field(default_factory=dict)
    train_s: float = 0.0
    round_s: list[float] = field(default_factory=list)
    earlier_s: float = 0.0

    def state(self) -> dict[str, Any]:
        """Return what a later `restore` needs, as JSON values."""
        return {
            **vars(self),
            "turns": dict(self.turns),
            "state_bytes": dict(self.state_bytes),
            "round_s": list(self.round_s),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from a `state`; JSON has made strings of client ids."""
        vars(self).update(values)
        self.turns, self.round_s = dict(self.turns), list(self.round_s)
        self.state_bytes = {int(key): each for key, each in self.state_bytes.items()}

    def summary(self, total_s: float) -> dict[str, dict[str, Any]]:
        """Return a summary's sections ``comm``, ``time``, ``work``, ``turns`` and ``storage``.

        Args:
            total_s: Seconds of the whole run since it was started, or resumed.
        """
        kept = list(self.state_bytes.values()) or [0.0]
        return {
            "comm": {"up_bytes": self.up_bytes, "down_bytes": self.down_bytes},
            "time": {
                "total_s": self.earlier_s + total_s,
                "train_s": self.train_s,
                "round_s_median": statistics.median(self.round_s) if self.round_s else 0.0,
            },
            "work": {"steps": self.steps, "samples_replayed": self.replayed},
            "turns": dict(self.turns),
            "storage": {
                "client_state_bytes_max": max(kept),
                "client_state_bytes_mean": statistics.fmean(kept),
            },
        }
