"""Evaluation: a model's accuracy and loss on experiences, each in its own domain and head.

The accuracy of a regression is R^2, the share of the targets' variance that is explained: each
sample counts for ``1 - mean_k (prediction_k - target_k)^2``, whose mean it is, because targets have
variance 1 over the training samples. So it adds up exactly over samples, experiences and clients,
as the share of correct answers does. It is at most 1, 0 for a model that always answers with the
mean, and negative for a worse one. (scikit-learn's ``r2_score`` divides by the variance of the
tested samples instead, which differs from one experience and one client to the next.)
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.heads import head_table, hide
from fedlearn.turns import Floats, Integers
from fedlearn.types import Experience, Scenario

BATCH = 2048
"""Samples a forward pass: large enough to amortise its overhead, small enough for any image."""

Do = Callable[[Callable[[], None]], object]
"""Has something done, at once or before long."""


@dataclass(frozen=True)
class Score:
    """How a model did on one experience.

    Attributes:
        correct: Samples classified correctly; of a regression, the sum of what each counts for.
        loss: Sum of their cross-entropies; of a regression, of their squared errors.
        total: Samples seen.
    """

    correct: float
    loss: float
    total: int

    @property
    def accuracy(self) -> float:
        """Share classified correctly, in [0, 1], or R^2, at most 1; NaN without samples."""
        return self.correct / self.total if self.total else float("nan")


class Evaluator:
    """Scores a model on experiences; the model's parameters, buffers and mode stay as they were."""

    def __init__(
        self, num_classes: int, heads: Sequence[Sequence[int]] | None, threads: int = 1
    ) -> None:
        """Make an evaluator.

        Args:
            num_classes: C.
            heads: Classes of each head by task label, or None for one head over all classes.
            threads: How many batches go through the model at the same time, which must not mind;
                scores are the same with any number.
        """
        self._threads = threads
        self._heads = head_table(heads, num_classes) if heads is not None else None

    def score(self, model: nn.Module, experience: Experience) -> Score:
        """Return the model's score on every sample of `experience`."""
        return self.scores(model, [experience])[0]

    def scores(self, model: nn.Module, experiences: Sequence[Experience]) -> list[Score]:
        """Return the model's score on each of `experiences`, of one store.

        Samples that several of them share, in the same domain and head, go through the model once.
        """
        was_training = model.training
        model.eval()
        alike: dict[tuple[int, int], list[int]] = {}
        for at, each in enumerate(experiences):
            alike.setdefault(self._way(each), []).append(at)
        asked: list[tuple[list[int], Tensor, Tensor, Tensor]] = []
        with self._doing() as do:
            for places in alike.values():
                rows = torch.unique(torch.cat([experiences[at].rows for at in places]))
                asked.append(
                    (places, rows, *self._of_rows(model, experiences[places[0]], rows, do))
                )
        model.train(was_training)
        found: dict[int, Score] = {}
        for places, rows, correct, loss in asked:
            for at in places:
                own = torch.searchsorted(rows, experiences[at].rows)
                gained, lost = float(correct[own].sum()), float(loss[own].sum())
                found[at] = Score(gained, lost, len(own))
        return [found[at] for at in range(len(experiences))]

    def tally(
        self, model: nn.Module, scenario: Scenario, client_ids: Integers
    ) -> tuple[Floats, Integers]:
        """Return how the model does on what clients have set aside.

        Samples of all clients and experiences that are in the same domain and head go through the
        model together.

        Args:
            model: Any.
            scenario: Whose clients.
            client_ids: (n,).

        Returns:
            (n, T) what the samples of each experience count for, as `Score.correct`, and (n, T) how
            many there are.
        """
        held = scenario.held_out
        begins = held.begins.numpy()[client_ids].astype(np.int64)
        totals = held.ends.numpy()[client_ids] - begins
        correct = np.zeros(totals.shape)
        alike: dict[tuple[int, int], tuple[Experience, list[tuple[int, int]]]] = {}
        for at, index in np.argwhere(totals > 0).tolist():
            one = scenario.held_out_experience(int(client_ids[at]), index)
            alike.setdefault(self._way(one), (one, []))[1].append((at, index))
        was_training = model.training
        model.eval()
        asked: list[tuple[list[tuple[int, int]], list[int], Tensor, Tensor]] = []
        with self._doing() as do:
            for one, pairs in alike.values():
                rows = [held.rows[begins[pair] : begins[pair] + totals[pair]] for pair in pairs]
                unique, places = torch.unique(torch.cat(rows), return_inverse=True)
                gained, _ = self._of_rows(model, one, unique, do)
                asked.append((pairs, [len(each) for each in rows], places, gained))
        for pairs, sizes, places, gained in asked:
            sums = [float(part.sum()) for part in torch.split(gained[places], sizes)]
            correct[tuple(np.array(pairs).T)] = sums
        model.train(was_training)
        return correct, totals.astype(np.int64)

    def _way(self, experience: Experience) -> tuple[int, int]:
        """Return what tells ways through the model apart: the domain, and the head."""
        head = experience.task_label if self._heads is not None else 0
        return id(experience.transform), head

    def _of_rows(
        self, model: nn.Module, one: Experience, rows: Tensor, do: Do
    ) -> tuple[Tensor, Tensor]:
        """Have found what each of `rows` (n,), in the way of `one`, counts for, and its loss.

        Both are on the CPU, and there once all is done.
        """
        correct, loss = torch.zeros((2, len(rows)), dtype=torch.float64)
        device = next(model.parameters(), one.samples.x).device

        @torch.no_grad()
        def test(part: slice) -> None:
            x, y = (each.to(device) for each in one.gather(rows[part]))
            gained, lost = self._outcomes(model(x), y, one)
            correct[part], loss[part] = gained.cpu(), lost.cpu()

        for start in range(0, len(rows), BATCH):
            do(partial(test, slice(start, start + BATCH)))
        return correct, loss

    @contextmanager
    def _doing(self) -> Iterator[Do]:
        """Yield what has things done: all are, when it ends.

        In other threads torch uses as many threads as in this one, or the last bits could differ.
        """
        if self._threads == 1:
            yield lambda task: task()
            return
        tasks: list[Future[None]] = []
        inner = torch.get_num_threads()
        with ThreadPoolExecutor(self._threads, "test", torch.set_num_threads, (inner,)) as pool:
            yield lambda task: tasks.append(pool.submit(task))
            for each in tasks:
                each.result()

    def _outcomes(
        self, outputs: Tensor, y: Tensor, experience: Experience
    ) -> tuple[Tensor, Tensor]:
        """Return what each sample counts for (batch,), and its loss (batch,)."""
        if experience.samples.regression:
            errors = (outputs - y).double().square().mean(1)
            return 1 - errors, errors
        if self._heads is not None:
            outputs = hide(outputs, self._heads[experience.task_label].to(outputs.device))
        return (outputs.argmax(1) == y).double(), F.cross_entropy(outputs, y, reduction="none")
