"""Joint training: the upper bound that knows the whole stream from the start.

As Avalanche's ``JointTraining``: in every round a client trains on its samples of all experiences.
It breaks the stream's rule that samples come one experience after the other, so its accuracy on an
experience that has not come yet says nothing about forward transfer.
"""

from functools import partial
from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual, Criterion


def joint(*, training: LocalTraining) -> AvalancheContinual:
    """Return joint training. A client keeps no state.

    A turn takes as many steps as all samples of the client have batches; when models are averaged,
    the client counts with the samples of the present experience only, and a client that has none
    there does not train.

    Args:
        training: What local training is made of; its ``num_experiences`` says how long the stream
            is.
    """
    return AvalancheContinual(training, template=partial(_template, training.num_experiences))


def _template(num_experiences: int, criterion: Criterion) -> Any:
    from strategies.continual.avalanche.corrections.joint import Joint

    prototype = Joint.prototype(criterion)
    prototype.num_experiences = num_experiences
    return prototype
