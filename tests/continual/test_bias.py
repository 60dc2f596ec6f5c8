"""BiC: a correction that mends a bias, that no sample was trained for, and that comes in time."""

import math
from dataclasses import replace

import pytest
import torch
from avalanche.training.plugins import BiCPlugin
from lone_client import SGD, TRAINING, accuracy, gap, live, mlp, model_for, split, turn_at, twin
from test_methods import LINEAR, linear, tiny_stream
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.screening import average_buffers
from fedlearn.seeding import generator
from fedlearn.types import Experience, State
from strategies.continual.avalanche.bic import bic
from strategies.continual.avalanche.networks.bias import RIDGE, BiasCorrected, fit_correction
from strategies.continual.reservoir import labels_of

NEW = torch.tensor([2, 3])


def rows_of(state: State, name: str) -> set[tuple[int, ...]]:
    """Return (experience, row) of what the reservoir called `name` holds."""
    return {tuple(row) for row in state.tensors[f"{name}/rows"].tolist()}


def biased_logits(scale: float, shift: float, size: int = 1000) -> tuple[Tensor, Tensor]:
    """Return logits of 4 classes, right but for a scale and shift of the last two, and labels."""
    logits = 3 * torch.randn(size, 4, generator=generator(0, "logits"))
    labels = logits.softmax(1).multinomial(1, generator=generator(0, "labels")).squeeze(1)
    logits[:, NEW] = scale * logits[:, NEW] + shift
    return logits, labels


def share_right(logits: Tensor, labels: Tensor) -> float:
    """Return the accuracy."""
    return float((logits.argmax(1) == labels).float().mean())


# The correction


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 4.0), (2.0, 3.0), (0.5, -2.0)])
def test_the_correction_undoes_an_artificial_bias(scale: float, shift: float) -> None:
    good, labels = biased_logits(1.0, 0.0)
    logits, _ = biased_logits(scale, shift)
    alpha, beta = fit_correction(logits, labels, NEW).tolist()
    assert alpha * scale == pytest.approx(1, abs=0.2)
    corrected = logits.clone()
    corrected[:, NEW] = alpha * logits[:, NEW] + beta
    assert share_right(logits, labels) < share_right(good, labels) - 0.05
    assert share_right(corrected, labels) > share_right(good, labels) - 0.01


def test_what_has_no_bias_is_hardly_corrected() -> None:
    alpha, beta = fit_correction(*biased_logits(1.0, 0.0), NEW).tolist()
    assert alpha == pytest.approx(1, abs=0.2)
    assert beta == pytest.approx(0, abs=0.2)


def test_the_correction_is_where_the_gradient_vanishes() -> None:
    """Written out: sum over samples of weight * (p - target) on the new logits, plus the pull."""
    logits, labels = biased_logits(2.0, 3.0, 40)
    labels[:12] = 0  # classes of different sizes count the same
    alpha, beta = fit_correction(logits, labels, NEW)
    logits = logits.double()
    corrected = logits.clone()
    corrected[:, NEW] = alpha * logits[:, NEW] + beta
    residual = (corrected.softmax(1) - F.one_hot(labels, 4))[:, NEW]
    weight = (1 / torch.bincount(labels).double()[labels] / 4)[:, None]
    to_alpha = (weight * residual * logits[:, NEW]).sum() + RIDGE / 40 * (alpha - 1)
    to_beta = (weight * residual).sum() + RIDGE / 40 * beta
    assert float(to_alpha) == pytest.approx(0, abs=1e-5)
    assert float(to_beta) == pytest.approx(0, abs=1e-5)


def test_two_samples_cannot_run_away_with_the_correction() -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    correction = fit_correction(logits, torch.tensor([0, 2]), NEW)
    assert torch.allclose(correction, torch.tensor([1.0, 0.0]).double(), atol=0.1)


def test_only_predictions_of_the_given_classes_are_corrected() -> None:
    model = BiasCorrected(linear(), 4)
    x = torch.randn(5, 3, generator=generator(1, "x"))
    raw = model.model(x)
    assert torch.equal(model.eval()(x), raw)
    model.correct(torch.tensor([0]), torch.tensor(9.0), torch.tensor(9.0))
    model.correct(NEW, torch.tensor(0.5), torch.tensor(-1.0))
    assert torch.equal(model.train()(x), raw)
    expected = torch.cat([raw[:, :2], 0.5 * raw[:, 2:] - 1], dim=1)
    assert torch.allclose(model.eval()(x), expected)


# Held-out samples


@pytest.mark.parametrize("size", [2, 5, 20, 100])
def test_memory_is_bounded_those_held_out_included(size: int) -> None:
    strategy, stream = bic(training=TRAINING, memory_per_client=size), split(4)
    for index, report in enumerate(live(strategy, model_for(strategy), stream, rounds=2)):
        memory, validation = (rows_of(report.state, name) for name in ("memory", "validation"))
        assert len(memory) + len(validation) <= size
        assert not memory & validation
        assert {experience for experience, _ in memory | validation} <= set(range(index // 2))
    assert len(memory) == size - max(1, round(0.4 * size))


def test_memory_is_shared_equally_by_the_classes() -> None:
    settings = {"memory_per_client": 32, "validation_share": 0.25}
    strategy, stream = bic(training=TRAINING, **settings), split(3)
    state = live(strategy, model_for(strategy), stream)[-1].state
    for name, each in (("memory", 6), ("validation", 2)):
        labels = labels_of(stream.__getitem__, state.tensors[f"{name}/rows"])
        assert torch.bincount(labels).tolist() == [each] * 4


def test_no_sample_that_the_correction_is_fitted_to_was_ever_trained_on() -> None:
    strategy, stream = bic(training=TRAINING, memory_per_client=20), split(3)
    trained: set[tuple[float, ...]] = set()
    model = model_for(strategy)
    model.model.register_forward_pre_hook(
        lambda module, inputs: (
            trained.update(tuple(x.tolist()) for x in inputs[0])
            if model.training and module.training
            else None
        )
    )
    state = live(strategy, model, stream, rounds=2)[-1].state
    rows = state.tensors["validation/rows"]
    assert len(rows) == 8
    assert not {tuple(x.tolist()) for x in stream[0].samples.x[rows[:, 1]]} & trained
    assert len(trained) == 3 * 70 - 8 - 4 - 2  # 8 held out, shared by 2, then 4, then 6 classes


def test_few_samples_are_all_trained_on() -> None:
    strategy, stream = bic(training=TRAINING), split(2, size=4)  # 2 of each class
    oracle = strategy._strategy(model_for(strategy), stream.__getitem__, turn_at(0))
    oracle.experience = strategy._seen(stream[0], stream.__getitem__)
    assert len(oracle.epoch_tensors()[0]) == 4


# In turns


def biased_turns() -> tuple[nn.Module, list[Experience], list[State]]:
    """Return a model that went through three experiences, and the states on the way."""
    stream = split(3)
    strategy = bic(training=TRAINING, memory_per_client=40)
    model = model_for(strategy)
    return model, stream, [report.state for report in live(strategy, model, stream)]


def test_the_newest_classes_are_corrected_by_the_end_of_every_turn() -> None:
    strategy, stream = bic(training=TRAINING, memory_per_client=40), split(3)
    model, state, previous = model_for(strategy), State(), None
    for clock in range(6):
        experience = stream[clock // 2]
        turn = turn_at(clock, previous=previous if clock % 2 == 0 else None)
        state = strategy.train_turn(model, experience, stream.__getitem__, turn, state).state
        previous, present = experience, list(experience.classes)
        others = [label for label in range(10) if label not in present]
        assert torch.equal(model.alpha[others], torch.ones(8))
        assert torch.equal(model.beta[others], torch.zeros(8))
        assert len(set(model.alpha[present].tolist())) == 1
        corrected = float(model.beta[present][0]) != 0
        assert corrected is (clock >= 2)  # from the second experience on, at once


def test_the_correction_helps_with_samples_that_nobody_saw() -> None:
    strategy, stream = bic(training=TRAINING, memory_per_client=40), split(4)
    model = model_for(strategy)
    live(strategy, model, stream, rounds=5, epochs=2, batch_size=8)
    unseen = [replace(part, rows=part.rows[70:]) for part in split(4, size=None)]
    assert float(model.beta[6]) < 0  # the new classes were too loud
    assert accuracy(model, unseen) > accuracy(model.model, unseen) + 0.1


def test_fitting_moves_no_weight_and_is_the_same_again() -> None:
    strategy, stream = bic(training=TRAINING, memory_per_client=40), split(2)
    model = model_for(strategy)
    state = live(strategy, model, stream, rounds=2)[-1].state
    oracle = strategy._strategy(model, stream.__getitem__, turn_at(9))
    strategy._recall(oracle, state)
    oracle.experience = strategy._seen(stream[1], stream.__getitem__)
    before = twin(model)
    oracle.end_turn()
    assert gap(model, before) == 0.0
    with torch.no_grad():
        model.alpha.fill_(7)
    oracle.end_turn()
    assert gap(model, before) == 0.0


def test_a_client_with_no_past_passes_on_the_correction_that_it_received() -> None:
    strategy, stream = bic(training=TRAINING), split(3)
    nothing = replace(stream[0], rows=stream[0].rows[:1])
    model = model_for(strategy)
    state = live(strategy, model, [nothing])[-1].state
    model.correct(torch.tensor([2, 3]), torch.tensor(0.7), torch.tensor(-0.4))
    turn = turn_at(1, previous=nothing)
    stream[0] = nothing
    strategy.train_turn(model, stream[1], stream.__getitem__, turn, state)
    assert model.alpha.tolist() == pytest.approx([1, 1, 0.7, 0.7, 1, 1, 1, 1, 1, 1])
    assert model.beta.tolist() == pytest.approx([0, 0, -0.4, -0.4, 0, 0, 0, 0, 0, 0])


def test_the_cohorts_corrections_are_averaged_by_samples() -> None:
    buffers = {
        client_id: {"alpha": torch.full((4,), alpha)} for client_id, alpha in ((0, 0.5), (1, 0.9))
    }
    averaged = average_buffers(buffers, {0: 30.0, 1: 10.0})["alpha"]
    assert torch.allclose(averaged, torch.full((4,), 0.6))


def test_the_loss_is_the_papers() -> None:
    """One step in experience 1: two past classes, two new ones; memory holds some of the past."""
    settings = {"memory_per_client": 4, "validation_share": 0.25, "temperature": 3.0}
    strategy, stream = bic(training=LINEAR, **settings), tiny_stream()
    own = strategy.equip(linear())
    state = strategy.train_turn(own, stream[0], stream.__getitem__, turn_at(0), State()).state
    received, start = strategy.equip(linear(0.5)), linear(0.5)
    turn = turn_at(1, previous=stream[0])
    report = strategy.train_turn(received, stream[1], stream.__getitem__, turn, state)

    past = stream[0].samples.x, stream[0].samples.y
    rows = report.state.tensors["memory/rows"][:, 1]
    assert len(rows) == 3
    x, y = stream[1].gather()
    x, y = torch.cat([x, past[0][rows]]), torch.cat([y, past[1][rows]])
    teacher = (own.model(x)[:, :2] / 3).softmax(1).detach()  # no correction in experience 0
    output = start(x)
    distilled = -(teacher * (output[:, :2] / 3).log_softmax(1)).sum(1).mean()
    expected = 0.5 * F.cross_entropy(output, y) + 0.5 * distilled
    assert report.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    SGD(start.parameters()).step()
    assert gap(received.model, start) < 1e-6


def test_the_teacher_is_corrected() -> None:
    model, stream, states = biased_turns()
    strategy = bic(training=TRAINING, memory_per_client=40)
    turn = turn_at(9, previous=stream[2])
    more = [*stream, replace(stream[0], index=3, classes=(0, 1))]
    state = strategy.train_turn(twin(model), more[3], more.__getitem__, turn, states[-1]).state
    assert torch.equal(state.tensors["teacher/alpha"], model.alpha)
    assert torch.equal(state.tensors["teacher/beta"], model.beta)
    assert float(model.beta[4]) != 0


def test_upstreams_teacher_compares_samples_instead_of_classes() -> None:
    """Of a single sample, upstream's targets are 1 for every class, whatever the teacher says."""
    outputs, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[9.0, 0.0]])
    upstream = BiCPlugin(T=5).cross_entropy(outputs, teacher)
    assert float(upstream) == pytest.approx(float(-(outputs / 2).log_softmax(1).sum()))
    swapped = BiCPlugin(T=5).cross_entropy(outputs, teacher.flip(1))
    assert float(upstream) == float(swapped)


def test_upstream_does_not_run_on_this_torch() -> None:
    with pytest.raises(TypeError, match="verbose"):
        torch.optim.lr_scheduler.MultiStepLR(SGD(linear().parameters()), [1], verbose=False)


def test_state_is_a_teacher_memory_and_for_the_local_anchor_the_weights() -> None:
    sizes = {}
    for anchor in ("local", "global"):
        strategy = bic(training=TRAINING, anchor=anchor)
        model = model_for(strategy)
        sizes[anchor] = live(strategy, model, split(), rounds=2)[-1].state.num_bytes
    model_bytes = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    assert sizes["global"] == model_bytes + 20 * (2 * 8 + 8)
    assert sizes["local"] == sizes["global"] + model_bytes


@pytest.mark.parametrize(
    ("setting", "value", "bound"),
    [
        ("memory_per_client", 1, "at least 2"),
        ("validation_share", 0.0, "greater than 0"),
        ("validation_share", 0.6, r"in \[0, 0.5\]"),
        ("memory_batch_size", 0, "at least 1"),
        ("temperature", 0.0, "greater than 0"),
        ("anchor", "both", "one of local, global"),
    ],
)
def test_a_bad_setting_is_named(setting: str, value: float, bound: str) -> None:
    with pytest.raises(ValueError, match=rf"continual\.{setting}={value}: must be {bound}"):
        bic(training=TRAINING, **{setting: value})


def test_one_client_learns_finitely_with_batch_normalisation() -> None:
    strategy = bic(training=TRAINING)
    model = strategy.equip(mlp(norm=True))
    reports = live(strategy, model, split(3, size=9), rounds=2, batch_size=8)
    assert all(math.isfinite(report.loss) for report in reports)
