import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from federation import FEATURES, make_scenario
from sklearn.metrics import r2_score
from torch import nn
from torch.nn import functional as F

from fedlearn.evaluation import BATCH, Evaluator
from fedlearn.heads import HIDDEN, companion_table, head_table, hide
from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Experience, Samples

CLASSES = 4


class Echo(nn.Module):
    """Its logits are its inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def _experience(logits, labels, task_label=0, transform=None):
    samples = Samples(torch.tensor(logits), torch.tensor(labels))
    return Experience(0, samples, torch.arange(len(labels)), (0,), task_label, transform)


def test_accuracy_and_loss_equal_hand_arithmetic():
    experience = _experience([[2.0, 0, 0, 0], [0, 0, 1, 0], [0, 3, 0, 0]], [0, 3, 1])
    score = Evaluator(CLASSES, None).score(Echo(), experience)
    assert (score.correct, score.total) == (2, 3)
    assert score.accuracy == pytest.approx(2 / 3)
    by_hand = math.log(math.e**2 + 3) - 2 + math.log(math.e + 3) - 0 + math.log(math.e**3 + 3) - 3
    assert score.loss == pytest.approx(by_hand, rel=1e-5)


def test_a_regression_is_scored_by_the_variance_it_explains():
    x, y = torch.randn(40, 3), torch.randn(40, 3)
    y = (y - y.mean(0)) / y.std(0, correction=0)
    both = Experience(0, Samples(x, y), torch.arange(40), (0, 1, 2))
    parts = [replace(both, rows=both.rows[:7]), replace(both, rows=both.rows[7:])]
    evaluator = Evaluator(3, None)
    whole, *scores = (evaluator.score(Echo(), each) for each in (both, *parts))
    assert whole.accuracy == pytest.approx(r2_score(y, x), rel=1e-5)
    assert whole.loss == pytest.approx(40 * float(F.mse_loss(x, y)), rel=1e-5)
    assert whole.correct == pytest.approx(sum(score.correct for score in scores), rel=1e-12)


def test_a_head_hides_the_classes_of_other_tasks():
    experience = _experience([[9.0, 0, 1, 2]], [3], task_label=1)
    heads = ((0, 1), (2, 3))
    assert Evaluator(CLASSES, None).score(Echo(), experience).correct == 0
    assert Evaluator(CLASSES, heads).score(Echo(), experience).correct == 1


def test_an_empty_experience_has_no_accuracy():
    empty = Experience(
        0,
        Samples(torch.zeros(1, CLASSES), torch.zeros(1, dtype=torch.int64)),
        torch.empty(0, dtype=torch.int64),
        (0,),
    )
    score = Evaluator(CLASSES, None).score(Echo(), empty)
    assert score.total == 0
    assert math.isnan(score.accuracy)


def test_the_domain_is_applied_before_the_model():
    experience = _experience([[5.0, 0, 0, 0]], [3], transform=lambda x: x.flip(1))
    assert Evaluator(CLASSES, None).score(Echo(), experience).correct == 1


def test_many_batches_count_every_sample_once():
    total = 2 * BATCH + 3
    samples = Samples(torch.eye(CLASSES)[torch.arange(total) % CLASSES], torch.zeros(total).long())
    experience = Experience(0, samples, torch.arange(total), (0,))
    score = Evaluator(CLASSES, None).score(Echo(), experience)
    assert score.total == total
    assert score.correct == sum(1 for index in range(total) if index % CLASSES == 0)


@pytest.mark.parametrize("threads", [2, 5])
def test_scores_are_the_same_with_any_number_of_threads(threads):
    draws = torch.Generator().manual_seed(0)
    total = 3 * BATCH + 7
    samples = Samples(
        torch.randn(total, CLASSES, generator=draws),
        torch.randint(CLASSES, (total,), generator=draws),
    )
    whole = Experience(0, samples, torch.arange(total), (0,))
    flipped = replace(whole, transform=partial(torch.flip, dims=(1,)))
    experiences = [whole, flipped, replace(whole, rows=torch.arange(0, total, 3))]
    with borrowed_global_rng(1):
        model = nn.Sequential(nn.Linear(CLASSES, 30), nn.Dropout(0.5), nn.Linear(30, CLASSES))
    expected = Evaluator(CLASSES, None).scores(model, experiences)
    assert Evaluator(CLASSES, None, threads).scores(model, experiences) == expected
    assert len({score.correct for score in expected}) == len(expected)
    assert not any(each.requires_grad for each in Watched.of(model, samples, threads))


class Watched(nn.Module):
    """Keeps its outputs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, []

    def forward(self, x):
        self.seen.append(self.model(x))
        return self.seen[-1]

    @classmethod
    def of(cls, model, samples, threads):
        watched = cls(model)
        whole = Experience(0, samples, torch.arange(len(samples)), (0,))
        Evaluator(CLASSES, None, threads).score(watched, whole)
        return watched.seen


def test_what_a_thread_raises_is_raised():
    experience = _experience([[1.0, 2, 3, 4]], [3], transform=lambda x: x.view(-1, 7))
    with pytest.raises(RuntimeError, match="shape"):
        Evaluator(CLASSES, None, 2).score(Echo(), experience)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_buffers_of_the_model_stay(training):
    model = nn.Sequential(nn.BatchNorm1d(CLASSES), nn.Dropout(0.5)).train(training)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    Evaluator(CLASSES, None).score(model, _experience([[1.0, 2, 3, 4]], [3]))
    assert model.training is training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_tables_of_heads_and_companions():
    assert head_table([(0, 2), (1,)], 3).tolist() == [[True, False, True], [False, True, False]]
    assert companion_table([(0, 2), (1,)], 3).tolist() == [
        [True, False, True],
        [False, True, False],
        [True, False, True],
    ]


def test_hidden_outputs_have_no_probability_no_gradient_and_a_finite_norm():
    logits = torch.randn(2, CLASSES, requires_grad=True)
    hidden = hide(logits, torch.tensor([True, True, False, False]))
    assert (hidden.softmax(1)[:, 2:] == 0).all()
    assert hidden[0, 2] == HIDDEN
    assert torch.isfinite(hidden.norm())
    hidden.log_softmax(1)[:, 0].sum().backward()
    assert (logits.grad[:, 2:] == 0).all()
    assert (logits.grad[:, :2] != 0).any()


def _nobody(x: torch.Tensor) -> torch.Tensor:
    return -x


def test_what_clients_set_aside_is_tallied_together_as_one_by_one():
    scenario = make_scenario(num_clients=5, empty={(3, 0)})
    topics = (scenario.topics[0], replace(scenario.topics[1], transform=_nobody))
    views = (None, None, _nobody, None, _nobody)
    with borrowed_global_rng(1):
        model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(), nn.Linear(8, CLASSES))
    for kind, heads in (("class", None), ("task", ((0, 1), (2, 3)))):
        one = replace(scenario, kind=kind, topics=topics, views=views)
        evaluator = Evaluator(CLASSES, heads)
        client_ids = np.array([4, 0, 2, 3])
        correct, totals = evaluator.tally(model, one, client_ids)
        assert model.training
        for at, client_id in enumerate(client_ids.tolist()):
            scores = [
                evaluator.score(model, one.held_out_experience(client_id, index))
                for index in range(one.num_experiences)
            ]
            assert totals[at].tolist() == [score.total for score in scores]
            assert correct[at].tolist() == [score.correct for score in scores]
    assert totals.min() == 0
    assert 0 < correct.sum() < totals.sum()
