"""CoPE: its loss, its prototypes and its memory."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from avalanche.training.plugins.cope import PPPloss
from cohort import Federation, shared
from lone_client import DIGITS, TRAINING, accuracy, live, mlp, model_for, split, turn_at
from torch.nn import functional as F

from fedlearn.types import State
from strategies.continual.avalanche.cope import cope
from strategies.continual.avalanche.corrections.cope import ppp_loss
from strategies.continual.avalanche.networks.cope import CopeNetwork

STILL = replace(TRAINING, optimizer=partial(torch.optim.SGD, lr=0.0))


def sphere(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def ppp_by_hand(x, y, prototypes, temperature):
    """The paper's equations 4 to 8, one sample at a time."""

    def probability(label, at, proxy):
        near = torch.exp(proxy @ at / temperature)
        far = [torch.exp(p @ at / temperature) for k, p in enumerate(prototypes) if k != int(label)]
        return near / (near + sum(far))

    total = 0.0
    for i, label in enumerate(y):
        members = [j for j in range(len(y)) if y[j] == label]
        proxies = [x[j].detach() for j in members if j != i] + [prototypes[label]]
        attractor = sum(probability(label, x[i], proxy) for proxy in proxies) / len(members)
        total = total - attractor.log()
        for j in range(len(y)):
            if y[j] != label:
                pseudo = probability(label, x[j], x[i].detach())
                proper = probability(label, x[j], prototypes[label])
                total = total - (1 - (pseudo + proper) / 2).log()
    return total / len(y)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 2, 2, 4], [3], [1, 1, 1]])
def test_the_loss_is_the_papers_and_upstreams(labels: list[int]) -> None:
    y, prototypes = torch.tensor(labels), sphere(5, 6, seed=1)
    upstream = PPPloss({label: prototypes[label : label + 1] for label in range(5)}, T=0.5)
    values, gradients = [], []
    for loss in (
        lambda x: ppp_loss(x, y, prototypes, 0.5),
        lambda x: ppp_by_hand(x, y, prototypes, 0.5),
        lambda x: upstream(x, y),
    ):
        x = sphere(len(labels), 6).requires_grad_()
        value = loss(x)
        value.backward()
        values.append(value.detach())
        gradients.append(x.grad)
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        assert torch.allclose(value, values[0], rtol=1e-5)
        assert torch.allclose(gradient, gradients[0], atol=1e-5)


def test_the_loss_is_finite_where_upstreams_is_not() -> None:
    """Two samples of different classes, at the very same place as a prototype."""
    prototypes = torch.stack([torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 0.0])])
    y = torch.tensor([0, 1])
    upstream = PPPloss({0: prototypes[:1], 1: prototypes[1:]}, T=0.1)
    for loss, finite in (
        (lambda x: ppp_loss(x, y, prototypes, 0.1), True),
        (lambda x: upstream(x, y), False),
    ):
        x = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
        value = loss(x)
        value.backward()
        assert bool(value.isfinite()) is finite
        assert bool(x.grad.isfinite().all()) is finite


def test_prototypes_follow_the_mean_of_each_batch() -> None:
    strategy = cope(training=STILL, alpha=0.7, memory_per_client=200, memory_batch_size=64)
    network, stream = model_for(strategy), split(1, size=32)  # one step: the batch, and all of it
    before = network.directions()
    x, y = stream[0].gather()
    live(strategy, network, stream)
    with torch.no_grad():
        embedded = F.normalize(network.embedding(network.backbone(x)), dim=1)
    for label in range(10):
        expected = before[label]
        if label < 2:
            mean = F.normalize(embedded[y == label].mean(0), dim=0)
            expected = F.normalize(0.7 * before[label] + 0.3 * mean, dim=0)
        assert torch.allclose(network.directions()[label], expected, atol=1e-6)


def test_the_nearest_prototype_is_predicted() -> None:
    network, x = model_for(cope(training=TRAINING)), split(1)[0].gather()[0]
    network.eval()
    with torch.no_grad():
        embedded = F.normalize(network.embedding(network.backbone(x)), dim=1)
        distances = torch.cdist(embedded, network.directions())
        assert torch.equal(network(x).argmax(1), distances.argmin(1))


def test_prototypes_average_over_those_who_saw_the_class() -> None:
    """Client 1 holds ten times the samples of client 0, but none of class 0."""
    network: CopeNetwork = model_for(cope(training=TRAINING))
    received = network.directions()
    sent = []
    for seed, labels in ((1, [0, 0, 1]), (2, [1, 1, 2])):
        network.prototypes = received.clone()
        network.begin_turn()
        network.evolve(sphere(3, 100, seed=seed), torch.tensor(labels), 0.5)
        sent.append(network.prototypes)
    network.prototypes = (sent[0] + 10 * sent[1]) / 11
    now = network.directions()
    assert torch.allclose(now[0], sent[0][0], atol=1e-4)
    assert torch.allclose(now[1], F.normalize(sent[0][1] + 10 * sent[1][1], dim=0), atol=1e-4)
    assert torch.allclose(now[2], sent[1][2], atol=1e-4)
    assert torch.allclose(now[3], received[3], atol=1e-6)


def test_a_prototype_that_nobody_updates_does_not_turn_or_fade() -> None:
    network: CopeNetwork = model_for(cope(training=TRAINING))
    network.begin_turn()
    before, length = network.directions(), network.prototypes.norm(dim=1)
    for _ in range(1000):
        network.begin_turn()
    assert torch.equal(network.directions(), before)
    assert torch.equal(network.prototypes.norm(dim=1), length)
    assert (length > 0).all()


def rows_of(state: State) -> torch.Tensor:
    (rows,) = [tensor for key, tensor in state.tensors.items() if key.endswith("/rows")]
    return rows


@pytest.mark.parametrize("size", [1, 3, 20, 1000])
def test_memory_is_bounded_shared_by_classes_and_of_the_past(size: int) -> None:
    stream = split(3)
    reports = live(
        cope(training=TRAINING, memory_per_client=size),
        model_for(cope(training=TRAINING)),
        stream,
        rounds=2,
    )
    for place, report in enumerate(reports):
        rows = rows_of(report.state)
        past = sum(len(experience) for experience in stream[: place // 2])
        assert len(rows) == min(size, past)
        assert set(rows[:, 0].tolist()) <= set(range(place // 2))
        assert report.replayed > 0
    counts = torch.bincount(DIGITS.y[rows[:, 1]], minlength=4)[:4]
    assert size == 1000 or int(counts.max() - counts.min()) <= 1


def test_replay_shows_past_and_present_in_equal_parts() -> None:
    strategy, stream, seen = cope(training=STILL, memory_per_client=20), split(2), []
    state = live(strategy, model_for(strategy), stream[:1])[-1].state
    network = model_for(strategy)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    turn = turn_at(1, previous=stream[0])
    strategy.train_turn(network, stream[1], stream.__getitem__, turn, state)
    replayed = seen[0][32:]  # after the batch of 32, all of memory
    labels = [int(DIGITS.y[(DIGITS.x == x).all(1)][0]) for x in replayed]
    assert torch.bincount(torch.tensor(labels)).tolist() == [5, 5, 5, 5]


def test_two_clients_learn_a_stream_of_classes_and_remember_them() -> None:
    streams = shared((0.4, 0.6))
    strategy = cope(training=replace(TRAINING, max_grad_norm=5.0))
    federation = Federation(strategy, streams, partial(mlp, hidden=64), 0.0)
    for index in range(3):
        federation.learn_all(index, 4, batch_size=8)
    assert accuracy(federation.model, streams[1]) > 0.8


BAD = [
    ({"memory_per_client": 0}, "continual.memory_per_client=0: must be at least 1"),
    ({"memory_batch_size": 0}, "continual.memory_batch_size=0: must be at least 1"),
    ({"embedding_size": 1}, "continual.embedding_size=1: must be at least 2"),
    ({"alpha": 1.1}, r"continual.alpha=1.1: must be in \[0, 1\]"),
    ({"temperature": 0.0}, "continual.temperature=0.0: must be greater than 0"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_a_bad_setting_is_named(settings, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        cope(training=TRAINING, **settings)
