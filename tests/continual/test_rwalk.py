"""RWalk: a running Fisher, scores of the path, and the penalty that they weigh."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from avalanche.training.plugins import RWalkPlugin
from lone_client import TRAINING, gap, live, mlp, permuted, persist, split, turn_at, weights
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.seeding import generator
from fedlearn.types import State
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.corrections.rwalk import RWalk
from strategies.continual.avalanche.rwalk import rwalk


def running(plugin: RWalkPlugin, training=TRAINING) -> AvalancheContinual:
    """Return a continual strategy that is one plugin, for one persistent client."""
    return AvalancheContinual(training, plugins=lambda: [plugin], consolidates="model")


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


class ByHand:
    """RWalk over one flat vector of weights, as the paper's equations have it."""

    def __init__(self, model: nn.Module, lam: float, alpha: float, delta_t: int) -> None:
        self.model, self.lam, self.alpha, self.delta_t = model, lam, alpha, delta_t
        self.theta = nn.utils.parameters_to_vector(model.parameters()).detach()
        self.fisher, self.past, self.penalty = None, None, None

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(self.theta, self.model.parameters())
        loss = F.cross_entropy(self.model(x), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.model.parameters())])

    def learn(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        eps = torch.finfo(torch.float32).eps
        start, fall, scores = self.theta, torch.zeros_like(self.theta), 0.0
        for step, (x, y) in enumerate(batches, 1):
            g = self.gradient(x, y)
            new = g**2
            self.fisher = (
                new if self.fisher is None else self.alpha * new + (1 - self.alpha) * self.fisher
            )
            total = g
            if self.penalty is not None:
                total = g + self.lam * 2 * self.penalty * (self.theta - self.anchor)
            moved = self.theta - 0.1 * total
            fall = fall - g * (moved - self.theta)
            self.theta = moved
            if step % self.delta_t == 0 or step == len(batches):
                scores = scores + fall / (0.5 * self.fisher * (self.theta - start) ** 2 + eps)
                start, fall = self.theta, torch.zeros_like(fall)
        self.past = scores if self.past is None else (self.past + scores) / 2
        self.anchor = self.theta
        self.penalty = (
            self.fisher / self.fisher.max() + self.past.clamp(min=0) / self.past.clamp(min=0).max()
        )


@pytest.mark.parametrize("delta_t", [1, 2, 4, 100])
def test_it_is_the_papers_equations(delta_t: int) -> None:
    """Six steps an experience: intervals that fit, that are cut short, and that never end."""
    model, by_hand, stream = mlp(), ByHand(mlp(), 0.5, 0.7, delta_t), split()
    strategy = rwalk(training=TRAINING, ewc_lambda=0.5, ewc_alpha=0.7, delta_t=delta_t)
    state = live(strategy, model, stream, rounds=2)[-1].state
    for index, experience in enumerate(stream):
        x, y = experience.gather()
        batches = []
        for epoch in (2 * index, 2 * index + 1):
            order = torch.randperm(len(y), generator=generator(7, "batches", 0, epoch))
            batches += [(x[rows], y[rows]) for rows in order.split(32)]
        if index == 2:
            assert torch.allclose(
                flat({k: v for k, v in state.tensors.items() if "exp_penalties" in k}),
                by_hand.penalty,
                rtol=1e-2,
                atol=1e-4,
            )
        by_hand.learn(batches)
    assert torch.allclose(weights(model).float(), by_hand.theta, atol=1e-4)


def test_it_is_upstreams_where_upstream_is_right() -> None:
    """No dropout, no normalisation, and intervals that end with the experience."""
    ours, theirs, naive = mlp(), mlp(), mlp()
    persist(running(RWalk(5.0, 0.9, 3)), ours, permuted(), 3)
    persist(running(RWalkPlugin(5.0, 0.9, 3)), theirs, permuted(), 3)
    persist(AvalancheContinual(TRAINING), naive, permuted(), 3)
    assert gap(ours, theirs) < 1e-4
    assert gap(ours, naive) > 1e-2


@pytest.mark.parametrize(("plugin", "trains"), [(RWalk, True), (RWalkPlugin, False)])
def test_training_is_in_training_mode(plugin, trains: bool) -> None:
    model = mlp(dropout=0.5, norm=True)
    learner = plugin(0.5, 0.9, 3)
    strategy = persist(running(learner), model, split(1), epochs=2)
    assert int(model[1].num_batches_tracked) == (strategy.clock.train_iterations if trains else 0)
    assert model.training is trains


@pytest.mark.parametrize(("plugin", "is_finite"), [(RWalk, True), (RWalkPlugin, False)])
def test_a_client_with_fewer_steps_than_an_interval_has_scores(plugin, is_finite: bool) -> None:
    learner = plugin(0.5, 0.9, 100)
    persist(running(learner), mlp(), split(1), epochs=1)
    penalties = learner.exp_penalties
    values = [each if isinstance(each, Tensor) else each.data for each in penalties.values()]
    assert all(bool(value.isfinite().all()) for value in values) is is_finite
    if is_finite:
        assert max(float(score.max()) for score in learner.exp_scores.values()) > 0


def test_a_path_without_gain_weighs_by_the_fisher_alone() -> None:
    """With a learning rate of 0 there is no path, and upstream divides 0 by 0."""
    still = replace(TRAINING, optimizer=partial(torch.optim.SGD, lr=0.0))
    learner = RWalk(0.5, 0.9, 2)
    persist(running(learner, still), mlp(), split(1), epochs=1)
    fisher = flat(learner.path["fisher"])
    assert torch.equal(flat(learner.exp_penalties), fisher / fisher.max())


def test_what_the_server_does_between_two_rounds_is_no_step_of_the_path() -> None:
    """Between two rounds of one interval the server moves the weights far away."""
    stream = split(1)
    strategy, model = rwalk(training=TRAINING, delta_t=100), mlp()
    state = live(strategy, model, stream)[-1].state
    walked = {k: v for k, v in state.tensors.items() if "path/walked" in k}
    start = mlp()
    steps = weights(model) - weights(start)
    assert torch.allclose(flat(walked).double(), steps, atol=1e-6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(5.0)
    before = weights(model)
    turn = turn_at(1)
    state = strategy.train_turn(model, stream[0], stream.__getitem__, turn, state).state
    walked = {k: v for k, v in state.tensors.items() if "path/walked" in k}
    assert torch.allclose(flat(walked).double(), steps + weights(model) - before, atol=1e-5)


def test_the_path_reads_the_gradient_of_the_loss_before_clipping_and_without_the_penalty() -> None:
    stream, model = split(2, size=20), mlp()
    clipped = replace(TRAINING, max_grad_norm=1e-2)
    strategy = rwalk(training=clipped, ewc_lambda=100.0, ewc_alpha=1.0, delta_t=100)
    state = live(strategy, model, stream[:1])[-1].state
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    x, y = stream[1].gather()
    gradient = torch.autograd.grad(F.cross_entropy(model(x), y), model[0].weight)[0]
    before = model[0].weight.detach().clone()
    turn = turn_at(1, previous=stream[0])
    state = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state).state
    step = model[0].weight.detach() - before
    kept = {key: state.tensors[f"plugins.0.path/{key}/0.weight"] for key in ("fisher", "loss")}
    assert torch.allclose(kept["fisher"], gradient**2, rtol=1e-3, atol=1e-9)
    assert torch.allclose(kept["loss"], -gradient * step, rtol=1e-3, atol=1e-9)


def test_a_client_keeps_seven_times_the_parameters() -> None:
    theta = 4 * weights(mlp()).numel()
    for anchor, size in (("local", 8), ("global", 7)):
        strategy = rwalk(training=TRAINING, anchor=anchor)
        assert live(strategy, mlp(), split(), rounds=2)[-1].state.num_bytes == size * theta


def test_a_frozen_layer_has_no_path() -> None:
    model, stream = mlp(), split(2)
    model[0].requires_grad_(False)
    state, previous = State(), None
    for index, experience in enumerate(stream):
        turn = turn_at(index, previous=previous)
        report = rwalk(training=TRAINING).train_turn(
            model, experience, stream.__getitem__, turn, state
        )
        state, previous = report.state, experience
    assert not [key for key in state.tensors if key.startswith("plugins") and "/0." in key]
    assert torch.equal(model[0].weight, mlp()[0].weight)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ewc_lambda": -1.0}, "continual.ewc_lambda=-1.0: must be at least 0"),
        ({"ewc_alpha": 1.5}, r"continual.ewc_alpha=1.5: must be in \[0, 1\]"),
        ({"delta_t": 0}, "continual.delta_t=0: must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(setting, message) -> None:
    with pytest.raises(ValueError, match=message):
        rwalk(training=TRAINING, **setting)
