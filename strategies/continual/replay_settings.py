"""Settings of experience replay: what both engines of local training check."""

from typing import Literal, get_args

from fedlearn.types import LocalTraining
from strategies.continual.bounds import at_least, needs_classes, one_of

Policy = Literal[
    "experience_balanced", "class_balanced", "reservoir", "herding", "closest_to_center"
]
"""What memory keeps; see `strategies.continual.avalanche.replay`."""
BY_CLASS: tuple[Policy, ...] = ("class_balanced", "herding", "closest_to_center")
"""The policies that know classes."""
BY_FEATURES: tuple[Policy, ...] = ("herding", "closest_to_center")
"""The policies that look at the model."""


def memory_size(
    training: LocalTraining, policy: Policy, per_client: int | None, per_class: int | None
) -> int:
    """Return how many samples a client may keep, at least 1.

    Args:
        training: Tells how many classes there are.
        policy: What memory keeps.
        per_client: Samples over all experiences, at least 1; None where `per_class` bounds memory.
        per_class: Samples of each class, at least 1, for the policies that know classes; None where
            `per_client` bounds memory.

    Raises:
        ValueError: The policy is unknown or cannot go by classes; or no size is set, two are, one
            is out of bounds, or one that the policy does not know.
    """
    one_of("policy", policy, get_args(Policy))
    if policy in BY_CLASS:
        needs_classes("policy", policy, training)
    if per_class is None:
        if per_client is None:
            raise ValueError(
                "continual.memory_per_client=null: set it, or memory_per_class in its place"
            )
        at_least("memory_per_client", per_client, 1)
        return per_client
    at_least("memory_per_class", per_class, 1)
    if per_client is not None:
        raise ValueError(
            f"continual.memory_per_class={per_class}: memory_per_client={per_client} is set too; "
            "set one of them to null"
        )
    if policy not in BY_CLASS:
        raise ValueError(
            f"continual.memory_per_class={per_class}: policy={policy} knows no classes; "
            "use class_balanced, or memory_per_client"
        )
    return per_class * training.num_classes
