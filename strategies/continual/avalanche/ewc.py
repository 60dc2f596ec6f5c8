"""Elastic weight consolidation, as Avalanche has it.

J. Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017, eq. 3;
online: J. Schwarz et al., "Progress & Compress", ICML 2018, section 3. The penalty is
``ewc_lambda * sum F (theta - theta*)^2``: Avalanche's ``ewc_lambda`` is the papers' lambda / 2. F
is the squared gradient of each batch's mean loss under the true labels, averaged over batches, so
it depends on the batch size.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual
from strategies.continual.ewc_settings import Mode, check_springs


def ewc(
    *,
    training: LocalTraining,
    ewc_lambda: float = 200.0,
    mode: Mode = "separate",
    decay_factor: float | None = None,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return EWC. A client keeps 2T times the parameters, online 2 times; local anchor: +1.

    Args:
        training: What local training is made of. Large lambdas need its ``max_grad_norm``.
        ewc_lambda: Weight of the penalty, at least 0. The default is the smallest of 10, 30, 100,
            150, 200, 250, 300 and 500 that halves what naive forgets of permuted digits (5 clients,
            Dirichlet 0.5, 10 rounds of 2 epochs, ``max_grad_norm`` 1): 22 of 54 points.
        mode: One penalty per past experience, or a single decayed one.
        decay_factor: What is left of old importances at each experience's end, in [0, 1]; needed
            by, and only allowed for, ``mode="online"``.
        anchor: Where an experience is consolidated.

    Raises:
        ValueError: A setting is out of bounds.
    """
    check_springs(ewc_lambda, mode, decay_factor)
    return AvalancheContinual(
        training,
        plugins=partial(_plugins, ewc_lambda, mode, decay_factor),
        keeps=("plugins.0.importances", "plugins.0.saved_params"),
        consolidates="model",
        anchor=anchor,
    )


def _plugins(ewc_lambda: float, mode: Mode, decay_factor: float | None) -> list[Any]:
    from strategies.continual.avalanche.corrections.ewc import EWC

    return [EWC(ewc_lambda, mode, decay_factor)]
