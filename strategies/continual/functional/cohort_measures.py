"""What clients report of their steps: mean losses, norms, and why a turn must not count."""

import math
from dataclasses import dataclass

import numpy as np

from fedlearn.turns import Floats, Integers


@dataclass(frozen=True)
class Measures:
    """Scalars of every step of n clients, and which pass it belongs to.

    Attributes:
        losses: (steps, n) float64.
        lengths: (steps, n) float64, norms of the gradients; None where nobody asks.
        sizes: (steps, n) int64, present samples.
        passes: (steps, n) int64, from 0.
        steps: (n,) int64, of each client; what lies beyond them means nothing.
    """

    losses: Floats
    lengths: Floats | None
    sizes: Integers
    passes: Integers
    steps: Integers

    def mean_losses(self) -> Floats:
        """Return (n,): the mean loss over the samples of each client's last pass."""
        at = np.arange(len(self.losses))[:, None]
        last = self.passes[self.steps - 1, np.arange(len(self.steps))]
        weights = np.where((at < self.steps) & (self.passes == last), self.sizes, 0)
        losses = np.where(weights > 0, self.losses, 0)
        found: Floats = (losses * weights).sum(0) / weights.sum(0)
        return found

    def norms(self) -> dict[str, Floats]:
        """Return the mean and the largest norm of each client's gradients, (n,) each."""
        if self.lengths is None:
            return {}
        there = np.arange(len(self.lengths))[:, None] < self.steps
        lengths = np.where(there, self.lengths, 0)
        return {"grad-norm": lengths.sum(0) / self.steps, "grad-norm-max": lengths.max(0)}

    def diverged(self, max_loss: float) -> dict[int, str]:
        """Return why a client's turn must not count, by place.

        Args:
            max_loss: See `fedlearn.types.LocalTraining`.
        """
        there = np.arange(len(self.losses))[:, None] < self.steps
        suspect = there & ~(np.isfinite(self.losses) & (self.losses <= max_loss))
        if self.lengths is not None:
            suspect |= there & ~np.isfinite(self.lengths)
        reasons = {
            int(at): self._reason(int(at), max_loss) for at in np.flatnonzero(suspect.any(0))
        }
        return {at: reason for at, reason in reasons.items() if reason is not None}

    def _reason(self, client: int, max_loss: float) -> str | None:
        """Return what the first pass that shows it says, as `epochs.Epochs` does."""
        steps = int(self.steps[client])
        passes = self.passes[:steps, client]
        for number in range(int(passes[-1]) + 1):
            worst = float(self.losses[:steps, client][passes == number].max())  # NaN if any is
            if not math.isfinite(worst):
                return f"the loss is {worst}"
            if worst > max_loss:
                return f"the loss is {worst:g}, above local.max_loss={max_loss:g}"
            if self.lengths is not None:
                lengths = self.lengths[:steps, client][passes <= number]
                if not math.isfinite(lengths.mean()):
                    return f"the gradient's norm is {lengths.max()}"
        return None
