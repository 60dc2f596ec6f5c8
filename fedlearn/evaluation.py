"""Evaluation: a model's accuracy and loss on experiences, each in its own domain and head.

The accuracy of a regression is R^2, the share of the targets' variance that is explained: each
sample counts for ``1 - mean_k (prediction_k - target_k)^2``, whose mean it is, because targets have
variance 1 over the training samples. So it adds up exactly over samples, experiences and clients,
as the share of correct answers does. It is at most 1, 0 for a model that always answers with the
mean, and negative for a worse one. (scikit-learn's ``r2_score`` divides by the variance of the
tested samples instead, which differs from one experience and one client to the next.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.heads import head_table, hide
from fedlearn.turns import Floats, Integers
from fedlearn.types import Experience, Scenario

BATCH = 2048
"""Samples a forward pass: large enough to amortise its overhead, small enough for any image."""


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

    def __init__(self, num_classes: int, heads: Sequence[Sequence[int]] | None) -> None:
        """Make an evaluator.

        Args:
            num_classes: C.
            heads: Classes of each head by task label, or None for one head over all classes.
        """
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
        found: dict[int, Score] = {}
        for places in alike.values():
            members = [experiences[at] for at in places]
            for at, score in zip(places, self._together(model, members), strict=True):
                found[at] = score
        model.train(was_training)
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
        for one, pairs in alike.values():
            rows = [held.rows[begins[pair] : begins[pair] + totals[pair]] for pair in pairs]
            unique, places = torch.unique(torch.cat(rows), return_inverse=True)
            gained, _ = self._of_rows(model, one, unique)
            sizes = [len(each) for each in rows]
            sums = [float(part.sum()) for part in torch.split(gained[places], sizes)]
            correct[tuple(np.array(pairs).T)] = sums
        model.train(was_training)
        return correct, totals.astype(np.int64)

    def _way(self, experience: Experience) -> tuple[int, int]:
        """Return what tells ways through the model apart: the domain, and the head."""
        head = experience.task_label if self._heads is not None else 0
        return id(experience.transform), head

    def _together(self, model: nn.Module, experiences: Sequence[Experience]) -> list[Score]:
        """Return the scores on experiences of the same domain and head."""
        rows = torch.unique(torch.cat([each.rows for each in experiences]))
        correct, loss = self._of_rows(model, experiences[0], rows)
        scores = []
        for each in experiences:
            places = torch.searchsorted(rows, each.rows)
            gained, lost = correct[places].sum(), loss[places].sum()
            scores.append(Score(float(gained), float(lost), len(each)))
        return scores

    @torch.no_grad()
    def _of_rows(self, model: nn.Module, one: Experience, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each of `rows` (n,), in the way of `one`, counts for and its loss, on CPU."""
        correct, loss = torch.zeros((2, len(rows)), dtype=torch.float64)
        device = next(model.parameters(), one.samples.x).device
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            x, y = (each.to(device) for each in one.gather(rows[part]))
            gained, lost = self._outcomes(model(x), y, one)
            correct[part], loss[part] = gained.cpu(), lost.cpu()
        return correct, loss

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
