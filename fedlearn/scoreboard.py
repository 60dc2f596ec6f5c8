"""The scoreboard: what the global model knew after each experience, here and at the clients.

a[i, j] is the mean over the clients of the accuracy, at the end of the client's own experience i,
of the global model on the global test set of what the client's own experience j is about. Where
all clients learn the same in the same order and at the same time, that is the accuracy on
experience j after learning experience i. a_k[i, j] is the same for client k alone, on the samples
that it has set aside.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Message
from torch import Tensor, nn

from fedlearn import metrics, records
from fedlearn.evaluation import Evaluator
from fedlearn.schedule import Schedule
from fedlearn.types import Scenario

Accuracies = np.ndarray[Any, np.dtype[np.float64]]


class Scoreboard:
    """Fills a[i, j] and a_k[i, j] and sums them up.

    Attributes:
        baseline: (T,) accuracy of the initial model on each experience, the mean over the clients.
        accuracy: (T, T) a[i, j]; NaN in row i until every client has finished its experience i.
        client_accuracy: a_k[i, j] of each client; NaN where it has none.
        client: How the latest global model serves the clients, each on all it has held out, as of
            the last experience finished by all: see `metrics.client_summary`.
    """

    def __init__(
        self, scenario: Scenario, schedule: Schedule, model: nn.Module, evaluator: Evaluator
    ) -> None:
        """Make an empty scoreboard.

        Args:
            scenario: Holds the test sets.
            schedule: Says who has entered and finished what.
            model: A model to load weights into; used for nothing else.
            evaluator: Scores it.
        """
        self._tests = scenario.test_stream()
        self._orders = scenario.orders.numpy()
        self._schedule = schedule
        self._model = model
        self._evaluator = evaluator
        length = scenario.num_experiences
        self.baseline: Accuracies = np.full(length, np.nan)
        self.accuracy: Accuracies = np.full((length, length), np.nan)
        self.client_accuracy: dict[int, Accuracies] = {}
        self.client: dict[str, float] = {}
        self._means = self.accuracy.copy()  # over those who have finished so far
        self._finished = [0] * length
        self._told: list[dict[int, tuple[float, float]]] = [{} for _ in range(length)]

    def test(
        self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor], topics: Iterable[int]
    ) -> tuple[Accuracies, Accuracies]:
        """Return a model's accuracy (M,) and mean loss (M,) by topic, NaN where not asked for."""
        records.load(self._model, parameters, buffers)
        accuracy, loss = np.full((2, len(self._tests)), np.nan)
        asked = list(topics)
        scores = self._evaluator.scores(self._model, [self._tests[index] for index in asked])
        for index, score in zip(asked, scores, strict=True):
            accuracy[index], loss[index] = score.accuracy, score.loss / max(score.total, 1)
        return accuracy, loss

    def topics(self, server_round: int | None = None) -> list[int]:
        """Return the topics that some client has entered by a round, ascending; all without one."""
        if server_round is None:
            return list(range(len(self._tests)))
        return [int(topic) for topic in np.unique(self._orders[self._seen(server_round)])]

    def of_experiences(self, by_topic: Accuracies) -> Accuracies:
        """Return (T,): the mean over the clients of what `by_topic` (M,) says of an experience."""
        return _mean(by_topic[self._orders])

    def of_seen(self, by_topic: Accuracies, server_round: int) -> float:
        """Return the mean over the clients of the mean over what each has entered by a round.

        Somebody must have entered something.
        """
        seen = self._seen(server_round)
        counts = seen.sum(1)
        sums = np.where(seen, by_topic[self._orders], 0.0).sum(1)
        return float(_mean(sums[counts > 0] / counts[counts > 0]))

    def _seen(self, server_round: int) -> Any:
        entered = self._schedule.entered(server_round)
        return np.arange(self._orders.shape[1]) < entered[:, None]

    def finish(self, experience: int, clients: Sequence[int], by_topic: Accuracies) -> bool:
        """Book that `clients` have finished `experience`; return whether all now have.

        Args:
            experience: i.
            clients: At least one.
            by_topic: (M,) the present global model's accuracy.
        """
        now = by_topic[self._orders[list(clients)]]
        before = self._means[experience] if self._finished[experience] else now[0]
        self._finished[experience] += len(clients)
        self._means[experience] = before + (now - before).sum(0) / self._finished[experience]
        if self._finished[experience] < len(self._orders):
            return False
        self.accuracy[experience] = self._means[experience]
        told = self._told[experience]
        if told:
            accuracies, totals = zip(*(told[client_id] for client_id in sorted(told)), strict=True)
            self.client = metrics.client_summary(np.asarray(accuracies), np.asarray(totals))
        return True

    def read_clients(self, experience: int, replies: Mapping[int, Message]) -> None:
        """Take in what clients measured on their held-out samples at the end of `experience`.

        Args:
            experience: The experience that they have just finished.
            replies: Sound evaluate replies by client id.
        """
        for client_id in sorted(replies):
            told = records.metrics_of(replies[client_id])
            matrix = self.client_accuracy.setdefault(
                client_id, np.full(self.accuracy.shape, np.nan)
            )
            matrix[experience] = np.asarray(told[records.ACCURACY], dtype=np.float64)
            total = float(cast(float, told[records.NUM_EXAMPLES]))
            if total > 0:
                share = float(cast(float, told[records.CORRECT])) / total
                self._told[experience][client_id] = share, total

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return copies of what a later `restore` needs: tensors, and JSON values."""
        measured = {
            "baseline": self.baseline,
            "accuracy": self.accuracy,
            "means": self._means,
            "client_accuracy": np.array(list(self.client_accuracy.values())),
        }
        values = {
            "clients": list(self.client_accuracy),
            "client": dict(self.client),
            "finished": list(self._finished),
            "told": [dict(each) for each in self._told],
        }
        return {name: torch.tensor(each) for name, each in measured.items()}, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        measured = {name: np.array(tensor.numpy()) for name, tensor in tensors.items()}
        self.baseline, self.accuracy = measured["baseline"], measured["accuracy"]
        self._means = measured["means"]
        clients = zip(values["clients"], measured["client_accuracy"], strict=True)
        self.client_accuracy = {client_id: np.array(matrix) for client_id, matrix in clients}
        self.client, self._finished = dict(values["client"]), list(values["finished"])
        self._told = [
            {int(client_id): (share, total) for client_id, (share, total) in each.items()}
            for each in values["told"]
        ]

    @property
    def learned(self) -> int:
        """Experiences that all clients have finished, from the first on."""
        open_ones = [at for at, row in enumerate(self.accuracy) if np.isnan(row).all()]
        return open_ones[0] if open_ones else len(self.accuracy)

    def continual(self, learned: int) -> dict[str, float | None]:
        """Return the continual metrics over the first `learned` experiences."""
        return metrics.continual_summary(self.accuracy[:learned, :learned], self.baseline[:learned])

    def row(self, experience: int) -> dict[str, Any]:
        """Return the sections of an experience event."""
        return {
            "accuracy": jsonable(self.accuracy[experience]),
            "cl": self.continual(experience + 1),
            "client": self.client,
            "client_accuracy": {
                str(client_id): jsonable(self.client_accuracy[client_id][experience])
                for client_id in sorted(self.client_accuracy)
            },
        }

    def summary(self) -> dict[str, Any]:
        """Return the sections of a run's summary."""
        return {
            "accuracy_matrix": [jsonable(row) for row in self.accuracy],
            "baseline": jsonable(self.baseline),
            "cl": self.continual(self.learned) if self.learned else {},
            "client": self.client,
            "client_accuracy_matrix": {
                str(client_id): [jsonable(row) for row in self.client_accuracy[client_id]]
                for client_id in sorted(self.client_accuracy)
            },
        }


def _mean(values: Accuracies) -> Accuracies:
    """Return the mean over the first axis: of equals, what they all are, to the last bit."""
    return cast(Accuracies, values[0] + (values - values[0]).mean(0))


def jsonable(values: Accuracies) -> list[float | None]:
    """Return the values as a list, None for NaN."""
    return [None if math.isnan(value) else float(value) for value in values]
