"""EWC with experience replay: the twin of `strategies.continual.avalanche.ewc_replay`.

Springs hold the weights of the past, and samples of it come back. What is replayed counts as if it
were part of the present batch; Fisher information is that of each experience's own samples.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedlearn.types import LocalTraining
from strategies.continual.bounds import at_least
from strategies.continual.ewc_settings import Mode, check_springs
from strategies.continual.functional.continual import Anchor, FunctionalContinual
from strategies.continual.functional.ewc import EWC
from strategies.continual.functional.reservoirs import Reservoirs


def ewc_replay(
    *,
    training: LocalTraining,
    ewc_lambda: float = 10.0,
    mode: Mode = "separate",
    decay_factor: float | None = None,
    memory_per_client: int = 20,
    memory_batch_size: int | None = None,
    anchor: Anchor = "local",
) -> FunctionalContinual:
    """Return EWC with replay. A client keeps what both of them keep.

    Args:
        training: What local training is made of. Large lambdas need its ``max_grad_norm``.
        ewc_lambda: Weight of the penalty, at least 0.
        mode: One penalty per past experience, or a single decayed one.
        decay_factor: What is left of old importances at each experience's end, in [0, 1]; needed
            by, and only allowed for, ``mode="online"``.
        memory_per_client: Samples that a client may keep, shared equally by its experiences, at
            least 1.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        anchor: Where an experience is consolidated.

    Raises:
        ValueError: A setting is out of bounds, or the optimiser has no twin.
    """
    check_springs(ewc_lambda, mode, decay_factor)
    at_least("memory_per_client", memory_per_client, 1)
    at_least("memory_batch_size", memory_batch_size, 1)
    method = EWCWithReplay(ewc_lambda, decay_factor)
    memory = Reservoirs(memory_per_client, memory_batch_size)
    return FunctionalContinual(training, method, memory, anchor)


@dataclass(frozen=True)
class EWCWithReplay(EWC):
    """Elastic weight consolidation, one loss over the present batch and one from memory."""

    blends: ClassVar[bool] = True
