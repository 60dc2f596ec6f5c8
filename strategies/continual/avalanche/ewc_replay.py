"""EWC with experience replay: springs hold the weights of the past, and samples of it come back.

See `strategies.continual.avalanche.ewc` and `strategies.continual.avalanche.replay` for the papers.
The Fisher information is that of each experience's own samples, not of what is replayed. Memory is
filled first, so that it holds what ``continual=replay`` would hold: the pass for the Fisher
information draws random numbers too.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.bounds import at_least
from strategies.continual.ewc_settings import Mode, check_springs


def ewc_replay(
    *,
    training: LocalTraining,
    ewc_lambda: float = 10.0,
    mode: Mode = "separate",
    decay_factor: float | None = None,
    memory_per_client: int = 20,
    memory_batch_size: int | None = None,
    anchor: Anchor = "local",
) -> AvalancheContinual:
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
        ValueError: A setting is out of bounds.
    """
    check_springs(ewc_lambda, mode, decay_factor)
    at_least("memory_per_client", memory_per_client, 1)
    at_least("memory_batch_size", memory_batch_size, 1)
    return AvalancheContinual(
        training,
        plugins=partial(
            _plugins, memory_per_client, memory_batch_size, ewc_lambda, mode, decay_factor
        ),
        keeps=(
            "plugins.0.storage_policy.buffer_groups",
            "plugins.0.storage_policy._num_exps",
            "plugins.1.importances",
            "plugins.1.saved_params",
        ),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(
    size: int, batch_size: int | None, ewc_lambda: float, mode: Mode, decay_factor: float | None
) -> list[Any]:
    from strategies.continual.avalanche.corrections.ewc import EWC
    from strategies.continual.avalanche.corrections.replay import Replay

    return [Replay(size, batch_size), EWC(ewc_lambda, mode, decay_factor)]
