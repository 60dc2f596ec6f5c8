"""iCaRL: incremental classifier and representation learning.

S.-A. Rebuffi, A. Kolesnikov, G. Sperl, C. Lampert, "iCaRL: Incremental Classifier and
Representation Learning", CVPR 2017. Features are trained on the experience's samples and all
exemplars together by the binary cross-entropy of every output (Algorithm 3): the target of an old
class is what the teacher, the model as the experience began, gives for that sample; of any other
class its label. When the experience ends, exemplars are herded (Algorithm 4), and memory, shared
equally by the classes, is cut from the end (Algorithm 5). Prediction is by the nearest mean of
exemplars, of features of length 1 (Algorithm 1).

Deviations. While an experience lasts, the means of its classes are those of all its samples, which
herding follows. A class that comes back is learnt from labels, and herded anew from its exemplars
and its new samples. Targets are sums over outputs, as in the paper; Avalanche and the authors' code
take means, with a learning rate of 2. Exemplars are not mirrored when means are taken, which the
authors' code does and the paper does not say. The loss is iCaRL's own: the run's ``local.loss`` and
``head.mask`` have no say in it.
"""

from functools import partial
from typing import Any

from torch import nn

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import Anchor, AvalancheContinual, Criterion
from strategies.continual.avalanche.networks.prototypes import Prototypes
from strategies.continual.bounds import at_least


def icarl(
    *,
    training: LocalTraining,
    memory_per_client: int = 20,
    anchor: Anchor = "local",
) -> AvalancheContinual:
    """Return iCaRL. A client keeps its teacher and three numbers a sample in memory.

    With the local anchor its last weights too. On Split-Digits (5 clients, Dirichlet 0.5, 10 rounds
    an experience, SGD 0.1; 3 seeds) the local anchor reaches 91.5 %, the global one 90.8 %.

    Args:
        training: What local training is made of.
        memory_per_client: Samples that a client may keep, over all classes, at least 1.
        anchor: Whose weights teach, and choose exemplars.

    Raises:
        ValueError: A setting is out of bounds.
    """
    at_least("memory_per_client", memory_per_client, 1)
    return AvalancheContinual(
        training,
        template=partial(_template, memory_per_client),
        keeps=("exemplars", "met", "teacher", "old_classes"),
        consolidates="model",
        anchor=anchor,
        equipment=_equipment,
    )


def _template(memory_per_client: int, criterion: Criterion) -> Any:
    from strategies.continual.avalanche.corrections.icarl import ICaRL
    from strategies.continual.avalanche.corrections.selection import FeatureSelection
    from strategies.continual.avalanche.exemplars import herding

    prototype = ICaRL.prototype(criterion)
    prototype.selection = FeatureSelection(memory_per_client, None, herding)
    return prototype


def _equipment(model: nn.Module, training: LocalTraining) -> nn.Module:
    return Prototypes("icarl", model, training)
