"""Networks that take each experience as a stage: weights of the past fixed, others free to train.

CWR*, PackNet and progressive networks need no memory of a client. What they know (which weights
are fixed, at which values) is a function of the global model at the moment that an experience
ends, so it lives in buffers of the network, which travel. The first clients to train in a new
experience all compute it from the same received weights; who comes later finds it done. Nobody can
disagree, be late, or lose it: masks and frozen weights are the same for all clients, bit for bit.

So all clients must be in the same experience at the same time, as `fedlearn.schedule` has it.
"""

from typing import Any, Protocol, cast

from torch import nn

from fedlearn.types import Experience
from strategies.continual.avalanche.adapter import Criterion
from strategies.continual.avalanche.template import TensorTemplate


class StagedNetwork(Protocol):
    """A network that knows how far it is."""

    def enter(self, experience: Experience, progress: float | None) -> None:
        """Make ready to train on `experience`, from the received weights and buffers alone.

        Called at the start of every turn, before a weight moves.

        Args:
            experience: What the turn learns.
            progress: Share of the experience's rounds that are over; see `Turn.progress`.
        """
        ...


class StagedTraining(TensorTemplate):
    """Plain training of a `StagedNetwork`."""

    def _train_exp(self, *args: Any, **kwargs: Any) -> None:
        network_of(self.model).enter(self.experience.origin, self.turn.progress)
        super()._train_exp(*args, **kwargs)


def network_of(model: nn.Module) -> StagedNetwork:
    """Return the network itself where task heads wrap it."""
    from strategies.continual.avalanche.heads import TaskHeads

    return cast(StagedNetwork, model.model if isinstance(model, TaskHeads) else model)


def staged(criterion: Criterion) -> Any:
    """Return the prototype of plain training, stage by stage."""
    return StagedTraining.prototype(criterion)
