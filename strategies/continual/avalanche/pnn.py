"""Progressive neural networks: a new column for each task, which reads the fixed ones before it.

A. Rusu et al., "Progressive Neural Networks", 2016; see
`strategies.continual.avalanche.networks.progressive`.

Each column has the layer sizes, activations and dropout of the user's model, which must be a
multi-layer perceptron without normalisation, and an output for each of its task's classes. The
columns that it reads are as in evaluation.

In rounds:

- All columns are there from the start, drawn from the run's seed; nothing grows, so every message
  has the same arrays. A task's column trains through the rounds of its experience. At the next
  experience's start it is fixed at the received global weights, the same for all clients.
- Columns of past tasks are read from buffers: bit-identical whatever optimiser or aggregation.

What upstream does (``PNN``), and this does instead:

- Its first layer has lateral connections from further copies of the input: none, as in the paper.
- Its output layer has no lateral connections: it has, as in the paper.
- ``adapter="linear"`` is ignored by its first layer: there is nothing to adapt there.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual, Criterion
from strategies.continual.bounds import one_of

if TYPE_CHECKING:
    from strategies.continual.avalanche.networks.progressive import Adapter


def pnn(
    *, training: LocalTraining, adapter: Literal["mlp", "linear"] = "mlp"
) -> AvalancheContinual:
    """Return progressive networks. A client keeps nothing; T columns travel, twice each.

    Args:
        training: What local training is made of; it must have heads.
        adapter: How a column reads those before it: through a layer of its own with a
            non-linearity, or linearly.

    Raises:
        ValueError: A setting is out of bounds.
    """
    one_of("adapter", adapter, ("mlp", "linear"))
    return AvalancheContinual(
        training, template=_template, equipment=partial(_equipment, adapter=adapter)
    )


def _template(criterion: Criterion) -> Any:
    from strategies.continual.avalanche.stages import staged

    return staged(criterion)


def _equipment(model: nn.Module, training: LocalTraining, *, adapter: "Adapter") -> nn.Module:
    from strategies.continual.avalanche.networks.progressive import ProgressiveNetwork, layers_of
    from strategies.continual.avalanche.networks.task_classes import disjoint_heads

    heads = disjoint_heads(training, "pnn")
    layers = layers_of(model, training.num_classes)
    return ProgressiveNetwork(layers, heads, training.num_classes, adapter)
