"""Clients that train in turn on copies of one global model, and a server that averages them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lone_client import DIGITS, mlp, model_for, turn_at
from torch import Tensor, nn

from fedlearn import records
from fedlearn.screening import average_buffers
from fedlearn.types import Experience, State
from strategies.continual.avalanche.adapter import AvalancheContinual

Tensors = dict[str, Tensor]


def shared(
    weights: Sequence[float] = (0.3, 0.7), num_experiences: int = 3, task: bool = False
) -> list[list[Experience]]:
    """Return a stream for each client: two new digits an experience, shares of unequal size."""
    streams: list[list[Experience]] = [[] for _ in weights]
    for index in range(num_experiences):
        rows = (DIGITS.y // 2 == index).nonzero().squeeze(1)[:100]
        sizes = [int(weight * len(rows)) for weight in weights]
        for stream, part in zip(streams, rows[: sum(sizes)].split(sizes), strict=True):
            classes = (2 * index, 2 * index + 1)
            stream.append(Experience(index, DIGITS, part, classes, index if task else 0))
    return streams


class Federation:
    """A global model and the clients that train it, one after the other.

    Parameters are averaged in float32 and moved with server momentum, as FedAvgM does: the mean of
    equal weights is not quite those weights, and the server moves what no client has touched.

    Attributes:
        model: Holds the global weights between rounds.
        replies: Parameters and buffers that each client sent in the latest round.
    """

    def __init__(
        self,
        strategy: AvalancheContinual,
        streams: Sequence[Sequence[Experience]],
        build: Callable[[], nn.Module] = mlp,
        server_momentum: float = 0.5,
    ) -> None:
        self.model = model_for(strategy, build)
        self.replies: dict[int, tuple[Tensors, Tensors]] = {}
        self._strategy, self._streams = strategy, streams
        self._states = {client_id: State() for client_id in range(len(streams))}
        self._last: dict[int, Experience] = {}
        self._momentum = server_momentum
        self._velocity: Tensors = {}
        self._round = 0

    def learn(
        self, index: int, rounds: int, absent: Sequence[tuple[int, int]] = (), **more: Any
    ) -> Iterator[int]:
        """Train experience `index`, yielding each round's place, 0-based, after it.

        Args:
            index: Position in every stream.
            rounds: Of the experience.
            absent: Pairs of client and round of the experience: who does not take part when.
            more: Fields of the turns.
        """
        for place in range(rounds):
            clients = [k for k in range(len(self._streams)) if (k, place) not in absent]
            self._train(clients, index, progress=place / rounds, **more)
            yield place

    def learn_all(self, index: int, rounds: int, **more: Any) -> None:
        """Train experience `index` to its end."""
        for _ in self.learn(index, rounds, **more):
            pass

    def _train(self, clients: Sequence[int], index: int, **more: Any) -> None:
        parameters, buffers = copied(self.model)
        self._round, self.replies, weights = self._round + 1, {}, {}
        for client_id in clients:
            stream = self._streams[client_id]
            last = self._last.get(client_id)
            previous = last if last is not None and last.index != index else None
            records.load(self.model, parameters, buffers)
            turn = turn_at(
                self._round - 1,
                previous=previous,
                client_id=client_id,
                **{"batch_size": 16, **more},
            )
            report = self._strategy.train_turn(
                self.model, stream[index], stream.__getitem__, turn, self._states[client_id]
            )
            self._states[client_id], self._last[client_id] = report.state, stream[index]
            self.replies[client_id] = copied(self.model)
            weights[client_id] = len(stream[index])
        for name, old in parameters.items():
            mean = torch.zeros_like(old)
            for client_id in clients:
                share = weights[client_id] / sum(weights.values())
                mean += self.replies[client_id][0][name] * share
            velocity = self._momentum * self._velocity.get(name, torch.zeros_like(old))
            self._velocity[name] = velocity + mean - old
            parameters[name] = old + self._velocity[name]
        every = {client_id: reply[1] for client_id, reply in self.replies.items()}
        records.load(self.model, parameters, average_buffers(every, weights))


def copied(model: nn.Module) -> tuple[Tensors, Tensors]:
    """Return copies of the parameters and of the buffers of `model`."""
    return tuple(
        {name: tensor.detach().clone() for name, tensor in of(model).items()}
        for of in (records.parameters_of, records.buffers_of)
    )


@torch.no_grad()
def scores(model: nn.Module, experience: Experience) -> Tensor:
    """Return what the model in evaluation mode gives the experience's own classes."""
    logits = model.eval()(experience.gather()[0])
    return logits[:, list(experience.classes)]
