"""Strategies that learn from a memory of samples, and the bounds that they are measured against."""

import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from avalanche.training.plugins import GEMPlugin
from avalanche.training.storage_policy import HerdingSelectionStrategy
from lone_client import (
    DIGITS,
    TRAINING,
    gap,
    live,
    mlp,
    permuted,
    split,
    turn_at,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Experience, Samples, State
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.corrections.gem import GEM, RIDGE
from strategies.continual.avalanche.corrections.gss import FIRST_SCORE, GSS, likeness
from strategies.continual.avalanche.corrections.mir import MIR
from strategies.continual.avalanche.corrections.rar import RAR
from strategies.continual.avalanche.corrections.selection import closest
from strategies.continual.avalanche.corrections.virtual_step import virtual_step
from strategies.continual.avalanche.cumulative import cumulative
from strategies.continual.avalanche.exemplars import herding
from strategies.continual.avalanche.gdumb import gdumb
from strategies.continual.avalanche.gem import gem
from strategies.continual.avalanche.gss import gss
from strategies.continual.avalanche.joint import joint
from strategies.continual.avalanche.mir import mir
from strategies.continual.avalanche.naive import naive
from strategies.continual.avalanche.rar import rar
from strategies.continual.avalanche.replay import replay

REMEMBERING = {
    "gem": gem,
    "gdumb": gdumb,
    "mir": mir,
    "gss": gss,
    "rar": rar,
    "reservoir": partial(replay, policy="reservoir"),
    "class_balanced": partial(replay, policy="class_balanced"),
    "herding": partial(replay, policy="herding", anchor="local"),
    "closest_to_center": partial(replay, policy="closest_to_center", anchor="global"),
}
BY_CLASS = ["gdumb", "mir", "class_balanced", "herding", "closest_to_center"]


def rows_in(state: State) -> Tensor:
    """Return (n, 2) experience and row of every sample that a state remembers."""
    kept = [tensor for key, tensor in state.tensors.items() if key.endswith("rows")]
    return torch.cat(kept) if kept else torch.empty(0, 2, dtype=torch.int64)


def running(plugin, training=TRAINING, stream=None):
    """Return an Avalanche strategy of one plugin, on a linear model, facing experience 0."""
    stream = stream or split(1)
    wrapped = AvalancheContinual(training, plugins=lambda: [plugin], consolidates="data")
    with borrowed_global_rng(3):
        model = nn.Linear(stream[0].samples.x[0].numel(), training.num_classes)
    strategy = wrapped._strategy(model, stream.__getitem__, turn_at(0))
    strategy.experience = wrapped._seen(stream[0], stream.__getitem__)
    return strategy


# Memory


@pytest.mark.parametrize("size", [1, 3, 20])
@pytest.mark.parametrize("name", REMEMBERING)
def test_memory_never_exceeds_its_bound(name: str, size: int) -> None:
    strategy = REMEMBERING[name](training=TRAINING, memory_per_client=size)
    for report in live(strategy, mlp(norm=True), split(5, size=25), rounds=2):
        rows = rows_in(report.state)
        assert len(rows) <= size
        assert len({tuple(row) for row in rows.tolist()}) == len(rows)
    assert len(rows) == size


@pytest.mark.parametrize("name", sorted(set(REMEMBERING) - {"gss"}))
def test_memory_holds_the_past_only(name: str) -> None:
    reports = live(REMEMBERING[name](training=TRAINING), mlp(), permuted(3), rounds=2)
    for place, report in enumerate(reports):
        assert set(rows_in(report.state)[:, 0].tolist()) <= set(range(place // 2))


@pytest.mark.parametrize("name", BY_CLASS)
def test_memory_is_shared_equally_by_the_classes(name: str) -> None:
    strategy = REMEMBERING[name](training=TRAINING, memory_per_client=20)
    rows = rows_in(live(strategy, mlp(), split(4))[-1].state)
    counts = torch.bincount(DIGITS.y[rows[:, 1]], minlength=10).tolist()
    assert counts == [4, 4, 3, 3, 3, 3, 0, 0, 0, 0]


@pytest.mark.parametrize("name", BY_CLASS)
def test_what_a_small_class_leaves_goes_to_the_others(name: str) -> None:
    ones = (DIGITS.y == 1).nonzero().squeeze(1)
    zeros = (DIGITS.y == 0).nonzero().squeeze(1)
    few = Experience(0, DIGITS, torch.cat([zeros[:2], ones[:30]]), (0, 1))
    strategy = REMEMBERING[name](training=TRAINING, memory_per_client=20)
    rows = rows_in(live(strategy, mlp(), [few, split(2)[1]])[-1].state)
    assert torch.bincount(DIGITS.y[rows[:, 1]]).tolist() == [2, 18]


def test_gems_memory_is_shared_equally_by_the_experiences() -> None:
    rows = rows_in(live(gem(training=TRAINING), mlp(), split(4))[-1].state)
    assert torch.bincount(rows[:, 0]).tolist() == [7, 7, 6]


@pytest.mark.parametrize("name", ["reservoir", "rar"])
def test_a_reservoir_gives_every_sample_the_same_chance(name: str) -> None:
    """Experiences of 60 and 20 samples: three of four in memory come from the first."""
    stream = [split(3, size=60)[0], split(3, size=20)[1], split(3)[2]]
    strategy, first = REMEMBERING[name](training=TRAINING), []
    for client_id in range(30):
        rows = rows_in(live(strategy, mlp(), stream, client_id=client_id)[-1].state)
        first.append(float((rows[:, 0] == 0).double().mean()))
    # A mean of 30 hypergeometric shares has a deviation of 0.016.
    assert sum(first) / len(first) == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize("policy", ["class_balanced", "herding", "closest_to_center"])
def test_memory_per_class_bounds_each_class_for_ever(policy: str) -> None:
    strategy = replay(
        training=TRAINING,
        policy=policy,
        memory_per_client=None,
        memory_per_class=3,
        anchor=None if policy == "class_balanced" else "local",
    )
    reports = live(strategy, mlp(), [*split(4), replace(split(1)[0], index=4)])
    for seen, report in enumerate(reports):
        rows = rows_in(report.state)
        counts = torch.bincount(DIGITS.y[rows[:, 1]], minlength=10).tolist()
        assert counts == [3] * (2 * seen) + [0] * (10 - 2 * seen)


# GEM


def gem_of(gradients: Tensor, strength: float) -> GEM:
    plugin = GEM(20, strength)
    plugin.G = gradients
    return plugin


def test_gem_projects_on_one_violated_constraint_as_by_hand() -> None:
    past = torch.tensor([[3.0, 4.0, 0.0]])
    gradient = torch.tensor([-1.0, 0.0, 2.0])
    projected = gem_of(past, 0.0).solve_quadprog(gradient)
    by_hand = gradient + 3 / (25 + RIDGE) * past[0]  # g - (g . g_1) / |g_1|^2 g_1
    assert torch.allclose(projected, by_hand, atol=1e-5)
    assert float(projected @ past[0]) == pytest.approx(0, abs=1e-3)
    favoured = gem_of(past, 0.5).solve_quadprog(gradient)  # the bound, 0.5, is above 0.12
    assert torch.allclose(favoured, gradient + 0.5 * past[0], atol=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_gems_projection_meets_the_conditions_of_karush_kuhn_and_tucker(strength: float) -> None:
    active = set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        past = torch.randn(4, 9, generator=generator, dtype=torch.float64)
        gradient = torch.randn(9, generator=generator, dtype=torch.float64)
        projected = gem_of(past, strength).solve_quadprog(gradient)
        assert projected.dtype == torch.float64  # upstream returns float32
        weights = torch.linalg.lstsq(past.T, (projected - gradient)[:, None]).solution[:, 0]
        slope = past @ past.T @ weights + RIDGE * weights + past @ gradient
        assert float(weights.min()) >= strength - 1e-8  # primal feasible
        assert float(slope.min()) >= -1e-8  # dual feasible
        assert float(((weights - strength) * slope).abs().max()) < 1e-8  # complementary
        active |= set((slope < 1e-6).tolist())
    assert active == {True, False}


def test_a_step_of_gem_is_the_projected_gradient_and_harms_no_past() -> None:
    strategy = gem(training=TRAINING, memory_per_client=40, memory_strength=0.0)
    stream = [replace(each, rows=each.rows[:20]) for each in split(3)]
    model, state, previous, projected = mlp(), State(), None, False
    for clock, experience in enumerate(stream):
        past = [gradient_at(model, *each.gather()) for each in stream[:clock]]
        present = gradient_at(model, *experience.gather())
        expected = present
        if past and bool((torch.stack(past) @ present < 0).any()):
            expected = gem_of(torch.stack(past), 0.0).solve_quadprog(present)
            assert float((torch.stack(past) @ expected).min()) > -1e-2
            projected = True
        before = flat_weights(model)
        turn = turn_at(clock, previous=previous)
        report = strategy.train_turn(model, experience, stream.__getitem__, turn, state)
        assert torch.allclose((before - flat_weights(model)) / 0.1, expected, atol=1e-4)
        assert report.replayed == 20 * clock
        state, previous = report.state, experience
    assert projected


def gradient_at(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    parts = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    return torch.cat([part.flatten() for part in parts])


def flat_weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("ours", [True, False])
def test_gem_leaves_frozen_layers_in_evaluation_mode(ours: bool) -> None:
    stream, model = split(1), mlp(norm=True)
    plugin = GEM(20, 0.5) if ours else GEMPlugin(20, 0.5)
    strategy = running(plugin)
    strategy.model = model
    model[1].eval()
    x, y = stream[0].gather()
    if ours:
        plugin._groups = [[x, y, torch.zeros_like(y)]]
    else:
        plugin.memory_x, plugin.memory_y, plugin.memory_tid = {0: x}, {0: y}, {0: y}
        strategy.clock.train_exp_counter = 1
    plugin.before_training_iteration(strategy)
    assert len(plugin.G) == 1
    assert model[1].training is not ours


# MIR


def test_mir_retrieves_the_samples_whose_loss_rises_most() -> None:
    stream = split(2)
    plugin = MIR(20, 20, 3)
    strategy = running(plugin, stream=stream)
    x, y = (tensor[:20] for tensor in stream[0].gather())
    batch_x, batch_y = stream[1].gather()
    strategy.loss = F.cross_entropy(strategy.model(batch_x), batch_y)
    before = F.cross_entropy(strategy.model(x), y, reduction="none").detach()
    # A linear model's gradient, without autograd.
    residual = (F.softmax(strategy.model(batch_x), 1) - F.one_hot(batch_y, 10)).detach()
    weight = strategy.model.weight.detach() - 0.1 * residual.T @ batch_x / len(batch_x)
    bias = strategy.model.bias.detach() - 0.1 * residual.mean(0)
    rise = F.cross_entropy(x @ weight.T + bias, y, reduction="none") - before
    chosen = plugin.retrieve(strategy, x, y, torch.zeros_like(y))
    assert chosen.tolist() == rise.argsort(descending=True)[:3].tolist()
    few = plugin.retrieve(strategy, x[:2], y[:2], torch.zeros(2, dtype=torch.int64))
    assert sorted(few.tolist()) == [0, 1]  # upstream's slice counts from the wrong end


def test_a_virtual_step_leaves_weights_and_gradients_as_they_were() -> None:
    model, (x, y) = mlp(), split(1)[0].gather()
    model[0].bias.requires_grad_(False)  # upstream raises
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
    before, frozen = flat_weights(model), model[0].bias.clone()
    loss = F.cross_entropy(model(x), y)
    with virtual_step(loss, model, 0.5):
        stepped = [parameter.detach().clone() for parameter in parameters]
        assert torch.equal(model[0].bias, frozen)
    own = [parameter.detach() for parameter in parameters]
    for now, start, slope in zip(stepped, own, expected, strict=True):
        assert torch.allclose(now, start - 0.5 * slope)
    assert torch.equal(flat_weights(model), before)
    loss.backward()
    for parameter, slope in zip(parameters, expected, strict=True):
        assert torch.equal(parameter.grad, slope)


def test_mir_replays_the_experience_before_and_less_than_a_batch_of_it() -> None:
    """Upstream leaves out the classes of the last batch, and memories smaller than a batch."""
    reports = live(mir(training=TRAINING, memory_per_client=5), mlp(), split(2))
    assert [report.replayed for report in reports] == [0, 5 * reports[1].steps]


def test_mir_that_takes_all_it_looks_at_adds_the_mean_loss_on_memory() -> None:
    still = replace(TRAINING, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    stream, model = split(2), mlp()
    strategy = mir(training=still, memory_per_client=20, memory_batch_size=20)
    report = live(strategy, model, stream, batch_size=100)[-1]
    rows = rows_in(report.state)
    x, y = stream[0].gather(rows[:, 1])
    present, labels = stream[1].gather()
    expected = F.cross_entropy(model(x), y) + F.cross_entropy(model(present), labels)
    assert report.loss == pytest.approx(float(expected.detach()), rel=1e-5)


# GSS


def two_sided() -> list[Experience]:
    """Return samples of one input: 20 of class 0, then 20 of class 1."""
    store = Samples(torch.ones(40, 3), torch.tensor([0, 1]).repeat_interleave(20))
    return [Experience(0, store, torch.arange(40), (0, 1))]


@pytest.mark.parametrize(("label", "taken"), [(0, False), (1, True)])
def test_gss_takes_gradients_that_memory_lacks_and_no_others(label: int, taken: bool) -> None:
    """A flat model's gradients for two labels of one input are opposite, or the same."""
    plugin, stream = GSS(4, 2, None), two_sided()
    training = replace(TRAINING, num_classes=2)
    strategy = running(plugin, training, stream)
    nn.init.zeros_(strategy.model.weight)
    nn.init.zeros_(strategy.model.bias)
    strategy._tensors = strategy.experience, strategy.epoch_tensors()
    plugin.rows = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])
    plugin.scores = torch.ones(4)
    positions = torch.arange(4, 7) + 20 * label
    with borrowed_global_rng(0):
        plugin._offer(strategy, torch.stack([torch.zeros(3), positions], 1).long(), positions)
    # Against a score of 1, one of -1 always wins: C = 2 and c = 0.
    assert int((plugin.rows[:, 1] >= 4).sum()) == (3 if taken else 0)
    assert sorted(plugin.scores.tolist()) == pytest.approx([-1, -1, -1, 1] if taken else [1] * 4)


def test_gss_scores_by_the_largest_cosine() -> None:
    references = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    gradients = torch.tensor([[3.0, 0.0], [-1.0, -1.0], [0.0, 0.0], [-1.0, 1.0]])
    expected = [1.0, -math.sqrt(0.5), 0.0, math.sqrt(0.5)]
    assert likeness(references, gradients).tolist() == pytest.approx(expected)


def test_gss_fills_memory_with_the_first_samples_and_scores_them() -> None:
    state = live(gss(training=TRAINING, memory_per_client=40), mlp(), split(1))[-1].state
    scores = state.tensors["plugins.0.scores"]
    assert len(scores) == 40
    assert torch.equal(scores[:32], torch.full((32,), FIRST_SCORE))
    assert not bool((scores[32:] == FIRST_SCORE).any())
    assert float(scores.abs().max()) <= 1 + 1e-6


def test_gss_does_not_let_its_own_gradients_into_the_step() -> None:
    """Nothing is replayed in a client's first epoch, so it is plain training. Upstream's is not."""
    one, other = mlp(), mlp()
    live(gss(training=TRAINING), one, split(1), batch_size=8)
    live(naive(training=TRAINING), other, split(1), batch_size=8)
    assert gap(one, other) == 0.0


def test_gss_is_offered_each_sample_once() -> None:
    reports = live(gss(training=TRAINING), mlp(), split(2), rounds=3, batch_size=8)
    rows = [rows_in(report.state) for report in reports]
    assert torch.equal(rows[0], rows[2])
    assert torch.equal(rows[3], rows[5])
    assert not torch.equal(rows[2], rows[3])
    assert [report.replayed > 0 for report in reports] == [False] + [True] * 5


@pytest.mark.parametrize("memory", [1, 3, 5])
def test_gss_works_with_less_memory_than_a_batch(memory: int) -> None:
    """Upstream has nothing to compare with then, and raises."""
    reports = live(gss(training=TRAINING, memory_per_client=memory), mlp(), split(3), batch_size=8)
    assert len(rows_in(reports[-1].state)) == memory


# RAR


def attacking(beta: float = 0.4, epsilon: float = 0.05) -> tuple[RAR, object, list[Tensor]]:
    """Return RAR and a strategy whose batch is of experience 1, and a memory of experience 0."""
    stream = split(2)
    plugin = RAR(20, None, beta, epsilon, 5, 1.0)
    strategy = running(plugin, stream=stream)
    strategy.model = mlp()
    strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.1)
    x, y = stream[1].gather()
    strategy.mbatch = [x, y, torch.zeros_like(y)]
    strategy.loss = F.cross_entropy(strategy.model(x), y)
    plugin._head, plugin._range = strategy.model[-1], (0.0, 1.0)
    past_x, past_y = (tensor[:20] for tensor in stream[0].gather())
    return plugin, strategy, [past_x, past_y, torch.zeros_like(past_y)]


def test_rar_moves_samples_towards_the_features_of_the_nearest_present_one() -> None:
    plugin, strategy, (x, y, t) = attacking()
    moved = plugin.attack(strategy, x, y, t)
    assert 0 < float((moved - x).abs().max()) <= 0.05 + 1e-6
    assert float(moved.min()) >= 0
    with virtual_step(strategy.loss, strategy.model, 0.1), torch.no_grad():
        features = strategy.model[:-1]
        there = features(strategy.mbatch[0])
        nearest = torch.cdist(features(x), there).argmin(1)
        before = (features(x) - there[nearest]).norm(dim=1)
        after = (features(moved) - there[nearest]).norm(dim=1)
    assert bool((after < before).all())


def test_rar_leaves_alone_what_the_batch_has_no_other_class_for() -> None:
    plugin, strategy, (x, _, t) = attacking()
    strategy.mbatch[1] = torch.full_like(strategy.mbatch[1], 7)
    labels = torch.tensor([7] * 10 + [3] * 10)
    moved = plugin.attack(strategy, x, labels, t)
    still = (moved == x).flatten(1).all(1)
    assert still.tolist() == [True] * 10 + [False] * 10


def test_rar_without_its_attack_is_replay_with_equal_weights() -> None:
    still = replace(TRAINING, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    stream, model = split(2), mlp()
    losses = {}
    for beta in (0.0, 1.0):
        strategy = rar(
            training=still, beta=beta, memory_per_client=20, memory_batch_size=20, epsilon=0.2
        )
        report = live(strategy, model, stream, batch_size=100)[-1]
        losses[beta] = report.loss
    x, y = stream[0].gather(rows_in(report.state)[:, 1])
    present, labels = stream[1].gather()
    expected = F.cross_entropy(model(x), y) + F.cross_entropy(model(present), labels)
    assert losses[0.0] == pytest.approx(float(expected.detach()), rel=1e-5)
    assert abs(losses[1.0] - losses[0.0]) > 1e-3


def test_rar_needs_a_model_that_ends_in_a_linear_layer() -> None:
    model = nn.Sequential(nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 10, 64), nn.Flatten())
    with pytest.raises(ValueError, match="linear layer"):
        live(rar(training=TRAINING), model, split(2))


@pytest.mark.parametrize("name", ["gem", "mir", "rar"])
def test_one_remembered_sample_does_not_stop_batch_normalisation(name: str) -> None:
    model = mlp(norm=True)
    report = live(REMEMBERING[name](training=TRAINING, memory_per_client=1), model, split(2))[-1]
    assert report.replayed == report.steps
    assert bool(torch.isfinite(flat_weights(model)).all())


# GDumb


def test_gdumb_trains_on_its_memory_and_nothing_else() -> None:
    stream, model = split(2), mlp()
    strategy = gdumb(training=TRAINING, memory_per_client=20)
    first, second = live(strategy, model, stream, batch_size=8)
    assert first.steps == second.steps == 3  # 20 samples in batches of 8
    assert first.replayed == second.replayed == 20

    kept = rows_in(second.state)  # what the end of experience 0 left
    by_hand = mlp()
    dumb = Experience(0, DIGITS, kept[:, 1], (0, 1))
    live(naive(training=TRAINING), by_hand, [dumb], batch_size=8)
    alone = mlp()
    live(strategy, alone, stream[:1], batch_size=8)
    assert gap(alone, by_hand) == 0.0


# Herding


def on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_herding_follows_the_mean_as_by_hand() -> None:
    features = on_circle(0, 90, 40, 60)
    # Their mean is (0.57, 0.63), at 48 degrees. The nearest is the third. With it, the fourth comes
    # to (0.63, 0.75) and the first to (0.88, 0.32), the second to (0.38, 0.82): the fourth. Then
    # the first comes to (0.76, 0.50) and the second to (0.42, 0.84): the first.
    assert herding(features, 4).tolist() == [2, 3, 0, 1]
    assert herding(features, 2).tolist() == [2, 3]
    # Their distances from the mean are 0.77, 0.68, 0.20 and 0.25.
    assert closest(features, 4).tolist() == [2, 3, 1, 0]


def test_herding_chooses_as_avalanches() -> None:
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(30, 5, generator=generator), dim=1)
    theirs = HerdingSelectionStrategy.make_sorted_indices_from_features(None, features)
    assert herding(features, 12).tolist() == theirs[:12]


@pytest.mark.parametrize("anchor", ["local", "global"])
def test_herding_keeps_the_best_of_each_class_by_the_anchors_features(anchor: str) -> None:
    """And memory shrinks from the end of the order, without a second look."""
    strategy = replay(training=TRAINING, policy="herding", memory_per_client=12, anchor=anchor)
    stream, model, received = split(3), mlp(), mlp(dropout=0.0)
    state = live(strategy, model, stream[:1])[-1].state
    seen = {"local": model, "global": received}[anchor]
    with torch.no_grad():
        for parameter in received.parameters():
            parameter.mul_(-1.5)
        features = F.normalize(nn.Sequential(*list(seen)[:-1])(stream[0].gather()[0]), dim=1)
    turn = turn_at(1, previous=stream[0])
    state = strategy.train_turn(received, stream[1], stream.__getitem__, turn, state).state
    expected = []
    for label in (0, 1):
        at = (stream[0].gather()[1] == label).nonzero().squeeze(1)
        expected.append(stream[0].rows[at[herding(features[at], 6)]].tolist())
    assert by_label(state) == {0: expected[0], 1: expected[1]}

    turn = turn_at(2, previous=stream[1])
    state = strategy.train_turn(received, stream[2], stream.__getitem__, turn, state).state
    assert {label: by_label(state)[label] for label in (0, 1)} == {
        0: expected[0][:3],
        1: expected[1][:3],
    }


def by_label(state: State) -> dict[int, list[int]]:
    """Return the rows of each class, the largest key first."""
    rows, keys = state.tensors["plugins.0.memory/rows"], state.tensors["plugins.0.memory/keys"]
    rows = rows[keys.argsort(descending=True, stable=True)][:, 1]
    labels = DIGITS.y[rows]
    return {label: rows[labels == label].tolist() for label in labels.unique().tolist()}


# Upper bounds


@pytest.mark.parametrize("task", [False, True])
def test_cumulative_is_plain_training_on_all_so_far(task: bool) -> None:
    heads = ((0, 1), (2, 3), (4, 5)) if task else None
    training = replace(TRAINING, heads=heads)
    stream, model, by_hand = split(3, task=task), mlp(), mlp()
    for index in range(3):
        report = turn(cumulative(training=training), model, stream, index)
        rows = torch.cat([each.rows for each in stream[: index + 1]])
        assert report.steps == -(-len(rows) // 32)
        if not task:
            union = replace(stream[index], rows=rows)
            turn(naive(training=training), by_hand, [*stream[:index], union], index)
            assert gap(model, by_hand) == 0.0
    assert not report.state.tensors


def test_joint_is_plain_training_on_the_whole_stream_from_the_start() -> None:
    stream, model, by_hand = split(3), mlp(), mlp()
    union = torch.cat([each.rows for each in stream])
    for index in range(3):
        report = turn(joint(training=TRAINING), model, stream, index)
        whole = [replace(each, rows=union) for each in stream]
        turn(naive(training=TRAINING), by_hand, whole, index)
        assert gap(model, by_hand) == 0.0
        assert report.steps == -(-len(union) // 32)
    assert not report.state.tensors


def turn(strategy: AvalancheContinual, model: nn.Module, stream: list[Experience], index: int):
    """Train one turn of experience `index`."""
    at = turn_at(index, epochs=1)
    return strategy.train_turn(model, stream[index], stream.__getitem__, at, State())


@pytest.mark.parametrize("factory", [cumulative, joint])
@pytest.mark.parametrize("kind", ["task", "domain"])
def test_bounds_read_each_sample_in_its_own_domain_and_head(factory, kind: str) -> None:
    stream = permuted(3) if kind == "domain" else split(3, task=True)
    strategy = factory(training=TRAINING)
    oracle = strategy._strategy(mlp(), stream.__getitem__, turn_at(0))
    oracle.experience = strategy._seen(stream[1], stream.__getitem__)
    x, y, t = oracle.epoch_tensors()
    seen = stream[:2] if factory is cumulative else stream
    assert torch.equal(x, torch.cat([each.gather()[0] for each in seen]))
    assert torch.equal(y, torch.cat([each.gather()[1] for each in seen]))
    assert t.tolist() == [each.task_label for each in seen for _ in range(len(each))]


@pytest.mark.parametrize("factory", [cumulative, joint])
def test_bounds_pass_over_experiences_without_samples(factory) -> None:
    stream = split(3)
    stream[0] = replace(stream[0], rows=stream[0].rows[:0])
    strategy, model = factory(training=TRAINING), mlp()
    assert turn(strategy, model, stream, 1).steps == (3 if factory is cumulative else 5)


# Settings

BAD = [
    (gem, {"memory_per_client": 0}, "continual.memory_per_client=0: must be at least 1"),
    (gem, {"memory_strength": -1}, "continual.memory_strength=-1: must be at least 0"),
    (gdumb, {"memory_per_client": 0}, "continual.memory_per_client=0: must be at least 1"),
    (mir, {"subsample": 0}, "continual.subsample=0: must be at least 1"),
    (mir, {"memory_batch_size": 0}, "continual.memory_batch_size=0: must be at least 1"),
    (gss, {"num_references": 0}, "continual.num_references=0: must be at least 1"),
    (rar, {"beta": 1.5}, "continual.beta=1.5: must be in [0, 1]"),
    (rar, {"epsilon": 0}, "continual.epsilon=0: must be greater than 0"),
    (rar, {"attack_steps": 0}, "continual.attack_steps=0: must be at least 1"),
    (rar, {"attack_momentum": -1}, "continual.attack_momentum=-1: must be at least 0"),
    (
        replay,
        {"policy": "fifo"},
        "continual.policy=fifo: must be one of experience_balanced, class_balanced, reservoir, "
        "herding, closest_to_center",
    ),
    (
        replay,
        {"memory_per_client": None},
        "continual.memory_per_client=null: set it, or memory_per_class in its place",
    ),
    (
        replay,
        {"memory_per_class": 2, "policy": "class_balanced"},
        "continual.memory_per_class=2: memory_per_client=20 is set too; set one of them to null",
    ),
    (
        replay,
        {"memory_per_class": 2, "memory_per_client": None},
        "continual.memory_per_class=2: policy=experience_balanced knows no classes; use "
        "class_balanced, or memory_per_client",
    ),
    (
        replay,
        {"policy": "herding"},
        "continual.anchor=null: policy=herding needs local or global",
    ),
    (
        replay,
        {"anchor": "local"},
        "continual.anchor=local: policy=experience_balanced does not look at the model; use null",
    ),
]


@pytest.mark.parametrize(("strategy", "settings", "message"), BAD)
def test_a_bad_setting_is_named_in_one_line(strategy, settings, message) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        strategy(training=TRAINING, **settings)
