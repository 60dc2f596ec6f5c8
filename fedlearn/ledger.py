"""The ledger: what a run cost in bytes, steps, replayed samples and seconds."""

import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """Counts of a whole run.

    Attributes:
        up_bytes: Array bytes from clients to server, auxiliary payloads included.
        down_bytes: Array bytes from server to clients, likewise.
        steps: Optimiser steps of all clients.
        replayed: Samples that came from memory, over all steps.
        train_s: Seconds spent in clients' turns.
        round_s: Seconds of each round, evaluation included.
    """

    up_bytes: int = 0
    down_bytes: int = 0
    steps: int = 0
    replayed: int = 0
    train_s: float = 0.0
    round_s: list[float] = field(default_factory=list)

    def summary(self, total_s: float) -> dict[str, dict[str, Any]]:
        """Return the sections ``comm``, ``time`` and ``work`` of a run's summary."""
        return {
            "comm": {"up_bytes": self.up_bytes, "down_bytes": self.down_bytes},
            "time": {
                "total_s": total_s,
                "train_s": self.train_s,
                "round_s_median": statistics.median(self.round_s) if self.round_s else 0.0,
            },
            "work": {"steps": self.steps, "samples_replayed": self.replayed},
        }
