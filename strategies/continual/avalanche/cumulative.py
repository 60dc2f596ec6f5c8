"""Cumulative training: an upper bound, which keeps nothing and forgets nothing.

As Avalanche's ``Cumulative``: in each experience a client trains on its samples of that experience
and of all before. It breaks the stream's rule that past samples are gone.
"""

from typing import Any

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual, Criterion


def cumulative(*, training: LocalTraining) -> AvalancheContinual:
    """Return cumulative training. A client keeps no state.

    What counts is what the stream has brought, not which rounds the client took part in. A turn
    takes as many steps as all samples so far have batches; when models are averaged, the client
    counts with the samples of the present experience only.

    Args:
        training: What local training is made of.
    """
    return AvalancheContinual(training, template=_template)


def _template(criterion: Criterion) -> Any:
    from strategies.continual.avalanche.corrections.cumulative import Cumulative

    return Cumulative.prototype(criterion)
