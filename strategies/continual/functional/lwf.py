"""Learning without forgetting: the twin of `strategies.continual.avalanche.lwf`, cited there."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from fedlearn.heads import hide
from fedlearn.losses import Loss
from fedlearn.types import LocalTraining
from strategies.continual.bounds import above, at_least
from strategies.continual.functional.continual import Anchor, FunctionalContinual
from strategies.continual.functional.method import Learnt, Method, mean, mean_loss
from strategies.continual.functional.network import Network
from strategies.continual.functional.trees import Batch, Tree


def lwf(
    *,
    training: LocalTraining,
    alpha: float = 1.0,
    temperature: float = 2.0,
    anchor: Anchor = "local",
) -> FunctionalContinual:
    """Return LwF. A client keeps its teacher: one model, with the local anchor two.

    Args:
        training: What local training is made of.
        alpha: Weight of the distillation, at least 0.
        temperature: T, greater than 0.
        anchor: Where the teacher is taken from.

    Raises:
        ValueError: A setting is out of bounds, or the optimiser has no twin.
    """
    at_least("alpha", alpha, 0)
    above("temperature", temperature, 0)
    heads = 1 if training.heads is None else len(training.heads)
    method = LwF(alpha, temperature, heads, training.num_classes)
    return FunctionalContinual(training, method, anchor=anchor)


class Teacher(NamedTuple):
    """What LwF remembers.

    Attributes:
        weights: Parameters and buffers of the last experience's model.
        classes: (heads, C) bool, the labels that the client has met, by head.
    """

    weights: Tree
    classes: Tensor


@dataclass(frozen=True)
class LwF(Method[Teacher]):
    """Learning without forgetting.

    Attributes:
        alpha: Weight of the distillation.
        temperature: T.
        num_heads: 1 where the scenario has no task labels.
        num_classes: C.
    """

    alpha: float
    temperature: float
    num_heads: int
    num_classes: int

    memory: ClassVar[type[Teacher]] = Teacher

    def loss(
        self, network: Network, params: Tree, batch: Batch, memory: Teacher | None, criterion: Loss
    ) -> Tensor:
        """Return the loss and the distance to the teacher, over every past head's past classes."""
        outputs = network(params, batch["x"])
        loss = mean_loss(criterion, network.seen(outputs, batch), batch)
        if memory is None:
            return loss
        taught = network.teach(self.teacher(memory), batch["x"])
        if self.num_heads > 1:  # Avalanche runs the model again for all heads: dropout draws anew
            outputs = network(params, batch["x"])
        return loss + self.alpha * mean(self._divergence(outputs, taught, memory.classes), batch)

    def teacher(self, memory: Teacher) -> Tree:
        """Return the last experience's model."""
        return memory.weights

    def _divergence(self, outputs: Tensor, taught: Tensor, classes: Tensor) -> Tensor:
        """Return KL(teacher || student) of each sample (batch,), summed over heads."""
        # (batch, heads, C): a head's other outputs are hidden, which leaves its softmax as it is
        log_p = hide(outputs[:, None] / self.temperature, classes).log_softmax(2)
        q = hide(taught[:, None] / self.temperature, classes).softmax(2)
        each = F.kl_div(log_p, q, reduction="none").sum(2)
        return each @ classes.any(1).to(each.dtype)  # a head without a past has nothing to teach

    def consolidate(self, memory: Teacher | None, learnt: Learnt) -> Teacher:
        """Return the present model as the teacher, of one experience's classes more."""
        classes = learnt.classes if memory is None else memory.classes | learnt.classes
        return Teacher(learnt.weights, classes)
