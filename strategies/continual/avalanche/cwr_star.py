"""CWR*: class weights consolidated into a bank, over a backbone that the first experience trains.

V. Lomonaco, D. Maltoni, L. Pellegrini, "Rehearsal-Free Continual Learning over Small Non-I.I.D.
Batches", CVPR Workshops 2020, algorithm 1; see `strategies.continual.avalanche.networks.cwr`.

What upstream does (``CWRStarPlugin``), and this does instead:

- It keeps the bank in attributes of the model, which no state of the model holds: buffers.
- Predictions are those of the bank only once an experience has ended: after every round.
- The bias of the output layer is neither reset nor consolidated, so the latest classes win: there
  is none, as in the authors' code.
- It freezes the backbone by ``requires_grad`` and for good, so a model that several clients share
  stays frozen, and server momentum still moves it: a copy in buffers, in evaluation mode.

In rounds:

- The backbone trains through all rounds of the first experience. From the second experience on it
  is the global backbone of that experience's end, the same for all clients.
- tw is what the clients train and the server averages. The bank is consolidated once an experience,
  at the averaged weights, by whoever trains first in the next one.
- Setting tw at an experience's start moves a buffer that is added to the parameter, not the
  parameter: server momentum and control variates see no jump. Weight decay therefore pulls tw not
  towards 0 but towards that buffer.
- cur_j is the mean number of samples of class j over those clients of the latest cohort that hold
  any, weighted as the server weights clients. For one client it is the paper's. Only its ratio to
  past_j matters, and only for classes that come back.
"""

from functools import partial
from typing import Any

from torch import nn

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual, Criterion
from strategies.continual.avalanche.networks.output_layer import split_off


def cwr_star(*, training: LocalTraining, freeze_backbone: bool = True) -> AvalancheContinual:
    """Return CWR*. A client keeps nothing; 2 C d numbers, and a frozen backbone, travel too.

    Args:
        training: What local training is made of.
        freeze_backbone: Whether the backbone is fixed after the first experience, as in the paper.
    """
    return AvalancheContinual(
        training, template=_template, equipment=partial(_equipment, freeze_backbone=freeze_backbone)
    )


def _template(criterion: Criterion) -> Any:
    from strategies.continual.avalanche.stages import staged

    return staged(criterion)


def _equipment(model: nn.Module, training: LocalTraining, *, freeze_backbone: bool) -> nn.Module:
    from strategies.continual.avalanche.networks.cwr import CwrNetwork

    backbone, head = split_off(model, training.num_classes, "cwr_star")
    return CwrNetwork(backbone, head, freeze_backbone)
