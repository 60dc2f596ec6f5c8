"""Options of local training under Avalanche: each does what it says, and nothing when off."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from lone_client import (
    KINDS,
    STRATEGIES,
    TASK_TRAINING,
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
    weights,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fedlearn.freezing import freeze
from fedlearn.heads import head_table, hide
from fedlearn.losses import class_weights
from fedlearn.types import DivergedError, Experience, LocalTraining, Report, State
from strategies.continual.avalanche.local_training import GradientNorm, in_bfloat16

SOME = ["naive", "replay", "ewc", "der_plus_plus", "si", "agem", "lwf"]
"""A strategy of each sort: nothing, data, penalties, its own criterion, its own batches."""


def one_turn(
    training: LocalTraining,
    model: nn.Module,
    name: str = "naive",
    experience: Experience | None = None,
    **more: Any,
) -> Report:
    """Train `model` for client 0's first turn."""
    strategy, stream = STRATEGIES[name](training=training), split()
    experience = experience or stream[0]
    turn = turn_at(0, **more)
    return strategy.train_turn(model, experience, stream.__getitem__, turn, State())


# --- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_as_many_steps_as_whole_epochs_have_are_those_epochs(name: str) -> None:
    """70 samples in batches of 32 are 3 steps an epoch."""
    strategy, stream = built(name), stream_for(name)
    by_epoch, by_step = mlp(), mlp()
    epochs = live(strategy, by_epoch, stream, rounds=2, epochs=2)
    steps = live(strategy, by_step, stream, rounds=2, epochs=2, steps=6)
    assert gap(by_epoch, by_step) == 0.0
    assert [each.loss for each in epochs] == [each.loss for each in steps]
    assert [each.replayed for each in epochs] == [each.replayed for each in steps]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_a_turn_of_steps_ends_where_they_do(name: str, steps: int) -> None:
    strategy, stream = built(name), stream_for(name)
    for report in live(strategy, mlp(), stream, steps=steps):
        assert report.steps == steps
        assert math.isfinite(report.loss)


def test_the_steps_of_a_turn_are_the_first_of_a_longer_one() -> None:
    short, long = mlp(), mlp()
    norms: list[Tensor] = []

    class Taps(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            norms.append(weights(long))

    one_turn(TRAINING, short, steps=4)
    one_turn(replace(TRAINING, optimizer=partial(Taps, lr=0.1)), long, steps=6)
    assert len(norms) == 6
    assert torch.equal(norms[3], weights(short))
    assert not torch.equal(norms[5], weights(short))


# --- the learning rate --------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_a_factor_of_the_rate_is_another_rate(name: str) -> None:
    half = replace(TRAINING, optimizer=partial(torch.optim.SGD, lr=0.05))
    one, other, plain = mlp(), mlp(), mlp()
    live(built(name), one, stream_for(name), lr_factor=0.5)
    live(built(name, half), other, stream_for(name))
    live(built(name), plain, stream_for(name))
    assert gap(one, other) == 0.0
    assert gap(one, plain) > 1e-4


# --- augmentation -------------------------------------------------------------------------------


class Spy:
    """Adds noise to the inputs, and counts them."""

    def __init__(self, scale: float) -> None:
        self.scale, self.seen, self.draws = scale, 0, list[float]()

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        self.seen += len(x)
        noise = torch.randn(x.shape, generator=generator)
        self.draws.append(float(noise.flatten()[0]))
        return x + self.scale * noise


@pytest.mark.parametrize("name", SOME)
def test_present_and_replayed_inputs_are_augmented_alike(name: str) -> None:
    spy, stream = Spy(0.1), stream_for(name)
    model, plain = mlp(), mlp()
    reports = live(built(name, replace(TRAINING, augment=spy)), model, stream, rounds=2)
    live(built(name), plain, stream, rounds=2)
    present = 2 * sum(len(experience) for experience in stream)
    assert spy.seen == present + sum(report.replayed for report in reports)
    assert len(set(spy.draws)) == len(spy.draws)
    assert gap(model, plain) > 1e-3


@pytest.mark.parametrize("name", SOME)
def test_an_augmentation_that_changes_nothing_changes_no_draw(name: str) -> None:
    model, plain = mlp(dropout=0.3), mlp(dropout=0.3)
    live(built(name, replace(TRAINING, augment=Spy(0.0))), model, stream_for(name))
    live(built(name), plain, stream_for(name))
    assert gap(model, plain) == 0.0


@pytest.mark.parametrize("name", SOME)
def test_rounds_and_one_long_training_draw_the_same_augmentation(name: str) -> None:
    strategy = built(name, replace(TRAINING, augment=Spy(0.1)))
    in_rounds, at_once = mlp(), mlp()
    live(strategy, in_rounds, stream_for(name), rounds=3, epochs=1)
    live(strategy, at_once, stream_for(name), rounds=1, epochs=3)
    assert gap(in_rounds, at_once) == 0.0


# --- frozen parameters --------------------------------------------------------------------------


def _frozen(norm: bool = True) -> nn.Module:
    model = mlp(norm=norm)
    freeze(model, ["0.*", "1.*"] if norm else ["0.*"])
    return model


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "pnn"])
def test_frozen_weights_stay_bit_for_bit_under_every_strategy(name: str) -> None:
    """Under momentum and weight decay, the statistics of frozen normalisation layers included."""
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    training = replace(training_for(name), optimizer=optimizer, frozen=("0.*", "1.*"))
    strategy = built(name, training)
    model = model_for(strategy, partial(_frozen, norm=KINDS[name] != ["task"]))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    frozen = [key for key, each in model.named_parameters() if not each.requires_grad]
    assert frozen
    for key, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm1d) and not layer.weight.requires_grad:
            frozen += [f"{key}.{buffer}" for buffer, _ in layer.named_buffers()]
    live(strategy, model, stream_for(name), rounds=2)
    for key in frozen:
        assert torch.equal(model.state_dict()[key], before[key]), key
    assert any(
        not torch.equal(each, before[key])
        for key, each in model.named_parameters()
        if each.requires_grad
    )


@pytest.mark.parametrize("name", SOME)
def test_a_frozen_normalisation_layer_keeps_its_statistics(name: str) -> None:
    """Also under A-GEM, which puts the whole model in training mode at every step."""
    model, moving = _frozen(), mlp(norm=True)
    strategy = built(name, replace(TRAINING, frozen=("0.*", "1.*")))
    live(strategy, model, stream_for(name), rounds=2)
    live(strategy, moving, stream_for(name), rounds=2)
    assert (model[1].running_mean == 0).all()
    assert model[1].num_batches_tracked == 0
    assert (moving[1].running_mean != 0).any()


def test_the_optimiser_gets_what_is_trainable_only() -> None:
    given: list[int] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        parameters = list(parameters)
        given.append(len(parameters))
        return torch.optim.SGD(parameters, lr=0.1)

    one_turn(replace(TRAINING, optimizer=optimizer), _frozen())
    assert given == [2]  # weight and bias of the last layer


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["1.weigth"], r"local.freeze=1.weigth: matches no parameter; did you mean 1.weight\?"),
        (["0.*", "none"], "local.freeze=none: matches no parameter; parameters: 0.weight, "),
        (["*.weight", "*.bias"], "matches every parameter; nothing would train"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(
    patterns: list[str], message: str
) -> None:
    model = mlp(norm=True)
    with pytest.raises(ValueError, match=message):
        freeze(model, patterns)
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- precision ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_bfloat16_learns_nearly_the_same_and_leaves_a_float32_model(name: str) -> None:
    stream = stream_for(name)
    half, full = mlp(), mlp()
    strategy = built(name, replace(TRAINING, precision="bfloat16"))
    reports = live(strategy, half, stream, rounds=2)
    others = live(built(name), full, stream, rounds=2)
    assert 0 < gap(half, full) < 0.1
    assert reports[0].loss == pytest.approx(others[0].loss, rel=0.02)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert not half._forward_hooks
    assert not half._forward_pre_hooks
    x = stream[0].gather()[0]
    assert torch.equal(half(x), twin(half)(x))
    assert half(x).dtype == torch.float32


def test_only_the_forward_pass_is_in_bfloat16() -> None:
    model, seen = mlp(), list[torch.dtype]()
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x = split()[0].gather()[0]
    with in_bfloat16(model):
        logits = model(x)
        assert logits.dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")
        F.cross_entropy(logits, torch.zeros(len(x)).long()).backward()
        with pytest.raises(RuntimeError):
            model(x[:, :3])  # does not fit
        assert not torch.is_autocast_enabled("cpu")
        copied = twin(model)
        assert torch.equal(copied(x), model(x))
    assert seen[0] == torch.bfloat16
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    model(x)
    assert seen[-1] == torch.float32


def test_a_head_hides_exactly_also_in_bfloat16() -> None:
    """-1e4 is no bfloat16: the logits must be float32 again before other heads are hidden."""
    training = replace(TASK_TRAINING, precision="bfloat16", loss="mse")
    report = one_turn(training, mlp(), experience=split(task=True)[1])
    assert report.loss < 2  # a visible -9984 would make it 1e8


# --- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    "options",
    [{"loss": "bce"}, {"loss": "mse"}, {"label_smoothing": 0.1}, {"class_balance": 0.9}],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("task", [False, True], ids=["class", "task"])
def test_every_loss_trains_every_sort_of_strategy(
    name: str, options: dict[str, Any], task: bool
) -> None:
    base = TASK_TRAINING if task else TRAINING
    stream, model, plain = split(task=task), mlp(), mlp()
    reports = live(built(name, replace(base, **options)), model, stream, rounds=2)
    live(built(name, base), plain, stream, rounds=2)
    assert all(0 < report.loss < 20 for report in reports)
    assert reports[1].loss < reports[0].loss
    assert torch.isfinite(weights(model)).all()
    balanced = name == "naive" and "class_balance" in options
    assert balanced or gap(model, plain) > 1e-4  # these classes are balanced as they are


def test_one_step_of_bce_over_a_tasks_head_by_hand() -> None:
    training = replace(TASK_TRAINING, loss="bce")
    experience = split(task=True, size=10)[1]
    model, by_hand = mlp(), mlp()
    one_turn(training, model, experience=experience)
    x, y = experience.gather()
    F.binary_cross_entropy_with_logits(
        by_hand(x)[:, 2:4], F.one_hot(y - 2, 2).float(), reduction="none"
    ).sum(1).mean().backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad
    assert gap(model, by_hand) < 1e-6


def _uneven(index: int, few: int) -> Experience:
    """Return an experience with 30 samples of its first class and `few` of its second."""
    whole = split(size=None)[index]
    y = whole.samples.y[whole.rows]
    first, second = (whole.rows[y == label] for label in whole.classes)
    return replace(whole, rows=torch.cat([first[:30], second[:few]]))


def test_the_class_balance_is_that_of_the_experience_at_hand() -> None:
    """Of the present one in training, of the one that is consolidated while it is."""
    stream, seen = [_uneven(0, 3), _uneven(1, 9)], list[tuple[int, Tensor]]()
    strategy = built("ewc", replace(TRAINING, class_balance=0.9))
    prototype = strategy._prototype

    class Watching(type(prototype)):  # type: ignore[misc]
        def _before_training_epoch(self, **kwargs: Any) -> None:
            seen.append((self.experience.current_experience, self._criterion.class_weights))
            super()._before_training_epoch(**kwargs)

        def _after_training_exp(self, **kwargs: Any) -> None:
            seen.append((self.experience.current_experience, self._criterion.class_weights))
            super()._after_training_exp(**kwargs)

    prototype.__class__ = Watching
    live(strategy, mlp(), stream, rounds=2)
    assert [index for index, _ in seen] == [0, 0, 0, 1, 1]
    for index, given in seen:
        labels = stream[index].samples.y[stream[index].rows]
        assert torch.equal(given, class_weights(labels, 10, 0.9))
        rare, frequent = stream[index].classes[1], stream[index].classes[0]
        assert given[rare] > 1 > given[frequent]


def test_without_options_the_loss_of_a_head_is_the_cross_entropy_of_what_is_visible() -> None:
    experience = split(task=True, size=10)[1]
    model, by_hand = mlp(), mlp()
    one_turn(TASK_TRAINING, model, experience=experience)
    x, y = experience.gather()
    visible = head_table(TASK_TRAINING.heads or (), 10)[1]
    F.cross_entropy(hide(by_hand(x), visible), y).backward()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter -= 0.1 * parameter.grad
    assert gap(model, by_hand) < 1e-7


# --- gradient health ----------------------------------------------------------------------------


def _norms(training: LocalTraining, **more: Any) -> tuple[Report, list[float], nn.Module]:
    """Train a turn; return its report, the gradient norms at its steps, and the model."""
    model, taken = mlp(), list[float]()

    class Taps(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            squares = sum(float(each.grad.square().sum()) for each in model.parameters())
            taken.append(math.sqrt(squares))
            super().step()

    report = one_turn(replace(training, optimizer=partial(Taps, lr=0.1)), model, **more)
    return report, taken, model


def test_gradient_norms_are_the_mean_and_the_largest_over_the_turns_steps() -> None:
    report, taken, _ = _norms(replace(TRAINING, gradient_metrics=True), epochs=2)
    assert len(taken) == 6
    assert report.metrics["grad-norm"] == pytest.approx(sum(taken) / 6, rel=1e-5)
    assert report.metrics["grad-norm-max"] == pytest.approx(max(taken), rel=1e-5)
    assert one_turn(TRAINING, mlp()).metrics == {}


def test_norms_are_reported_from_before_clipping_and_measured_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, taken, _ = _norms(replace(TRAINING, gradient_metrics=True), steps=1)
    calls = list[str]()
    for name in ("clip_grad_norm_", "get_total_norm"):
        original: Callable[..., Any] = getattr(nn.utils, name)

        def counted(*args: Any, _name: str = name, _call: Any = original, **more: Any) -> Any:
            calls.append(_name)
            return _call(*args, **more)

        monkeypatch.setattr(nn.utils, name, counted)
    both = replace(TRAINING, gradient_metrics=True, max_grad_norm=0.1)
    clipped, short, model = _norms(both, steps=1)
    assert calls == ["clip_grad_norm_"]
    assert clipped.metrics == first.metrics
    assert taken[0] > 0.1
    assert short[0] == pytest.approx(0.1, rel=1e-3)
    _, _, silent = _norms(replace(TRAINING, max_grad_norm=0.1), steps=1)
    assert gap(model, silent) == 0.0


def test_watching_the_gradient_changes_nothing() -> None:
    watched, plain = mlp(), mlp()
    one_turn(replace(TRAINING, gradient_metrics=True), watched, epochs=2)
    one_turn(TRAINING, plain, epochs=2)
    assert gap(watched, plain) == 0.0


@pytest.mark.parametrize("name", SOME)
def test_a_loss_that_is_lost_raises(name: str) -> None:
    wild = replace(TRAINING, optimizer=partial(torch.optim.SGD, lr=1e30))
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf)"):
        live(built(name, wild), mlp(), stream_for(name), rounds=2)


def test_a_loss_above_its_bound_raises_and_one_below_does_not() -> None:
    """The largest loss of a step counts, not the last one."""
    first, last = (one_turn(TRAINING, mlp(), epochs=epochs).loss for epochs in (1, 2))
    bound = (first + last) / 2
    assert last < bound < first
    with pytest.raises(
        DivergedError, match=rf"the loss is [\d.]+, above local.max_loss={bound:g}$"
    ):
        one_turn(replace(TRAINING, max_loss=bound), mlp(), epochs=2)
    one_turn(replace(TRAINING, max_loss=10.0), mlp(), epochs=2)


def test_a_gradient_that_is_lost_raises_where_gradients_are_watched() -> None:
    class Odd(nn.Module):
        """Its output is finite and its gradient is not."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + (self.layer.weight.sum() * 0).abs().sqrt()

    with pytest.raises(DivergedError, match="the gradient's norm is nan"):
        one_turn(replace(TRAINING, gradient_metrics=True), Odd(), steps=1)


def test_clipping_leaves_frozen_parameters_out() -> None:
    model = _frozen()
    watcher = GradientNorm(model, 0.5, reports=True)
    assert [tuple(each.shape) for each in watcher._parameters] == [(10, 16), (10,)]
