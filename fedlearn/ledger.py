"""The ledger: what a run cost in bytes, steps, replayed samples and seconds."""

import statistics
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
    """

    up_bytes: int = 0
    down_bytes: int = 0
    steps: int = 0
    replayed: int = 0
    turns: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    state_bytes: dict[int, float] = field(default_factory=dict)
    train_s: float = 0.0
    round_s: list[float] = field(default_factory=list)

    def summary(self, total_s: float) -> dict[str, dict[str, Any]]:
        """Return a summary's sections ``comm``, ``time``, ``work``, ``turns`` and ``storage``."""
        kept = list(self.state_bytes.values()) or [0.0]
        return {
            "comm": {"up_bytes": self.up_bytes, "down_bytes": self.down_bytes},
            "time": {
                "total_s": total_s,
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
