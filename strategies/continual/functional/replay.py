"""Experience replay: the twin of `strategies.continual.avalanche.replay`, cited there.

It has the policies that do not look at the model.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from fedlearn.types import LocalTraining
from strategies.continual.bounds import at_least, needs_classes, one_of
from strategies.continual.functional.continual import Anchor, FunctionalContinual
from strategies.continual.functional.method import Method
from strategies.continual.functional.rehearsal import Rehearsal
from strategies.continual.functional.reservoirs import RankedMemory, Reservoirs

Policy = Literal[
    "experience_balanced", "class_balanced", "reservoir", "herding", "closest_to_center"
]
BY_FEATURES = ("herding", "closest_to_center")
"""The policies that look at the model; only the Avalanche engine has them."""


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
    one_of("policy", policy, get_args(Policy))
    if policy in BY_FEATURES:
        raise ValueError(
            f"continual.policy={policy}: engine=functional has no policy that looks at the model; "
            "use engine=avalanche"
        )
    if policy == "class_balanced":
        needs_classes("policy", policy, training)
    if anchor is not None:
        raise ValueError(
            f"continual.anchor={anchor}: policy={policy} does not look at the model; use null"
        )
    at_least("memory_batch_size", memory_batch_size, 1)
    memory = _memory(policy, memory_per_client, memory_per_class, memory_batch_size, training)
    return FunctionalContinual(training, Replay(), memory)


def _memory(
    policy: Policy,
    per_client: int | None,
    per_class: int | None,
    batch_size: int | None,
    training: LocalTraining,
) -> Rehearsal:
    """Return the memory of a policy, of the size that is set.

    Raises:
        ValueError: No size is set, two are, or one that the policy does not know.
    """
    if per_class is not None:
        at_least("memory_per_class", per_class, 1)
        if per_client is not None:
            raise ValueError(
                f"continual.memory_per_class={per_class}: memory_per_client={per_client} is set "
                "too; set one of them to null"
            )
        if policy != "class_balanced":
            raise ValueError(
                f"continual.memory_per_class={per_class}: policy={policy} knows no classes; "
                "use class_balanced, or memory_per_client"
            )
        size = per_class * training.num_classes
        return RankedMemory(size, batch_size, per_class=per_class)
    if per_client is None:
        raise ValueError(
            "continual.memory_per_client=null: set it, or memory_per_class in its place"
        )
    at_least("memory_per_client", per_client, 1)
    if policy == "experience_balanced":
        return Reservoirs(per_client, batch_size, by="experience")
    return RankedMemory(per_client, batch_size, by_class=policy == "class_balanced")


@dataclass(frozen=True)
class Replay(Method[None]):
    """One loss over the present batch and one from memory, as if they were one batch."""

    blends: ClassVar[bool] = True
