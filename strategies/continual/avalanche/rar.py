"""Retrospective adversarial replay.

L. Kumari, S. Wang, T. Zhou, J. Bilmes, "Retrospective Adversarial Replay for Continual Learning",
NeurIPS 2022. Samples of memory are moved to the boundary where they would be forgotten:

    theta_v = theta - lr * gradient of CE(batch)
    x' = x moved within epsilon, so that its features under theta_v come near those of the sample of
         the batch, of another class, whose features are nearest                (MI-FGSM)
    loss = CE(batch) + (1 - beta) CE(memory) + beta CE(memory moved to x')

This follows the authors' code where Avalanche differs; see
`strategies.continual.avalanche.corrections.rar`. Deviations: the paper's MixUp variant is left out
(as in Avalanche); theta_v is a step of plain gradient descent at the optimiser's learning rate,
whatever the optimiser is; memory takes samples in at an experience's end; inputs are kept within
the range of what is remembered, not within [0, 1].
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.bounds import above, at_least, within


def rar(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    memory_batch_size: int | None = None,
    beta: float = 0.4,
    epsilon: float = 0.0314,
    attack_steps: int = 2,
    attack_momentum: float = 1.0,
) -> AvalancheContinual:
    """Return RAR. A client keeps two integers and a key for each sample in memory.

    The model must end in a linear layer: what that reads are the features. A step runs the model
    `attack_steps` + 3 times more.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, a uniform part of all, at least 1.
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        beta: Share of the moved samples in the loss on memory, in [0, 1].
        epsilon: How far a value of an input may move, greater than 0, in the inputs' own unit.
        attack_steps: Steps of epsilon / attack_steps, at least 1.
        attack_momentum: What is left of the direction of the step before, at least 0.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    at_least("memory_batch_size", memory_batch_size, 1)
    within("beta", beta, 0, 1)
    above("epsilon", epsilon, 0)
    at_least("attack_steps", attack_steps, 1)
    at_least("attack_momentum", attack_momentum, 0)
    return AvalancheContinual(
        training,
        plugins=partial(
            _plugins,
            memory_per_client,
            memory_batch_size,
            beta,
            epsilon,
            attack_steps,
            attack_momentum,
        ),
        keeps=("plugins.0.memory",),
        consolidates="data",
    )


def _plugins(
    memory_per_client: int,
    memory_batch_size: int | None,
    beta: float,
    epsilon: float,
    attack_steps: int,
    attack_momentum: float,
) -> list[Any]:
    from strategies.continual.avalanche.corrections.rar import RAR

    return [RAR(memory_per_client, memory_batch_size, beta, epsilon, attack_steps, attack_momentum)]
