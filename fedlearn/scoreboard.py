"""The scoreboard: what the global model knew after each experience, here and at the clients."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Message
from torch import Tensor, nn

from fedlearn import metrics, records
from fedlearn.evaluation import Evaluator
from fedlearn.types import Scenario

Accuracies = np.ndarray[Any, np.dtype[np.float64]]


class Scoreboard:
    """Fills a[i, j] and a_k[i, j] and sums them up.

    Attributes:
        baseline: (T,) accuracy of the initial model on each experience.
        accuracy: (T, T) accuracy on experience j's test set after learning i; NaN until measured.
        client_accuracy: (T, T) of each client on its own held-out samples; NaN where it has none.
        client: How the latest global model serves the clients, each on all it has held out:
            mean, spread and fairness (see `metrics.client_summary`).
    """

    def __init__(self, scenario: Scenario, model: nn.Module, evaluator: Evaluator) -> None:
        """Make an empty scoreboard.

        Args:
            scenario: Holds the test sets.
            model: A model to load weights into; used for nothing else.
            evaluator: Scores it.
        """
        self._tests = scenario.test_stream()
        self._model = model
        self._evaluator = evaluator
        length = scenario.num_experiences
        self.baseline: Accuracies = np.full(length, np.nan)
        self.accuracy: Accuracies = np.full((length, length), np.nan)
        self.client_accuracy: dict[int, Accuracies] = {}
        self.client: dict[str, float] = {}

    def test(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        experiences: Iterable[int],
    ) -> tuple[Accuracies, Accuracies]:
        """Return a model's accuracy (T,) and mean loss (T,), NaN where not asked for."""
        records.load(self._model, parameters, buffers)
        accuracy, loss = np.full((2, len(self._tests)), np.nan)
        for index in experiences:
            score = self._evaluator.score(self._model, self._tests[index])
            accuracy[index], loss[index] = score.accuracy, score.loss / max(score.total, 1)
        return accuracy, loss

    def read_clients(self, experience: int, replies: Mapping[int, Message]) -> None:
        """Take in what clients measured on their held-out samples at the end of `experience`.

        Args:
            experience: The experience just learned.
            replies: Sound evaluate replies by client id.
        """
        pooled: dict[int, tuple[float, float]] = {}
        for client_id in sorted(replies):
            told = records.metrics_of(replies[client_id])
            accuracy = np.asarray(told[records.ACCURACY], dtype=np.float64)
            matrix = self.client_accuracy.setdefault(
                client_id, np.full(self.accuracy.shape, np.nan)
            )
            matrix[experience] = accuracy
            total = float(cast(float, told[records.NUM_EXAMPLES]))
            if total > 0:
                pooled[client_id] = float(cast(float, told[records.CORRECT])) / total, total
        if pooled:
            accuracies, totals = zip(*pooled.values(), strict=True)
            self.client = metrics.client_summary(np.asarray(accuracies), np.asarray(totals))

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
                str(client_id): jsonable(matrix[experience])
                for client_id, matrix in self.client_accuracy.items()
            },
        }

    def summary(self, learned: int) -> dict[str, Any]:
        """Return the sections of a run's summary after `learned` experiences."""
        return {
            "accuracy_matrix": [jsonable(row) for row in self.accuracy],
            "baseline": jsonable(self.baseline),
            "cl": self.continual(learned) if learned else {},
            "client": self.client,
            "client_accuracy_matrix": {
                str(client_id): [jsonable(row) for row in matrix]
                for client_id, matrix in self.client_accuracy.items()
            },
        }


def jsonable(values: Accuracies) -> list[float | None]:
    """Return the values as a list, None for NaN."""
    return [None if math.isnan(value) else float(value) for value in values]
