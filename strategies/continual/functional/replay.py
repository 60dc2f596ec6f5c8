"""Experience replay: the twin of `strategies.continual.avalanche.replay`, cited there.

It has the policies that do not look at the model.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedlearn.types import LocalTraining
from strategies.continual.bounds import at_least
from strategies.continual.functional.continual import Anchor, FunctionalContinual
from strategies.continual.functional.method import Method
from strategies.continual.functional.rehearsal import Rehearsal
from strategies.continual.functional.reservoirs import RankedMemory, Reservoirs
from strategies.continual.replay_settings import BY_FEATURES, Policy, memory_size


def replay(
    *,
    training: LocalTraining,
    policy: Policy = "experience_balanced",
    memory_per_client: int | None = 20,
    memory_per_class: int | None = None,
    memory_batch_size: int | None = None,
    anchor: Anchor | None = None,
) -> FunctionalContinual:
    """Return experience replay. A client keeps three integers and a key a sample in memory.

    Args:
        training: What local training is made of.
        policy: What memory keeps.
        memory_per_client: Samples that a client may keep, over all experiences, at least 1; None
            where `memory_per_class` bounds memory.
        memory_per_class: Samples of each class that a client may keep, at least 1, for
            ``policy="class_balanced"``; None where `memory_per_client` bounds memory.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        anchor: For policies that look at the model: None here.

    Raises:
        ValueError: A setting is out of bounds, does not go with another one, or has no twin; or the
            optimiser has none.
    """
    if policy in BY_FEATURES:
        raise ValueError(
            f"continual.policy={policy}: engine=functional has no policy that looks at the model; "
            "use engine=avalanche"
        )
    size = memory_size(training, policy, memory_per_client, memory_per_class)
    if anchor is not None:
        raise ValueError(
            f"continual.anchor={anchor}: policy={policy} does not look at the model; use null"
        )
    at_least("memory_batch_size", memory_batch_size, 1)
    return FunctionalContinual(
        training, Replay(), _memory(policy, size, memory_per_class, memory_batch_size)
    )


def _memory(policy: Policy, size: int, per_class: int | None, batch_size: int | None) -> Rehearsal:
    if policy == "experience_balanced":
        return Reservoirs(size, batch_size)
    by_class = policy == "class_balanced"
    return RankedMemory(size, batch_size, by_class=by_class, per_class=per_class)


@dataclass(frozen=True)
class Replay(Method[None]):
    """One loss over the present batch and one from memory, as if they were one batch."""

    blends: ClassVar[bool] = True
