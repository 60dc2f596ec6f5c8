"""Dark experience replay, as Avalanche has it: DER and DER++.

P. Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline",
NeurIPS 2020, eq. 6: CE(current) + alpha * MSE(logits, remembered logits) + beta * CE(memory).
Memory is shared equally by the classes. DER is beta = 0.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual, Criterion
from strategies.continual.bounds import at_least


def der_plus_plus(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    alpha: float = 0.1,
    beta: float = 0.5,
    memory_batch_size: int | None = None,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return DER++. A client keeps two integers and C logits for each sample in memory.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, over all experiences, at least 1.
        alpha: Weight of the distance to the remembered logits, at least 0.
        beta: Weight of the cross-entropy on memory, at least 0; with 0 this is DER.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        anchor: Whose logits are remembered. ``"local"`` keeps the client's weights too.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("alpha", alpha, 0)
    at_least("beta", beta, 0)
    at_least("memory_batch_size", memory_batch_size, 1)
    return AvalancheContinual(
        training,
        template=partial(
            _template,
            memory_per_client=memory_per_client,
            alpha=alpha,
            beta=beta,
            memory_batch_size=memory_batch_size,
        ),
        keeps=("storage_policy.buffer_groups", "storage_policy.seen_classes"),
        consolidates="model",
        anchor=anchor,
    )


def _template(
    criterion: Criterion,
    *,
    memory_per_client: int,
    alpha: float,
    beta: float,
    memory_batch_size: int | None,
) -> Any:
    from strategies.continual.avalanche.corrections.der import DER

    prototype = DER.prototype(criterion, mem_size=memory_per_client, alpha=alpha, beta=beta)
    prototype.memory_batch_size = memory_batch_size
    return prototype
