"""ER-ACE and ER-AML: new samples may not push old classes' outputs down."""

import math
from dataclasses import replace

import pytest
import torch
from avalanche.training.regularization import ACECriterion, AMLCriterion
from hypothesis import given
from hypothesis import strategies as st
from lone_client import DIGITS, SGD, TRAINING, gap, live, mlp, permuted, split, turn_at, twin
from test_methods import LINEAR, cross_entropy_gradients, linear, tiny_stream, two_turns
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.models.cnn import SmallCNN
from fedlearn.models.mlp import MLP
from fedlearn.seeding import borrowed_global_rng, generator, seed
from fedlearn.types import Experience, Samples, State
from strategies.continual.avalanche.corrections.er_aml import Partners, contrast
from strategies.continual.avalanche.er_ace import er_ace
from strategies.continual.avalanche.er_aml import er_aml
from strategies.continual.avalanche.networks.features import head_of, inputs_of
from strategies.continual.reservoir import Reservoir, balanced, keys_of, labels_of

STRATEGIES = {"er_ace": er_ace, "er_aml": er_aml}
sizes = st.integers(1, 12)


def rows_in(state: State) -> Tensor:
    """Return (n, 2) experience and row of what memory holds."""
    return state.tensors["memory/rows"]


# Memory


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), sizes)
def test_a_balanced_choice_is_as_equal_as_can_be(groups: list[int], size: int) -> None:
    labels = torch.tensor(groups)
    keys = torch.rand(len(groups), dtype=torch.float64, generator=generator(0, "keys"))
    chosen = balanced(keys, labels, size)
    assert len(set(chosen.tolist())) == len(chosen) == min(size, len(groups))
    had, got = (torch.bincount(each, minlength=5).tolist() for each in (labels, labels[chosen]))
    short = [got[group] for group in range(5) if got[group] < had[group]]
    assert not short or max(got) - min(short) <= 1
    for group in range(5):
        of_group = keys[labels == group].sort(descending=True).values[: got[group]]
        assert torch.equal(keys[chosen[labels[chosen] == group]], of_group)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), sizes, st.integers(0, 40))
def test_a_balanced_choice_does_not_depend_on_when_samples_came(
    groups: list[int], size: int, cut: int
) -> None:
    labels = torch.tensor(groups)
    keys = torch.rand(len(groups), dtype=torch.float64, generator=generator(0, "keys"))
    rows = torch.stack([torch.zeros_like(labels), torch.arange(len(labels))], dim=1)
    in_parts, at_once = Reservoir(size), Reservoir(size)
    at_once.offer_balanced(rows, keys, labels)
    for part in (slice(None, cut), slice(cut, None)):
        of_all = torch.cat([labels[in_parts.rows[:, 1]], labels[part]])
        in_parts.offer_balanced(rows[part], keys[part], of_all)
    assert torch.equal(in_parts.rows, at_once.rows)


def test_every_sample_of_a_class_has_the_same_chance_to_be_remembered() -> None:
    """Of 30 samples of each of 2 classes 5 stay: in 600 clients each 100 times on average."""
    experience, clients = split(1, size=60)[0], 600
    labels, times = DIGITS.y[experience.rows], torch.zeros(len(DIGITS))
    for client_id in range(clients):
        memory = Reservoir(10)
        rows, keys = keys_of(experience, turn_at(0, client_id=client_id).seed)
        memory.offer_balanced(rows, keys, labels)
        times[memory.rows[:, 1]] += 1
    for label in (0, 1):
        of_class = times[experience.rows[labels == label]]
        share = 5 / len(of_class)
        assert int(of_class.sum()) == 5 * clients
        spread = math.sqrt(clients * share * (1 - share))
        assert float((of_class - clients * share).abs().max()) < 4 * spread


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_client_keeps_two_integers_and_a_key_a_sample(name: str) -> None:
    strategy = STRATEGIES[name](training=TRAINING, memory_per_client=20)
    for index, report in enumerate(live(strategy, mlp(), split(), rounds=2)):
        assert report.state.num_bytes == (index >= 2) * 20 * (2 * 8 + 8)
        assert set(rows_in(report.state)[:, 0].tolist()) == set(range(index // 2))


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_is_replayed_is_what_the_experiences_end_will_leave(name: str) -> None:
    """Upstream changes its memory when an experience begins; here the choice is made again."""
    strategy, stream = STRATEGIES[name](training=TRAINING), split(3)
    state = live(strategy, mlp(), stream[:2], rounds=2)[-1].state
    oracle = strategy._strategy(mlp(), stream.__getitem__, turn_at(3))
    strategy._recall(oracle, state)
    oracle.experience = strategy._seen(stream[1], stream.__getitem__)
    with borrowed_global_rng(0):
        oracle._before_training_epoch()
    replayed = {tuple(x.tolist()) for x in oracle._replay[0]}
    turn = turn_at(4, previous=stream[1])
    after = strategy.train_turn(mlp(), stream[2], stream.__getitem__, turn, state).state
    assert torch.bincount(labels_of(stream.__getitem__, rows_in(after))).tolist() == [5, 5, 5, 5]
    x = stream[0].samples.x[rows_in(after)[:, 1]]
    assert {tuple(sample.tolist()) for sample in x} == replayed
    assert set(rows_in(state)[:, 0].tolist()) == {0}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_streams_first_experience_is_plain_training(name: str) -> None:
    model, by_hand, stream = linear(), linear(), tiny_stream()
    live(STRATEGIES[name](training=LINEAR), model, stream[:1])
    F.cross_entropy(by_hand(stream[0].gather()[0]), stream[0].gather()[1]).backward()
    SGD(by_hand.parameters()).step()
    assert gap(model, by_hand) < 1e-6


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_loss_is_the_runs_own(name: str) -> None:
    """Upstream calls ``cross_entropy`` itself: a masked loss would be ignored."""
    masked = replace(TRAINING, mask_loss=((0, 1), (2, 3), (4, 5), (6, 7, 8, 9)))
    model = mlp()
    unseen = model[-1].weight.detach()[4:].clone()
    live(STRATEGIES[name](training=masked), model, split(2), rounds=2)
    assert torch.equal(model[-1].weight.detach()[4:], unseen)


@pytest.mark.parametrize("name", STRATEGIES)
def test_reports_count_what_came_from_memory(name: str) -> None:
    strategy = STRATEGIES[name](training=TRAINING, memory_batch_size=7)
    reports = live(strategy, mlp(), split(2), epochs=2)  # 70 samples: 3 steps an epoch
    assert [report.replayed for report in reports] == [0, 2 * (7 + 7 + 6)]


# ER-ACE


def test_er_aces_step_is_the_formula() -> None:
    received, start = linear(0.5), linear(0.5)
    _, loss, _ = two_turns(er_ace(training=LINEAR, memory_per_client=12), received)
    (old_x, old_y), (x, y) = (experience.gather() for experience in tiny_stream())
    memory_x, memory_y = torch.cat([old_x, x]), torch.cat([old_y, y])  # all of both
    past = F.cross_entropy(start(memory_x), memory_y).detach()
    present = F.cross_entropy(start(x)[:, 2:], y - 2).detach()
    assert loss == pytest.approx(float((past + present) / 2), rel=1e-5)

    residual = F.softmax(start(x)[:, 2:], dim=1) - F.one_hot(y - 2, 2)
    gradients = cross_entropy_gradients(start, memory_x, memory_y)
    gradients["weight"][2:] += residual.detach().T @ x / len(x)
    gradients["bias"][2:] += residual.detach().mean(0)
    for name, parameter in start.named_parameters():
        expected = parameter.detach() - 0.1 * gradients[name] / 2
        assert torch.allclose(received.get_parameter(name).detach(), expected, atol=1e-6)


def test_er_aces_loss_is_upstreams() -> None:
    _, loss, _ = two_turns(er_ace(training=LINEAR, memory_per_client=12), linear(0.5))
    x, y = (torch.cat(pair) for pair in zip(*(e.gather() for e in tiny_stream()), strict=True))
    output = linear(0.5)(x)
    upstream = ACECriterion()(output[6:], y[6:], output, y)
    assert loss == pytest.approx(float(upstream.detach()), rel=1e-5)


def test_new_samples_alone_do_not_move_old_classes() -> None:
    """Memory of one sample, of a present class: the rows of the past's outputs stay."""
    strategy, stream = er_ace(training=LINEAR, memory_per_client=12), tiny_stream()
    oracle = strategy._strategy(linear(), stream.__getitem__, turn_at(0))
    oracle.experience = strategy._seen(stream[1], stream.__getitem__)
    with borrowed_global_rng(0):
        oracle._before_training_epoch()
        oracle.mbatch = next(iter(oracle.dataloader))
        oracle._before_forward()
    oracle.mb_output = oracle.forward().detach().requires_grad_()
    oracle.criterion().backward()
    present = oracle.mb_output.grad[oracle._replayed_in_batch :]
    assert torch.equal(present[:, :2], torch.zeros(6, 2))
    assert bool((present[:, 2:] != 0).all())


# ER-AML


def loops(anchors: Tensor, y: Tensor, others: Tensor, other_y: Tensor, temperature: float) -> float:
    """Return the supervised contrastive loss of `anchors` against `others`, pair by pair."""
    losses = []
    for anchor, label in zip(anchors, y.tolist(), strict=True):
        cosine = [float(F.cosine_similarity(anchor, other, dim=0)) for other in others]
        total = sum(math.exp(each / temperature) for each in cosine)
        shares = [
            -(each / temperature - math.log(total))
            for each, partner in zip(cosine, other_y.tolist(), strict=True)
            if partner == label
        ]
        losses.append(sum(shares) / len(shares))
    return sum(losses) / len(losses)


def compared() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features and labels of 5 samples, and of 10 to compare them with."""
    numbers = generator(3, "features")
    y = torch.tensor([0, 1, 1, 2, 0])
    anchors, others = torch.randn(5, 4, generator=numbers), torch.randn(10, 4, generator=numbers)
    return anchors, y, others, torch.cat([y, (y + 1) % 3])


def test_the_contrast_is_the_papers_pair_by_pair() -> None:
    anchors, y, others, other_y = compared()
    ours = contrast(torch.cat([anchors, others]), torch.cat([y, other_y]), 5, 0.3)
    assert float(ours) == pytest.approx(loops(anchors, y, others, other_y, 0.3), rel=1e-5)


def test_upstream_normalises_a_pair_by_another_anchors_similarities() -> None:
    anchors, y, others, other_y = (tensor.double() for tensor in compared())
    units = F.normalize(anchors), F.normalize(others)
    upstream = AMLCriterion(None, temp=0.3, base_temp=0.3)._AMLCriterion__sup_con_loss(
        units[0].repeat(2, 1), units[1], y.repeat(2), other_y
    )
    assert abs(float(upstream) - loops(anchors, y, others, other_y, 0.3)) > 1e-2


def two_points() -> list[Experience]:
    """Return the tiny stream with equal samples in each class of experience 1."""
    first, second = tiny_stream()
    x, y = first.samples.x.clone(), first.samples.y
    x[y == 2], x[y == 3] = x[6].clone(), x[7].clone()
    store = Samples(x, y)
    return [replace(first, samples=store), replace(second, samples=store)]


def test_er_amls_step_is_the_formula() -> None:
    """A linear model is its own head, so features are inputs, and no draw of partners matters."""
    stream, strategy = two_points(), er_aml(training=LINEAR, memory_per_client=12, temperature=0.3)
    state = live(strategy, linear(), stream[:1])[-1].state
    received, start = linear(0.5), linear(0.5)
    turn = turn_at(1, previous=stream[0])
    loss = strategy.train_turn(received, stream[1], stream.__getitem__, turn, state).loss
    (old_x, old_y), (x, y) = (experience.gather() for experience in stream)
    memory_x, memory_y = torch.cat([old_x, x]), torch.cat([old_y, y])
    other = torch.where((y == 2)[:, None], x[1], x[0])
    metric = loops(x, y, torch.cat([x, other]), torch.cat([y, 5 - y]), 0.3)
    past = float(F.cross_entropy(start(memory_x), memory_y).detach())
    assert loss == pytest.approx(past + 0.3 / 0.07 * metric, rel=1e-5)
    for name, gradient in cross_entropy_gradients(start, memory_x, memory_y).items():
        expected = start.get_parameter(name).detach() - 0.1 * gradient  # nothing of the present's
        assert torch.allclose(received.get_parameter(name).detach(), expected, atol=1e-6)


def test_partners_are_of_the_same_class_then_of_another_and_all_get_their_turn() -> None:
    labels = torch.tensor([7, 3, 3, 5, 7, 3])
    partners = Partners([torch.arange(6), labels, torch.zeros(6)], generator(0, "partners"))
    drawn: dict[int, tuple[set[int], set[int]]] = {3: (set(), set()), 5: (set(), set())}
    for _ in range(200):
        x, y, _t = partners.draw(torch.tensor([3, 5]))
        assert y.tolist()[:2] == [3, 5]
        assert y[2] != 3
        assert y[3] != 5
        for place, (same, others) in enumerate(drawn.values()):
            same.add(int(x[place]))
            others.add(int(x[2 + place]))
    assert drawn == {3: ({1, 2, 5}, {0, 3, 4}), 5: ({3}, {0, 1, 2, 4, 5})}


def test_partners_are_present_samples_and_memory_of_the_same_classes_only() -> None:
    for stream, alike in ((split(2), 0), (permuted(2), 20)):
        strategy = er_aml(training=TRAINING)
        state = live(strategy, mlp(), stream)[-1].state
        oracle = strategy._strategy(mlp(), stream.__getitem__, turn_at(3))
        strategy._recall(oracle, state)
        oracle.experience = strategy._seen(stream[1], stream.__getitem__)
        x, y, _ = oracle._samples_of_present_classes()
        present = stream[1].gather()
        assert len(x) == 70 + alike
        assert torch.equal(x[:70], present[0])
        assert set(y.tolist()) <= set(present[1].tolist())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("memory", [1, 2, 3])
def test_a_batch_may_hold_more_of_a_class_than_memory(memory: int) -> None:
    """Upstream then loops for ever."""
    strategy = er_aml(training=TRAINING, memory_per_client=memory)
    reports = live(strategy, mlp(), split(3), batch_size=64)
    assert all(math.isfinite(report.loss) for report in reports)


@pytest.mark.parametrize("size", [1, 2, 40])
def test_a_client_may_hold_a_single_class(size: int) -> None:
    """Upstream then has no sample of another class to draw."""
    stream = split(3)
    rows = stream[1].rows[stream[1].samples.y[stream[1].rows] == 2][:size]
    stream[1] = replace(stream[1], rows=rows)
    reports = live(er_aml(training=TRAINING), mlp(norm=True), stream)
    assert all(math.isfinite(report.loss) for report in reports)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (MLP(input_shape=(64,), num_classes=10, hidden_sizes=(12,)), (64,)),
        (MLP(input_shape=(64,), num_classes=10, hidden_sizes=()), (64,)),
        (SmallCNN(input_shape=(1, 8, 8), num_classes=10, widths=(4,)), (1, 8, 8)),
    ],
)
def test_features_are_what_the_head_reads(model: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.rand(3, *shape, generator=generator(0, "x"))
    with inputs_of(head_of(model, "er_aml")) as seen:
        model(x)
    assert torch.equal(seen[0], model.features(x))
    model(x)
    assert len(seen) == 1  # nothing is left behind


def test_er_aml_refuses_a_model_without_a_linear_layer() -> None:
    message = "continual=er_aml: needs a model that ends in a linear layer, and Conv2d has none"
    with pytest.raises(ValueError, match=message):
        er_aml(training=TRAINING).equip(nn.Conv2d(1, 1, 1))
    model = mlp()
    assert er_aml(training=TRAINING).equip(model) is model


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_turn_leaves_the_model_without_hooks_and_learns(name: str) -> None:
    model, stream = mlp(), split(2)
    before = twin(model)
    live(STRATEGIES[name](training=TRAINING), model, stream)
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert gap(model, before) > 1e-2


@pytest.mark.parametrize(("name", "parts"), [("er_ace", 2), ("er_aml", 4)])
def test_whatever_a_step_trains_on_is_augmented(name: str, parts: int) -> None:
    """The batch, memory's, and for ER-AML a partner of the same class and one of another."""
    changed: list[int] = []

    def count(x: Tensor, _: torch.Generator) -> Tensor:
        changed.append(len(x))
        return x

    counting = replace(TRAINING, augment=count)
    live(STRATEGIES[name](training=counting), mlp(), split(2, size=16), batch_size=8)
    assert sum(changed) == 2 * 8 + 2 * 8 * parts


@pytest.mark.parametrize(
    ("factory", "setting", "value", "bound"),
    [
        (er_ace, "memory_per_client", 0, "at least 1"),
        (er_ace, "memory_batch_size", 0, "at least 1"),
        (er_aml, "memory_per_client", 0, "at least 1"),
        (er_aml, "memory_batch_size", -1, "at least 1"),
        (er_aml, "temperature", 0.0, "greater than 0"),
        (er_aml, "base_temperature", -1.0, "greater than 0"),
    ],
)
def test_a_bad_setting_is_named(factory, setting: str, value: float, bound: str) -> None:
    with pytest.raises(ValueError, match=rf"continual\.{setting}={value}: must be {bound}"):
        factory(training=TRAINING, **{setting: value})


def test_the_seed_of_a_samples_key_is_the_clients_and_the_experiences() -> None:
    strategy, stream = er_ace(training=TRAINING, memory_per_client=140), split(2)
    state = live(strategy, mlp(), stream)[-1].state
    numbers = torch.Generator().manual_seed(seed(7, "reservoir", 0, 0))
    keys = torch.rand(70, generator=numbers, dtype=torch.float64)
    rows = rows_in(state)[:, 1]
    places = [stream[0].rows.tolist().index(row) for row in rows.tolist()]
    assert torch.equal(state.tensors["memory/keys"], keys[places])
