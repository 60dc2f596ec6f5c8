"""MER and La-MAML: updates written out by hand, and a memory that fills while a client learns."""

import math
from dataclasses import replace

import pytest
import torch
from avalanche.training.supervised.lamaml_v2 import LaMAML as UpstreamLaMAML
from lone_client import DIGITS, TRAINING, gap, live, mlp, split, turn_at, weights
from test_methods import LINEAR, linear, tiny_stream
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.seeding import borrowed_global_rng, generator
from fedlearn.types import State
from strategies.continual.avalanche.la_maml import la_maml
from strategies.continual.avalanche.mer import mer
from strategies.continual.avalanche.naive import naive
from strategies.continual.reservoir import Reservoir, keys_of

STRATEGIES = {"mer": mer, "la_maml": la_maml}
Pair = tuple[Tensor, Tensor]


def step(model: nn.Linear, x: Tensor, y: Tensor, lr: float = 0.1) -> None:
    """Take a step of gradient descent on the mean cross-entropy."""
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= lr * gradient


def values(model: nn.Module) -> list[Tensor]:
    """Return copies of the parameters."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def go_back(model: nn.Module, start: list[Tensor], share: float) -> None:
    """Keep `share` of the way from `start`."""
    with torch.no_grad():
        for parameter, then in zip(model.parameters(), start, strict=True):
            parameter.copy_(then + share * (parameter - then))


def tiny_turns(strategy, model: nn.Module, **more) -> list[State]:
    """Train one step in each experience of the tiny stream; return the states."""
    stream = tiny_stream()
    first = strategy.train_turn(model, stream[0], stream.__getitem__, turn_at(0, **more), State())
    turn = turn_at(1, previous=stream[0], **more)
    second = strategy.train_turn(model, stream[1], stream.__getitem__, turn, first.state)
    return [first.state, second.state]


def remembered(state: State) -> Pair:
    """Return what memory holds of the tiny stream, in its order."""
    rows = state.tensors["memory/rows"]
    samples = tiny_stream()[0].samples
    return samples.x[rows[:, 1]], samples.y[rows[:, 1]]


def batch(epoch: int) -> Pair:
    """Return the batch of the tiny stream's experience `epoch`, shuffled as a turn does."""
    x, y = tiny_stream()[epoch].gather()
    order = torch.randperm(6, generator=generator(7, "batches", 0, epoch))
    return x[order], y[order]


def joined(one: Pair, other: Pair) -> Pair:
    """Return both."""
    return torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])


# Memory


@pytest.mark.parametrize("name", STRATEGIES)
def test_memory_holds_the_largest_keys_of_all_that_was_seen(name: str) -> None:
    """However often it was seen: an inclusion rule, from which uniformity follows."""
    stream, strategy = split(3), STRATEGIES[name](training=TRAINING, memory_per_client=15)
    parts = [keys_of(experience, turn_at(0).seed) for experience in stream]
    for epochs in (1, 2):
        for place, report in enumerate(live(strategy, mlp(), stream, epochs=epochs)):
            rows, keys = (torch.cat(each) for each in zip(*parts[: place + 1], strict=True))
            best = keys.argsort(descending=True)[:15]
            assert torch.equal(report.state.tensors["memory/rows"], rows[best])
            assert torch.equal(report.state.tensors["memory/keys"], keys[best])


def test_memory_takes_in_a_batch_after_the_step_and_is_drawn_from_before() -> None:
    stream, strategy = split(1, size=70), mer(training=TRAINING, memory_per_client=20)
    turn = turn_at(0, steps=2, batch_size=8)
    report = strategy.train_turn(mlp(), stream[0], stream.__getitem__, turn, State())
    order = torch.randperm(70, generator=generator(7, "batches", 0, 0))
    seen = stream[0].rows[order[:16]]
    assert sorted(report.state.tensors["memory/rows"][:, 1].tolist()) == sorted(seen.tolist())
    assert report.replayed == 8  # nothing in the first step, the first batch in the second


def test_a_reservoir_keeps_each_sample_with_the_same_chance() -> None:
    experience, times, clients = split(1, size=60)[0], torch.zeros(len(DIGITS)), 600
    for client_id in range(clients):
        memory = Reservoir(12)
        rows, keys = keys_of(experience, turn_at(0, client_id=client_id).seed)
        for part in range(0, 60, 7):
            memory.offer(rows[part : part + 7], keys[part : part + 7])
        times[memory.rows[:, 1]] += 1
    share = times[experience.rows] / clients
    assert float(share.sum()) == pytest.approx(12)
    spread = math.sqrt(0.2 * 0.8 / clients)
    assert float((share - 0.2).abs().max()) < 4 * spread


def test_offering_again_changes_nothing_and_says_so() -> None:
    experience, memory = split(1, size=30)[0], Reservoir(10)
    rows, keys = keys_of(experience, turn_at(0).seed)
    assert memory.offer(rows[:4], keys[:4]) is not None
    kept = memory.offer(rows[2:], keys[2:])
    before = memory.rows.clone()
    best = keys.argsort(descending=True)[:10]
    assert torch.equal(before, rows[best])
    here_then_offered = torch.cat([keys[:4].sort(descending=True).values, keys[2:]])
    assert torch.equal(here_then_offered[kept], memory.keys)
    assert memory.offer(rows, keys) is None
    assert torch.equal(memory.rows, before)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_mixed_batch_is_the_present_one_and_as_many_from_memory(name: str) -> None:
    still = replace(TRAINING, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    for memory_batch_size, drawn in ((None, 8), (3, 3), (50, 20)):
        strategy = STRATEGIES[name](training=still, memory_batch_size=memory_batch_size)
        reports = live(strategy, mlp(), split(2, size=24), epochs=1, batch_size=8)
        assert reports[1].replayed == 3 * drawn


# MER


@pytest.mark.parametrize(("passes", "size"), [(1, 1), (2, 1), (1, 5)])
def test_mers_step_is_the_algorithm(passes: int, size: int) -> None:
    settings = {"passes": passes, "inner_batch_size": size, "beta": 0.6, "gamma": 0.3}
    model, by_hand = linear(), linear()
    states = tiny_turns(mer(training=LINEAR, memory_per_client=6, **settings), model)
    for epoch in (0, 1):
        draws = generator(7, "replay", 0, epoch, 0)
        start = values(by_hand)
        for _ in range(passes):
            within = values(by_hand)
            x, y = batch(epoch)
            if epoch:  # memory holds all of experience 0
                rows = torch.randperm(6, generator=draws)
                x, y = joined((x, y), tuple(tensor[rows] for tensor in remembered(states[0])))
            for part in zip(x.split(size), y.split(size), strict=True):
                step(by_hand, *part)
            go_back(by_hand, within, 0.6)
        go_back(by_hand, start, 0.3)
    assert gap(model, by_hand) < 1e-6


def test_mer_on_whole_batches_that_keeps_all_of_the_way_is_plain_training() -> None:
    model, plain = mlp(), mlp()
    settings = {"inner_batch_size": 1000, "beta": 1.0, "gamma": 1.0}
    turn = turn_at(0, steps=1)
    stream = split(1)
    for strategy, each in (
        (mer(training=TRAINING, **settings), model),
        (naive(training=TRAINING), plain),
    ):
        strategy.train_turn(each, stream[0], stream.__getitem__, turn, State())
    assert gap(model, plain) < 1e-6


def test_mer_reports_the_loss_on_the_mixed_batch_after_the_step() -> None:
    model, stream = linear(), tiny_stream()
    strategy = mer(training=LINEAR, memory_per_client=6)
    reports = live(strategy, model, stream)
    x, y = joined(stream[0].gather(), stream[1].gather())
    assert reports[1].loss == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-5)


def test_mer_clips_every_step_on_a_sample() -> None:
    clipped = replace(LINEAR, max_grad_norm=1e-3)
    model, start = linear(2.0), linear(2.0)
    tiny_turns(mer(training=clipped, memory_per_client=6, gamma=0.5), model)
    longest = 0.5 * 0.1 * 1e-3 * (6 + 12)
    assert 0 < float((weights(model) - weights(start)).norm()) <= longest * 1.01


# La-MAML


def look_ahead(
    model: nn.Linear, rates: list[Tensor], parts: list[Pair], mixed: Pair, second_order: bool
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the meta-loss, and its gradients for the weights and for the rates."""
    theta = [value.requires_grad_() for value in values(model)]
    alpha = [rate.clone().requires_grad_() for rate in rates]
    phi, losses = theta, []
    for x, y in parts:
        loss = F.cross_entropy(x @ phi[0].T + phi[1], y)
        gradients = torch.autograd.grad(loss, phi, create_graph=True)
        if not second_order:
            gradients = [gradient.detach() for gradient in gradients]
        phi = [p - a * g.clamp(-1, 1) for p, a, g in zip(phi, alpha, gradients, strict=True)]
        losses.append(F.cross_entropy(mixed[0] @ phi[0].T + phi[1], mixed[1]))
    meta_loss = sum(losses) / len(losses)
    gradients = list(torch.autograd.grad(meta_loss, [*theta, *alpha]))
    return meta_loss.detach(), gradients[:2], gradients[2:]


def clipped(gradients: list[Tensor], bound: float = 1.0) -> list[Tensor]:
    """Return gradients of a joint L2 norm of at most `bound`."""
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    return [gradient * min(1.0, bound / float(norm)) for gradient in gradients]


@pytest.mark.parametrize("second_order", [True, False])
def test_la_mamls_step_is_the_algorithm(second_order: bool) -> None:
    settings = {"inner_updates": 3, "initial_rate": 0.3, "rate_of_rates": 0.2}
    strategy = la_maml(training=LINEAR, memory_per_client=6, second_order=second_order, **settings)
    model, by_hand = linear(), linear()
    states = tiny_turns(strategy, model)
    rates = [torch.full_like(parameter, 0.3).detach() for parameter in by_hand.parameters()]
    for epoch in (0, 1):
        x, y = batch(epoch)
        parts = list(zip(x.split(2), y.split(2), strict=True))
        mixed = (x, y) if not epoch else joined((x, y), remembered(states[0]))
        _, of_weights, of_rates = look_ahead(by_hand, rates, parts, mixed, second_order)
        rates = [r - 0.2 * g for r, g in zip(rates, clipped(of_rates), strict=True)]
        with torch.no_grad():
            steps = zip(by_hand.parameters(), rates, clipped(of_weights), strict=True)
            for parameter, rate, gradient in steps:
                parameter -= rate.relu() * gradient
        for name, rate in zip(("weight", "bias"), rates, strict=True):
            assert torch.allclose(states[epoch].tensors[f"rates/{name}"], rate, atol=1e-6)
    assert gap(model, by_hand) < 1e-6


def test_second_order_sees_more_than_first() -> None:
    x, y = batch(0)
    parts, rates = [(x, y)] * 2, [torch.full((4, 3), 0.5), torch.full((4,), 0.5)]
    (_, first, _), (_, second, _) = (
        look_ahead(linear(), rates, parts, (x, y), order) for order in (False, True)
    )
    assert float((first[0] - second[0]).abs().max()) > 1e-3


def test_la_mamls_reported_loss_is_the_meta_loss() -> None:
    strategy = la_maml(training=LINEAR, inner_updates=2, initial_rate=0.3, second_order=False)
    report = live(strategy, linear(), tiny_stream()[:1])[0]
    x, y = batch(0)
    rates = [torch.full((4, 3), 0.3), torch.full((4,), 0.3)]
    parts = list(zip(x.split(3), y.split(3), strict=True))
    expected, _, _ = look_ahead(linear(), rates, parts, (x, y), False)
    assert report.loss == pytest.approx(float(expected), rel=1e-5)


def test_a_weight_whose_rate_is_negative_stays() -> None:
    strategy = la_maml(training=LINEAR, initial_rate=0.0, rate_of_rates=0.0)
    model = linear()
    tiny_turns(strategy, model)
    assert gap(model, linear()) == 0.0


def test_a_batch_may_have_fewer_samples_than_there_are_parts() -> None:
    """Upstream cuts 6 samples into parts of 2, 2, 2, 0 and 0: the mean loss of none is NaN."""
    model, stream = linear(), tiny_stream()
    x, y = stream[0].gather()
    upstream = UpstreamLaMAML.__new__(UpstreamLaMAML)
    upstream.n_inner_updates, size = 5, math.ceil(6 / 5)
    parts = [(x[i * size :][:size], y[i * size :][:size]) for i in range(5)]
    assert math.isnan(float(F.cross_entropy(model(parts[-1][0]), parts[-1][1]).detach()))
    few = replace(stream[0], rows=stream[0].rows[:3])
    report = live(la_maml(training=LINEAR, inner_updates=5), model, [few])[0]
    assert math.isfinite(report.loss)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_la_maml_keeps_a_rate_for_each_trainable_parameter() -> None:
    model = mlp()
    model[0].bias.requires_grad_(False)
    states = [report.state for report in live(la_maml(training=TRAINING), model, split(2))]
    names = ["0.weight", "2.weight", "2.bias"]
    for state in states:
        assert [key for key in state.tensors if key.startswith("rates/")] == [
            f"rates/{name}" for name in names
        ]
        size = 4 * sum(model.get_parameter(name).numel() for name in names)
        assert state.num_bytes == size + 20 * (2 * 8 + 8)
    moved = states[1].tensors["rates/2.weight"] - states[0].tensors["rates/2.weight"]
    assert float(moved.abs().max()) > 1e-6


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_schedule_multiplies_la_mamls_rates(factor: float) -> None:
    scaled = {}
    for rate, lr_factor in ((0.1, factor), (0.1 * factor, 1.0)):
        strategy = la_maml(training=LINEAR, initial_rate=rate, rate_of_rates=0.0)
        scaled[rate] = linear()
        tiny_turns(strategy, scaled[rate], lr_factor=lr_factor)
    assert gap(*scaled.values()) < 1e-6


def test_the_runs_bound_holds_for_la_mamls_rates_too() -> None:
    bounded = replace(LINEAR, max_grad_norm=1e-3)
    strategy = la_maml(training=bounded, initial_rate=0.1, rate_of_rates=0.25)
    rates = tiny_turns(strategy, linear())[0].tensors
    moved = torch.cat([(rates[f"rates/{name}"] - 0.1).flatten() for name in ("weight", "bias")])
    assert 0 < float(moved.norm()) <= 0.25 * 1e-3 * 1.01


# Both


@pytest.mark.parametrize("name", STRATEGIES)
def test_batch_statistics_follow_the_mixed_batch_once_a_step(name: str) -> None:
    """Single samples have no variance: upstream's MER fails on them in training mode."""
    model, stream = mlp(norm=True), split(2, size=24)
    reports = live(STRATEGIES[name](training=TRAINING), model, stream, batch_size=8)
    assert int(model[1].num_batches_tracked) == sum(report.steps for report in reports) == 6
    assert model[1].training
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    assert float((model[1].weight - 1).detach().abs().max()) > 1e-5


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_a_step_trains_on_is_augmented_and_what_memory_keeps_is_not(name: str) -> None:
    double = replace(TRAINING, augment=lambda x, _: 2 * x)
    stream, strategy = split(1, size=16), STRATEGIES[name](training=double)
    oracle = strategy._strategy(mlp(), stream.__getitem__, turn_at(0, batch_size=8))
    oracle.experience = strategy._seen(stream[0], stream.__getitem__)
    with borrowed_global_rng(0):
        oracle._train_exp(oracle.experience, eval_streams=[])
        oracle._before_training_epoch()
        oracle.mbatch = next(iter(oracle.dataloader))
        mixed = oracle.with_memory()[0]
    raw = {tuple(x.tolist()) for x in stream[0].gather()[0]}
    assert {tuple(x.tolist()) for x in oracle._samples[0]} == raw
    assert len(mixed) == 16
    assert {tuple((x / 2).tolist()) for x in mixed} <= raw


@pytest.mark.parametrize(
    ("factory", "setting", "value", "bound"),
    [
        (mer, "memory_per_client", 0, "at least 1"),
        (mer, "memory_batch_size", 0, "at least 1"),
        (mer, "passes", 0, "at least 1"),
        (mer, "inner_batch_size", 0, "at least 1"),
        (mer, "beta", 0.0, "greater than 0"),
        (mer, "gamma", 1.5, r"in \[0, 1\]"),
        (la_maml, "memory_per_client", 0, "at least 1"),
        (la_maml, "memory_batch_size", 0, "at least 1"),
        (la_maml, "inner_updates", 0, "at least 1"),
        (la_maml, "initial_rate", -0.1, "at least 0"),
        (la_maml, "rate_of_rates", -1.0, "at least 0"),
        (la_maml, "max_norm", 0.0, "greater than 0"),
    ],
)
def test_a_bad_setting_is_named(factory, setting: str, value: float, bound: str) -> None:
    with pytest.raises(ValueError, match=rf"continual\.{setting}={value}: must be {bound}"):
        factory(training=TRAINING, **{setting: value})
