"""What each strategy adds to plain training, against formulas written out by hand.

Every experience here is a single batch, so that a turn of one epoch is one step.
"""

import math
from dataclasses import replace

import pytest
import torch
from lone_client import (
    SGD,
    STRATEGIES,
    TRAINING,
    built,
    gap,
    live,
    mlp,
    model_for,
    split,
    stream_for,
    training_for,
    turn_at,
    twin,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.seeding import generator
from fedlearn.types import Experience, Samples, State
from strategies.continual.avalanche.agem import agem
from strategies.continual.avalanche.der_plus_plus import der_plus_plus
from strategies.continual.avalanche.ewc import ewc
from strategies.continual.avalanche.lwf import lwf
from strategies.continual.avalanche.mas import mas
from strategies.continual.avalanche.naive import naive
from strategies.continual.avalanche.replay import replay
from strategies.continual.avalanche.si import si

LINEAR = replace(TRAINING, num_classes=4, input_shape=(3,))


def linear(scale: float = 1.0) -> nn.Linear:
    """Return a linear model of 3 inputs and 4 classes."""
    model = nn.Linear(3, 4)
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            values = torch.randn(parameter.shape, generator=generator(seed, "linear"))
            parameter.copy_(scale * values)
    return model


def tiny_stream() -> list[Experience]:
    """Return two experiences of 6 samples, of classes 0 and 1, then 2 and 3."""
    x = torch.randn(12, 3, generator=generator(5, "x"))
    store = Samples(x, torch.tensor([0, 1, 0, 1, 1, 0, 2, 3, 2, 3, 3, 2]))
    return [
        Experience(0, store, torch.arange(6), (0, 1)),
        Experience(1, store, torch.arange(6, 12), (2, 3)),
    ]


def two_turns(strategy, received: nn.Module) -> tuple[nn.Module, float, State]:
    """Train one step of experience 0, then receive other weights and do one step of experience 1.

    Returns:
        The client's own model after experience 0, and loss and state of the turn in experience 1,
        which leaves `received` trained.
    """
    stream, own = tiny_stream(), linear()
    state = strategy.train_turn(own, stream[0], stream.__getitem__, turn_at(0), State()).state
    turn = turn_at(1, previous=stream[0])
    report = strategy.train_turn(received, stream[1], stream.__getitem__, turn, state)
    return own, report.loss, report.state


def cross_entropy_gradients(model: nn.Linear, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the gradient of the mean cross-entropy of a linear model, without autograd."""
    residual = (F.softmax(model(x), dim=1) - F.one_hot(y, 4)).detach()
    return {"weight": residual.T @ x / len(x), "bias": residual.mean(0)}


def distance(model: nn.Module, anchor: nn.Module, importance: dict[str, Tensor]) -> float:
    """Return sum(importance * (theta - anchor)^2)."""
    anchors = dict(anchor.named_parameters())
    parts = [
        (importance[name] * (parameter - anchors[name]).detach() ** 2).sum()
        for name, parameter in model.named_parameters()
    ]
    return float(sum(parts))


def present_loss(model: nn.Module) -> float:
    """Return the cross-entropy of `model` on experience 1."""
    x, y = tiny_stream()[1].gather()
    return float(F.cross_entropy(model(x), y).detach())


def test_naive_is_plain_sgd() -> None:
    model, by_hand, stream = mlp(), mlp(), split(2)
    live(naive(training=TRAINING), model, stream, rounds=2, epochs=2)
    optimizer = SGD(by_hand.parameters())
    for epoch in range(8):
        x, y = stream[epoch // 4].gather()
        order = torch.randperm(len(y), generator=generator(7, "batches", 0, epoch))
        for rows in order.split(32):
            optimizer.zero_grad()
            F.cross_entropy(by_hand(x[rows]), y[rows]).backward()
            optimizer.step()
    assert gap(model, by_hand) == 0.0


def test_a_turn_reports_the_mean_loss_over_samples_of_its_last_epoch() -> None:
    still = replace(TRAINING, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    stream, model = split(1, size=70), mlp()  # batches of 32, 32 and 6
    report = live(naive(training=still), model, stream, epochs=2)[0]
    x, y = stream[0].gather()
    assert report.loss == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=1e-5)
    assert report.steps == 6
    assert report.replayed == 0


@pytest.mark.parametrize("mode", ["separate", "online"])
def test_ewc_adds_the_fisher_weighted_distance(mode: str) -> None:
    decay = None if mode == "separate" else 0.5
    strategy = ewc(training=LINEAR, ewc_lambda=3.0, mode=mode, decay_factor=decay)
    received = linear(scale=0.5)
    own, loss, state = two_turns(strategy, received)
    x, y = tiny_stream()[0].gather()
    fisher = {name: g**2 for name, g in cross_entropy_gradients(own, x, y).items()}
    expected = present_loss(linear(0.5)) + 3.0 * distance(linear(0.5), own, fisher)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, importance in fisher.items():
        kept = state.tensors[f"plugins.0.importances/0/{name}"]
        assert torch.allclose(kept, importance, rtol=1e-5)


def test_ewcs_fisher_is_the_mean_over_batches() -> None:
    strategy, stream, model = ewc(training=LINEAR), tiny_stream(), linear()
    first = turn_at(0, batch_size=4)
    state = strategy.train_turn(model, stream[0], stream.__getitem__, first, State()).state
    own = linear()
    own.load_state_dict(model.state_dict())
    turn = turn_at(1, previous=stream[0], batch_size=4)
    state = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state).state
    x, y = stream[0].gather()
    gradients = [
        cross_entropy_gradients(own, *batch)["weight"] for batch in ((x[:4], y[:4]), (x[4:], y[4:]))
    ]
    fisher = (gradients[0] ** 2 + gradients[1] ** 2) / 2
    assert torch.allclose(state.tensors["plugins.0.importances/0/weight"], fisher, rtol=1e-5)


def test_online_ewc_decays_what_it_had() -> None:
    strategy = ewc(training=TRAINING, mode="online", decay_factor=0.25)
    apart = ewc(training=TRAINING, ewc_lambda=0.0, mode="separate")
    still = replace(TRAINING, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    strategy, apart = replace(strategy, training=still), replace(apart, training=still)
    together = live(strategy, mlp(), split())[-1].state.tensors
    separate = live(apart, mlp(), split())[-1].state.tensors
    first, second = (separate[f"plugins.0.importances/{index}/0.weight"] for index in (0, 1))
    assert torch.allclose(together["plugins.0.importances/1/0.weight"], 0.25 * first + second)


def test_mas_adds_the_sensitivity_weighted_distance() -> None:
    received = linear(scale=0.5)
    own, loss, _ = two_turns(mas(training=LINEAR, lambda_reg=2.0), received)
    x, _ = tiny_stream()[0].gather()
    output = own(x).detach()  # the gradient of the mean squared norm is 2 f x / n
    omega = {"weight": (2 * output.T @ x / len(x)).abs(), "bias": (2 * output.mean(0)).abs()}
    expected = present_loss(linear(0.5)) + 2.0 * distance(linear(0.5), own, omega)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_si_adds_the_path_integral_over_the_distance() -> None:
    received = linear(scale=0.5)
    own, loss, _ = two_turns(si(training=LINEAR, si_lambda=4.0, damping=0.2), received)
    x, y = tiny_stream()[0].gather()
    start = linear()
    omega = {}
    for name, g in cross_entropy_gradients(start, x, y).items():
        step = (own.get_parameter(name) - start.get_parameter(name)).detach()
        omega[name] = -g * step / (step**2 + 0.2)
    expected = present_loss(linear(0.5)) + 4.0 * distance(linear(0.5), own, omega)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_lwf_adds_the_distance_to_the_teachers_old_classes() -> None:
    received = linear(scale=0.5)
    own, loss, _ = two_turns(lwf(training=LINEAR, alpha=1.5, temperature=3.0), received)
    x, _ = tiny_stream()[1].gather()
    teacher = F.softmax(own(x)[:, :2] / 3, dim=1).detach()
    student = F.log_softmax(linear(0.5)(x)[:, :2] / 3, dim=1).detach()
    divergence = (teacher * (teacher.log() - student)).sum(1).mean()
    assert loss == pytest.approx(present_loss(linear(0.5)) + 1.5 * float(divergence), rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_der_adds_the_distances_to_old_logits_and_labels(beta: float) -> None:
    strategy = der_plus_plus(training=LINEAR, memory_per_client=6, alpha=0.3, beta=beta)
    own, loss, state = two_turns(strategy, linear(scale=0.5))
    x, y = tiny_stream()[0].gather()  # memory holds all of it
    output = linear(0.5)(x).detach()
    old = 0.3 * F.mse_loss(output, own(x).detach()) + beta * F.cross_entropy(output, y)
    assert loss == pytest.approx(present_loss(linear(0.5)) + float(old), rel=1e-5)
    rows = torch.cat([rows for key, rows in state.tensors.items() if key.endswith("/rows")])
    assert sorted(rows[:, 1].tolist()) == list(range(6))


def test_replay_trains_on_both_batches_as_one() -> None:
    received, by_hand = linear(scale=0.5), linear(scale=0.5)
    _, loss, _ = two_turns(replay(training=LINEAR, memory_per_client=6), received)
    x, y = (torch.cat(pair) for pair in zip(*(e.gather() for e in tiny_stream()), strict=True))
    expected = F.cross_entropy(by_hand(x), y)
    expected.backward()
    SGD(by_hand.parameters()).step()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert gap(received, by_hand) < 1e-6


def test_agem_projects_exactly_where_memory_would_suffer() -> None:
    projected = []
    for scale in (0.1, 0.5, 1.0, 2.0, 4.0):
        strategy = agem(training=LINEAR, memory_per_client=6, sample_size=6)
        received, start = linear(scale), linear(scale)
        two_turns(strategy, received)
        past, present = (
            torch.cat([g.flatten() for g in cross_entropy_gradients(start, *e.gather()).values()])
            for e in tiny_stream()
        )
        if bool(past @ present < 0):
            present = present - (past @ present) / (past @ past) * past
            assert float(past @ present) == pytest.approx(0, abs=1e-6)
            projected.append(True)
        else:
            projected.append(False)
        step = torch.cat(
            [
                (before - after).detach().flatten()
                for before, after in zip(start.parameters(), received.parameters(), strict=True)
            ]
        )
        assert torch.allclose(step, 0.1 * present, atol=1e-6)
    assert set(projected) == {True, False}


def test_the_proximal_term_pulls_with_mu_times_the_distance() -> None:
    model, by_hand, stream = mlp(), mlp(), split(1)
    turn = turn_at(0, epochs=3, config={"proximal-mu": 0.5})
    naive(training=TRAINING).train_turn(model, stream[0], stream.__getitem__, turn, State())
    received = [parameter.detach().clone() for parameter in by_hand.parameters()]
    optimizer = SGD(by_hand.parameters())
    x, y = stream[0].gather()
    for epoch in range(3):
        order = torch.randperm(len(y), generator=generator(7, "batches", 0, epoch))
        for rows in order.split(32):
            optimizer.zero_grad()
            F.cross_entropy(by_hand(x[rows]), y[rows]).backward()
            for parameter, start in zip(by_hand.parameters(), received, strict=True):
                parameter.grad += 0.5 * (parameter.detach() - start)
            optimizer.step()
    assert gap(model, by_hand) < 1e-6
    assert gap(model, _trained_without_term(stream[0])) > 1e-3


def _trained_without_term(experience: Experience) -> nn.Module:
    model = mlp()
    turn = turn_at(0, epochs=3, config={"proximal-mu": 0.0})
    naive(training=TRAINING).train_turn(model, experience, lambda _: experience, turn, State())
    return model


NOT_FROM_THE_RECEIVED = ["from_scratch"]
"""Those that start a turn at other weights."""
ALL_AT_ONCE = ["joint"]
"""Those that need the whole stream."""
SETTLED = ["slda", "fecam"]
"""Those that train no weight after the first experience."""
MANY_STEPS_IN_ONE = ["mer", "la_maml"]
"""Those that move the weights several times in what they count as one step."""
TRAINING_ON = [
    name for name in STRATEGIES if name not in NOT_FROM_THE_RECEIVED + ALL_AT_ONCE + SETTLED
]


@pytest.mark.parametrize("name", TRAINING_ON)
def test_the_proximal_term_is_anchored_at_the_received_weights(name: str) -> None:
    """With a large mu and small steps, the model stays at what was received."""
    slow = replace(
        training_for(name),
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-4),
        num_experiences=2,
    )
    strategy, stream = built(name, slow), stream_for(name, 2)
    own = model_for(strategy)
    state = live(strategy, own, stream[:1])[-1].state
    received = twin(own)
    with torch.no_grad():
        for seed, parameter in enumerate(received.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator(seed, "shift")) / 10)
    moved = {
        "to its own": math.sqrt(squared_distance(own, received))
    }  # where a wrong anchor would pull
    for case, mu in (("without it", 0.0), ("with it", 9e3)):
        model = twin(received)
        turn = turn_at(1, 20, stream[0], config={"proximal-mu": mu})
        strategy.train_turn(model, stream[1], stream.__getitem__, turn, state)
        moved[case] = math.sqrt(squared_distance(model, received))
    assert moved["with it"] < 0.5 * min(moved["to its own"], moved["without it"])


@pytest.mark.parametrize("name", [n for n in TRAINING_ON if n not in MANY_STEPS_IN_ONE])
def test_no_step_is_longer_than_the_clipped_gradient(name: str) -> None:
    strategy = built(name, replace(training_for(name), max_grad_norm=1e-3, num_experiences=2))
    stream = stream_for(name, 2, size=32)  # a single batch: one step
    model = model_for(strategy)
    state = live(strategy, model, stream[:1])[-1].state
    start = twin(model)
    turn = turn_at(1, previous=stream[0])
    report = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state)
    assert 0 < math.sqrt(squared_distance(model, start)) <= report.steps * 0.1 * 1e-3 * 1.01


def squared_distance(one: nn.Module, other: nn.Module) -> float:
    """Return the squared L2 distance between two models' parameters."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return float(sum((mine - its).detach().pow(2).sum() for mine, its in pairs))
