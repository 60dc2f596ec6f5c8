"""LFL and feature distillation: features near those of the last experience's model."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from avalanche.training.plugins import FeatureDistillationPlugin, LFLPlugin
from lone_client import TRAINING, gap, live, mlp, permuted, persist, split, through_json, turn_at
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.models.cnn import SmallCNN
from fedlearn.models.lenet import LeNet5
from fedlearn.models.mlp import MLP
from fedlearn.types import Experience, Samples, State
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.feature_distillation import feature_distillation
from strategies.continual.avalanche.lfl import lfl

STRATEGIES = {
    "lfl": partial(lfl, lambda_e=3.0, freeze_head=False),
    "frozen lfl": partial(lfl, lambda_e=3.0),
    "cosine": partial(feature_distillation, alpha=3.0),
    "mse": partial(feature_distillation, alpha=3.0, mode="mse"),
}


def second_turn(
    strategy: AvalancheContinual, model: nn.Module, stream: list[Experience]
) -> tuple[nn.Module, float]:
    """Train one step on `stream[0]`, receive other weights in `model`, train one on `stream[1]`.

    Returns:
        The client's own model after the first turn, and the loss of the second.
    """
    first = turn_at(0, batch_size=len(stream[0]))
    state = strategy.train_turn(model, stream[0], stream.__getitem__, first, State()).state
    own = mlp()
    own.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    turn = turn_at(1, previous=stream[0], batch_size=len(stream[1]))
    report = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state)
    return own, report.loss


def features(model: nn.Sequential, x: Tensor) -> Tensor:
    return model[:-1](x).detach()


DISTANCES = {
    "lfl": lambda new, old: ((new - old) ** 2).mean(),
    "frozen lfl": lambda new, old: ((new - old) ** 2).mean(),
    "cosine": lambda new, old: 1 - (F.normalize(new) * F.normalize(old)).sum(1).mean(),
    "mse": lambda new, old: ((new - old) ** 2).mean(),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_loss_gets_the_distance_to_the_teachers_features(name: str) -> None:
    stream, model = split(2), mlp()
    own, loss = second_turn(STRATEGIES[name](training=TRAINING), model, stream)
    received = mlp()
    received.load_state_dict(
        {key: 1.3 * tensor for key, tensor in own.state_dict().items()}, strict=True
    )
    x, y = stream[1].gather()
    new, old = features(received, x), features(own, x)
    expected = F.cross_entropy(received(x), y) + 3.0 * DISTANCES[name](new, old)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)


def test_lfls_head_stands_still_after_the_first_experience_and_features_do_not() -> None:
    stream = permuted(2)
    for is_frozen in (True, False):
        strategy, model = lfl(training=TRAINING, freeze_head=is_frozen), mlp()
        state = live(strategy, model, stream[:1], rounds=2)[-1].state
        assert not torch.equal(model[-1].weight, mlp()[-1].weight)
        first, head = model[0].weight.detach().clone(), model[-1].weight.detach().clone()
        for epoch, previous in ((2, stream[0]), (3, None)):
            turn = turn_at(epoch, previous=previous)
            report = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state)
            state = report.state
        assert torch.equal(model[-1].weight, head) is is_frozen
        assert not torch.equal(model[0].weight, first)


def test_a_frozen_head_agrees_exactly_over_rounds_epochs_and_bytes() -> None:
    """The settings of the other tests leave the head free."""
    for training in (TRAINING, replace(TRAINING, max_grad_norm=0.5)):
        strategy = lfl(training=training)
        models = [mlp(dropout=0.3, norm=True) for _ in range(4)]
        live(strategy, models[0], split(), rounds=3)
        live(strategy, models[1], split(), epochs=3)
        live(strategy, models[2], split(), rounds=3, carry=through_json)
        persist(strategy, models[3], split(), epochs=3)
        assert [gap(models[0], other) for other in models[1:]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", STRATEGIES)
def test_nothing_stays_behind_on_the_model(name: str) -> None:
    """Upstream freezes the head and leaves evaluation mode on; clients share one model object."""
    model = mlp(dropout=0.3, norm=True)
    live(STRATEGIES[name](training=TRAINING), model, split(), rounds=2)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", STRATEGIES)
def test_dropout_and_batch_statistics_go_on_in_the_second_experience(name: str) -> None:
    model = mlp(dropout=0.3, norm=True)
    reports = live(STRATEGIES[name](training=TRAINING), model, split(2), rounds=2)
    assert int(model[1].num_batches_tracked) == sum(report.steps for report in reports)


def test_upstreams_student_stays_in_evaluation_mode_from_its_second_step_on() -> None:
    class Anyones(LFLPlugin):
        def before_training(self, strategy, **kwargs):
            strategy.model.get_features = strategy.model[:-1].forward

    def upstream(plugin) -> AvalancheContinual:
        return AvalancheContinual(TRAINING, plugins=lambda: [plugin], consolidates="model")

    model = mlp(norm=True)
    model.get_features = model[:-1].forward
    persist(upstream(Anyones(1.0)), model, split(1), epochs=1)
    seen = int(model[1].num_batches_tracked)
    plugin = Anyones(1.0)
    plugin.prev_model = mlp(norm=True)
    plugin.prev_model.get_features = plugin.prev_model[:-1].forward
    persist(upstream(plugin), model, split(1), epochs=1)
    assert int(model[1].num_batches_tracked) == seen + 1 < 2 * seen


def test_upstreams_squared_distance_fails() -> None:
    learner = FeatureDistillationPlugin(mode="mse")

    class Wrapped(nn.Module):
        features = torch.zeros(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x

    learner.prev_model = Wrapped()
    strategy = type("Strategy", (), {"mb_x": torch.zeros(2), "mb_task_id": None})
    strategy.model, strategy.loss = Wrapped(), torch.zeros(())
    with pytest.raises(TypeError, match="dim"):
        learner.before_backward(strategy)


@pytest.mark.parametrize("name", ["lfl", "cosine"])
def test_the_teacher_stands_still(name: str) -> None:
    strategy = STRATEGIES[name](training=TRAINING)
    teacher = persist(strategy, mlp(dropout=0.5, norm=True), split(2), 1).plugins[0].prev_model
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("kind", [MLP, SmallCNN, LeNet5])
def test_features_are_found_in_any_model(kind: type[nn.Module], name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    store = Samples(torch.randn(24, 1, 16, 16, generator=generator), torch.arange(24) % 4)
    stream = [Experience(at, store, torch.arange(12) + 12 * at, (0, 1, 2, 3)) for at in range(2)]
    training = replace(TRAINING, num_classes=4, input_shape=(1, 16, 16))
    model = kind(input_shape=(1, 16, 16), num_classes=4)
    live(STRATEGIES[name](training=training), model, stream, rounds=2)


@pytest.mark.parametrize("name", ["lfl", "cosine"])
def test_a_model_without_a_linear_layer_is_refused_by_name(name: str) -> None:
    model = nn.Sequential(nn.Unflatten(1, (64, 1)), nn.Conv1d(64, 10, 1), nn.Flatten())
    with pytest.raises(ValueError, match="linear layer"):
        live(STRATEGIES[name](training=TRAINING), model, split(2))


def test_a_client_keeps_its_teacher() -> None:
    theta = 4 * sum(parameter.numel() for parameter in mlp().parameters())
    for strategy in (lfl, feature_distillation):
        for anchor, size in (("local", 2), ("global", 1)):
            made = strategy(training=TRAINING, anchor=anchor)
            assert live(made, mlp(), split(), rounds=2)[-1].state.num_bytes == size * theta


@pytest.mark.parametrize(
    ("strategy", "setting", "message"),
    [
        (lfl, {"lambda_e": -1}, "continual.lambda_e=-1: must be at least 0"),
        (feature_distillation, {"alpha": -1}, "continual.alpha=-1: must be at least 0"),
        (feature_distillation, {"mode": "l1"}, "continual.mode=l1: must be one of cosine, mse"),
    ],
)
def test_wrong_settings_are_refused(strategy, setting, message) -> None:
    with pytest.raises(ValueError, match=message):
        strategy(training=TRAINING, **setting)
