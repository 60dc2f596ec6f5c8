"""PackNet: every task owns a part of the network's weights, which no later task can move.

A. Mallya, S. Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning",
CVPR 2018; see `strategies.continual.avalanche.networks.packed`. Train, prune by magnitude, retrain
what is left, fix it.

In rounds:

- Everybody prunes the received global weights at the start of the same round, so the masks are the
  same for all clients; who comes later finds them in the global model. It is the first round with
  a reply once ``1 - retrain_share`` of the experience's rounds are over. What is left of the rounds
  is the retraining, and what is evaluated at the experience's end is the pruned network.
- With ``retrain_share=0``, or one round an experience, a task is pruned when the next one starts,
  and not retrained; what is evaluated at its end is then the network before pruning.
- Weights of past tasks are read from buffers: bit-identical whatever optimiser or aggregation.

What upstream does (``PackNetModel``, ``PackNetPlugin``), and this does instead:

- It prunes the output layer, which all tasks share: each task has the rows of its classes.
- It freezes biases with the first task, and so does this; all biases of the output layer, too: each
  class's belongs to its task.
- It refuses batch normalisation: it trains with the first task and then stays, as in the paper.
- Freed weights keep their values as they become the next task's, and here too; the paper's code
  sets them to 0. For a server's momentum or control variates that would be a step of the clients'.
"""

from functools import partial
from typing import Any

from torch import nn

from fedlearn.types import LocalTraining
from strategies.continual.avalanche.adapter import AvalancheContinual, Criterion
from strategies.continual.avalanche.networks.output_layer import output_layer
from strategies.continual.bounds import within


def packnet(
    *,
    training: LocalTraining,
    prune_proportion: float | None = None,
    retrain_share: float = 0.3,
) -> AvalancheContinual:
    """Return PackNet. A client keeps nothing; a copy of the weights and their owners travel too.

    Args:
        training: What local training is made of; it must have heads.
        prune_proportion: Share of each layer's free weights that a task gives back, in [0, 1];
            None leaves each of the tasks the same number. The last task gives back nothing.
        retrain_share: Share of an experience's rounds that come after pruning, in [0, 1).

    Raises:
        ValueError: A setting is out of bounds.
    """
    if prune_proportion is not None:
        within("prune_proportion", prune_proportion, 0, 1)
    if not 0 <= retrain_share < 1:
        raise ValueError(f"continual.retrain_share={retrain_share}: must be in [0, 1)")
    return AvalancheContinual(
        training,
        template=_template,
        equipment=partial(
            _equipment, prune_proportion=prune_proportion, retrain_share=retrain_share
        ),
    )


def _template(criterion: Criterion) -> Any:
    from strategies.continual.avalanche.stages import staged

    return staged(criterion)


def _equipment(
    model: nn.Module,
    training: LocalTraining,
    *,
    prune_proportion: float | None,
    retrain_share: float,
) -> nn.Module:
    from strategies.continual.avalanche.networks.packed import PackedNetwork
    from strategies.continual.avalanche.networks.task_classes import disjoint_heads

    heads = disjoint_heads(training, "packnet")
    last = output_layer(model, training.num_classes, "packnet")
    return PackedNetwork(model, last, heads, prune_proportion, retrain_share)
