"""Bias correction.

Y. Wu et al., "Large Scale Incremental Learning", CVPR 2019. Stage 1, eq. 1-4: training on new
samples and memory, with ``(1 - r) CE + r * distillation``, r = n / (n + m) for n past classes and m
new ones, from the corrected model of the experience before. Stage 2, eq. 5-6: the logits of the m
new classes become ``alpha * logit + beta``, two numbers fitted to samples, of past and new classes
alike, that no model was trained on.

In federated rounds:

- alpha and beta are buffers of the model (one entry a class), so they travel, are averaged like
  batch statistics, and are part of what the server evaluates. In training mode nothing is
  corrected.
- Stage 2 comes at the end of every turn, on the weights that the client sends, so the newest
  classes are corrected by the time that an experience's last round is evaluated. It reads the
  weights and moves none, so nothing of it is lost or counted twice when it is done again.
- A client that holds out no past or no present sample passes on the correction that it received.

Deviations: the fit is solved (it is convex) instead of taking 200 epochs of gradient descent; each
class counts the same in it; and where the authors' code pulls beta towards 0 with 0.1, both numbers
are pulled towards no correction with 1 / n for n samples, so that a handful cannot run away with
it and many have their way.
"""

from functools import partial
from typing import Any

from torch import nn

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual, Criterion
from strategies.continual.avalanche.networks.bias import BiasCorrected
from strategies.continual.bounds import above, at_least, within


def bic(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    validation_share: float = 0.4,
    memory_batch_size: int | None = None,
    temperature: float = 2.0,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return BiC. A client keeps its teacher and memory; local anchor: the parameters once more.

    Memory is shared equally by the classes, once for the samples to train on and once for those to
    fit to. (Avalanche's memory to fit to comes on top of its memory size.)

    How the defaults were chosen, on the acceptance protocol (class-incremental, seeds 0 and 1):
    with 20 samples a client the authors' share of 0.1 leaves two to fit to and ends at 80 % (seed
    0 only), 0.25 at 79 %, 0.4 at 87 %. With 0.25, the global anchor ends at 80 %. The temperature
    is the authors'. The mean of seeds 0-2 with the defaults is 86.5 %.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, over all experiences, at least 2.
        validation_share: Part of memory, and at most of a class's present samples, that is held
            out of training, in (0, 0.5].
        memory_batch_size: Samples from memory a step, at least 1; None for the batch size.
        temperature: Of the distillation, greater than 0.
        anchor: Where the teacher is taken from.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 2)
    above("validation_share", validation_share, 0)
    within("validation_share", validation_share, 0, 0.5)
    at_least("memory_batch_size", memory_batch_size, 1)
    above("temperature", temperature, 0)
    return AvalancheContinual(
        training,
        template=partial(
            _template,
            memory_per_client=memory_per_client,
            validation_share=validation_share,
            memory_batch_size=memory_batch_size,
            temperature=temperature,
        ),
        keeps=("memory", "validation", "teacher", "past_classes"),
        consolidates="model",
        anchor=anchor,
        equipment=_corrected,
    )


def _corrected(model: nn.Module, training: LocalTraining) -> nn.Module:
    return BiasCorrected(model, training.num_classes)


def _template(
    criterion: Criterion,
    *,
    memory_per_client: int,
    validation_share: float,
    memory_batch_size: int | None,
    temperature: float,
) -> Any:
    from strategies.continual.avalanche.corrections.bic import BiC

    prototype = BiC.prototype(criterion)
    prototype.validation_size = max(1, round(validation_share * memory_per_client))
    prototype.memory_size = memory_per_client - prototype.validation_size
    prototype.validation_share, prototype.temperature = validation_share, temperature
    prototype.memory_batch_size = memory_batch_size
    return prototype
