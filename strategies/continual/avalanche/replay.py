"""Experience replay.

A. Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019: each batch is followed
by one from memory, and the loss is the mean over both. The policy decides what memory keeps:

``experience_balanced``
    As many samples of each experience, a uniform random part of it (reservoir sampling).
``class_balanced``
    As many samples of each class, a uniform random part of all of that class so far.
``reservoir``
    A uniform random part of all samples so far.
``herding``
    As many samples of each class: those whose running mean follows the mean of the class's
    features. S.-A. Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning",
    CVPR 2017, Algorithms 4 and 5.
``closest_to_center``
    As many samples of each class: those whose features are nearest to the mean.

Features are what the model's last linear layer reads, scaled to length 1, under the anchor's
weights at the experience's end. What a small class leaves of its share goes to the others.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import at_least
from strategies.continual.replay_settings import BY_FEATURES, Policy, memory_size


def replay(
    *,
    training: LocalTraining,
    policy: Policy = "experience_balanced",
    memory_per_client: int | None = 20,
    memory_per_class: int | None = None,
    memory_batch_size: int | None = None,
    anchor: Anchor | None = None,
) -> AvalancheContinual:
    """Return experience replay. A client keeps two integers and a key for each sample in memory.

    Args:
        training: What local training is made of.
        policy: What memory keeps.
        memory_per_client: Samples that a client may keep, over all experiences, at least 1; None
            where `memory_per_class` bounds memory.
        memory_per_class: Samples of each class that a client may keep, at least 1, for the policies
            that know classes; None where `memory_per_client` bounds memory.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        anchor: Whose features are seen; needed by, and only allowed for, ``herding`` and
            ``closest_to_center``. ``"local"`` keeps the client's weights too.

    Raises:
        ValueError: A setting is out of bounds, or does not go with another one.
    """
    size = memory_size(training, policy, memory_per_client, memory_per_class)
    at_least("memory_batch_size", memory_batch_size, 1)
    looks = policy in BY_FEATURES
    if looks and anchor is None:
        raise ValueError(f"continual.anchor=null: policy={policy} needs local or global")
    if anchor is not None and not looks:
        raise ValueError(
            f"continual.anchor={anchor}: policy={policy} does not look at the model; use null"
        )
    if policy == "experience_balanced":
        return AvalancheContinual(
            training,
            plugins=partial(_experience_balanced, size, memory_batch_size),
            keeps=("plugins.0.storage_policy.buffer_groups", "plugins.0.storage_policy._num_exps"),
            consolidates="data",
        )
    return AvalancheContinual(
        training,
        plugins=partial(_selective, policy, size, memory_per_class, memory_batch_size),
        keeps=("plugins.0.memory",),
        consolidates="model" if looks else "data",
        anchor=anchor or "local",
    )


def _experience_balanced(size: int, memory_batch_size: int | None) -> list[Any]:
    from strategies.continual.avalanche.corrections.replay import Replay

    return [Replay(size, memory_batch_size)]


def _selective(
    policy: str, size: int, memory_per_class: int | None, memory_batch_size: int | None
) -> list[Any]:
    from strategies.continual.avalanche.corrections.replay import SelectiveReplay
    from strategies.continual.avalanche.corrections.selection import selection_of

    return [SelectiveReplay(selection_of(policy, size, memory_per_class), memory_batch_size)]
