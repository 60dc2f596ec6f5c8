"""What Avalanche does wrong, and that we do not. Each test fails if its correction is dropped.

Where upstream's class stands beside ours, the test also says when upstream has mended itself.
"""

import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lone_client import (
    STRATEGIES,
    TRAINING,
    gap,
    live,
    mlp,
    permuted,
    persist,
    split,
    turn_at,
)
from torch import nn

from fedlearn.seeding import borrowed_global_rng
from fedlearn.types import Experience, Samples
from strategies.continual.avalanche.adapter import AvalancheContinual
from strategies.continual.avalanche.agem import agem
from strategies.continual.avalanche.corrections.der import DER, LogitsBuffer
from strategies.continual.avalanche.corrections.ewc import EWC, EWCPlugin
from strategies.continual.avalanche.corrections.lwf import (
    Distillation,
    LearningWithoutForgetting,
    LwF,
    LwFPlugin,
)
from strategies.continual.avalanche.corrections.mas import MAS, MASPlugin
from strategies.continual.avalanche.corrections.replay import Replay, ReplayPlugin
from strategies.continual.avalanche.corrections.si import (
    SynapticIntelligence,
    SynapticIntelligencePlugin,
)
from strategies.continual.avalanche.dataset import dataset_of, pairs_of
from strategies.continual.avalanche.der_plus_plus import der_plus_plus
from strategies.continual.avalanche.si import si


def running(plugin, training=TRAINING) -> AvalancheContinual:
    """Return a continual strategy that is one plugin, for one persistent client."""
    return AvalancheContinual(training, plugins=lambda: [plugin], consolidates="model")


# EWC


@pytest.mark.parametrize(("plugin", "leaves_no_trace"), [(EWC, True), (EWCPlugin, False)])
def test_ewc_leaves_modes_and_gradients_as_they_were(plugin, leaves_no_trace) -> None:
    model, stream = mlp(dropout=0.5, norm=True), split(1)
    model[1].eval()  # a normalisation layer that its user froze
    model.train = lambda mode=True: nn.Module.train(model, mode)
    before = torch.zeros_like(model[0].weight)
    model[0].weight.grad = before
    modes = [module.training for module in model.modules()]
    plugin(1.0).compute_importances(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        dataset_of(stream.__getitem__, pairs_of(stream[0])),
        torch.device("cpu"),
        32,
    )
    same_modes = [module.training for module in model.modules()] == modes
    assert (same_modes and model[0].weight.grad is before) is leaves_no_trace


# SI

numpy_2 = pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
"""Upstream's SI calls np.square on tensors; NumPy 2 warns that it will stop to."""


class CopyingSI(SynapticIntelligencePlugin):
    """Upstream's SI with its views replaced by copies, and nothing else."""

    def before_training_exp(self, strategy, **kwargs):
        super().before_training_exp(strategy, **kwargs)
        self._own(self.ewc_data[0])

    def before_training_iteration(self, strategy, **kwargs):
        super().before_training_iteration(strategy, **kwargs)
        self._own(self.syn_data["old_theta"])

    def _own(self, target):
        for data in target.values():
            data.data = data.data.clone()


@numpy_2
def test_upstream_si_is_naive_and_ours_is_not() -> None:
    models = {"naive": mlp(), "upstream": mlp(), "ours": mlp()}
    persist(STRATEGIES["naive"](training=TRAINING), models["naive"], permuted(), 3)
    persist(running(SynapticIntelligencePlugin(1e9)), models["upstream"], permuted(), 3)
    persist(running(SynapticIntelligence(1.0, 0.1, None)), models["ours"], permuted(), 3)
    assert gap(models["naive"], models["upstream"]) == 0.0
    assert gap(models["naive"], models["ours"]) > 1e-3


@numpy_2
def test_si_is_upstreams_formula_once_upstream_copies() -> None:
    ours, theirs = mlp(norm=True), mlp(norm=True)
    persist(running(SynapticIntelligence(5.0, 1e-3, 1e-3)), ours, split(), 3)
    persist(running(CopyingSI(10.0, eps=1e-3)), theirs, split(), 3)
    assert gap(ours, theirs) < 1e-5


@numpy_2
def test_si_importances_are_never_negative() -> None:
    heavy = replace(TRAINING, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.99))
    least = {}
    for name, plugin in (
        ("ours", SynapticIntelligence(0.1, 0.1, None)),
        ("theirs", CopyingSI(0.2, eps=0.1)),
    ):
        persist(running(plugin, heavy), mlp(), split(2), 20)
        least[name] = min(float(omega.data.min()) for omega in plugin.ewc_data[1].values())
    assert least["theirs"] < 0
    assert least["ours"] == 0


def test_si_caps_importances_only_where_asked() -> None:
    most = {}
    for cap in (None, 1e-3):
        plugin = SynapticIntelligence(1.0, 0.1, cap)
        persist(running(plugin), mlp(), split(2), 3)
        most[cap] = max(float(omega.max()) for omega in plugin.ewc_data[1].values())
    assert most[1e-3] == pytest.approx(1e-3)
    assert most[None] > 1e-2


def test_si_integrates_the_gradient_of_the_loss_and_not_the_clipped_one() -> None:
    model, stream = mlp(), split(1, size=20)
    x, y = stream[0].gather()
    loss = nn.functional.cross_entropy(model(x), y)
    gradient = torch.autograd.grad(loss, model[0].weight)[0]
    before = model[0].weight.detach().clone()
    clipped = replace(TRAINING, max_grad_norm=1e-2)
    state = live(si(training=clipped), model, stream)[-1].state
    step = model[0].weight.detach() - before
    assert torch.allclose(
        state.tensors["plugins.0.syn_data.trajectory/0.weight"], gradient * step, rtol=1e-4
    )
    assert float(step.norm()) < 0.1 * 1e-2 + 1e-6 < 0.1 * float(gradient.norm())


# LwF


@pytest.mark.parametrize(("plugin", "stands_still"), [(LwF, True), (LwFPlugin, False)])
def test_lwfs_teacher_stands_still(plugin, stands_still) -> None:
    learner = plugin(1.0, 2.0)
    persist(running(learner), mlp(dropout=0.5, norm=True), split(2), 1)
    teacher, x = learner.lwf.prev_model, split(1)[0].gather()[0]
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    same_answer = torch.equal(teacher(x), teacher(x))
    unmoved = all(torch.equal(before[name], now) for name, now in teacher.state_dict().items())
    assert (same_answer and unmoved) is stands_still


@pytest.mark.parametrize(
    ("kind", "is_fixed"), [(Distillation, True), (LearningWithoutForgetting, False)]
)
def test_lwfs_loss_does_not_depend_on_the_order_of_its_units(kind, is_fixed) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 16, 50, generator=generator)
    losses = set()
    for seed in range(20):
        units = torch.randperm(50, generator=torch.Generator().manual_seed(seed)).tolist()
        losses.add(float(kind()._distillation_loss(student, teacher, units)))
    assert (len(losses) == 1) is is_fixed


# MAS


@pytest.mark.parametrize(("plugin", "raises"), [(MAS, False), (MASPlugin, True)])
def test_mas_accepts_a_loss_of_exactly_0(plugin, raises) -> None:
    learner, model = plugin(), mlp()
    persist(running(learner), model, split(1), 1)
    strategy = SimpleNamespace(
        loss=torch.zeros(1),
        model=model,
        device=torch.device("cpu"),
        clock=SimpleNamespace(train_exp_counter=1),
    )
    if raises:
        with pytest.raises(ValueError, match="Loss is not available"):
            learner.before_backward(strategy)
    else:
        learner.before_backward(strategy)
        assert float(strategy.loss.detach()) == 0.0


@pytest.mark.parametrize(("plugin", "is_fixed"), [(MAS, True), (MASPlugin, False)])
def test_mas_importances_are_no_matter_of_dropouts_luck(plugin, is_fixed) -> None:
    model, stream = mlp(dropout=0.5, norm=True), split(1)
    statistics = model[1].running_mean.clone()
    strategy = running(plugin())._strategy(model, stream.__getitem__, turn_at(0))
    strategy.experience = running(None)._seen(stream[0], stream.__getitem__)
    one, other = (plugin()._get_importance(strategy)["0.weight"].data for _ in range(2))
    assert torch.equal(one, other) is is_fixed
    assert torch.equal(model[1].running_mean, statistics) is is_fixed


# Replay


@pytest.mark.parametrize(("plugin", "keeps_filters"), [(Replay, True), (ReplayPlugin, False)])
def test_replay_leaves_the_programs_warning_filters_alone(plugin, keeps_filters) -> None:
    stream = split(1)
    strategy = running(None)._strategy(mlp(), stream.__getitem__, turn_at(0))
    strategy.experience = running(None)._seen(stream[0], stream.__getitem__)
    with warnings.catch_warnings(record=True):
        before = list(warnings.filters)
        plugin(20, batch_size_mem=None).after_training_exp(strategy)
        assert (warnings.filters == before) is keeps_filters


# A-GEM


def test_agem_bounds_all_of_memory() -> None:
    strategy = agem(training=TRAINING, memory_per_client=11)
    for report in live(strategy, mlp(), split(5), rounds=1)[1:]:
        sizes = [len(rows) for key, rows in report.state.tensors.items() if "/rows" in key]
        assert sum(sizes) == 11
        assert max(sizes) - min(sizes) <= 1


def test_agem_shuffles_memory_so_that_short_epochs_see_all_of_it() -> None:
    strategy, stream = agem(training=TRAINING, memory_per_client=20, sample_size=4), split(2)
    oracle = persist(strategy, mlp(), stream[:1], epochs=1)
    oracle.experience = strategy._seen(stream[1], stream.__getitem__)
    seen = set()
    with borrowed_global_rng(0):
        for _ in range(50):
            oracle._before_training_epoch()
            first_step, _, _ = oracle.plugins[0].sample_from_memory()
            seen |= {tuple(sample.tolist()) for sample in first_step}
    assert len(seen) == 20


def test_agem_outlives_its_sample_size_in_experiences() -> None:
    strategy = agem(training=TRAINING, memory_per_client=20, sample_size=2)
    reports = live(strategy, mlp(), split(5))
    assert reports[-1].replayed == reports[-1].steps * 4


# DER


def test_der_replays_before_memory_fills_a_batch() -> None:
    strategy = der_plus_plus(training=TRAINING, memory_per_client=5)
    first, second = live(strategy, mlp(), split(2), batch_size=32)
    assert first.replayed == 0
    assert second.replayed == 5 * second.steps


def test_der_uses_the_criterion_when_it_replays() -> None:
    masked = replace(TRAINING, mask_loss=((0, 1), (2, 3), (4, 5), (6, 7, 8, 9)))
    strategy, model, stream = der_plus_plus(training=masked, alpha=0.0), mlp(), split(2)
    unseen = model[-1].weight.detach()[4:].clone()
    live(strategy, model, stream, rounds=2)
    assert torch.equal(model[-1].weight.detach()[4:], unseen)


def test_der_shares_memory_by_class_and_not_by_the_order_of_a_set() -> None:
    store = Samples(torch.rand(40, 64), torch.tensor([8, 0]).repeat(20))
    sizes = []
    for order in (torch.arange(40), torch.arange(39, -1, -1)):
        experience = Experience(0, store, order, (0, 8))
        strategy = running(None)._strategy(mlp(), lambda _: experience, turn_at(0))  # noqa: B023
        strategy.experience = running(None)._seen(experience, lambda _: experience)  # noqa: B023
        buffer = LogitsBuffer(3)
        buffer.update(strategy)
        sizes.append({label: len(group.buffer) for label, group in buffer.buffer_groups.items()})
    assert sizes[0] == sizes[1] == {0: 2, 8: 1}


def test_der_remembers_logits_of_the_samples_own_head() -> None:
    training = replace(TRAINING, heads=((0, 1), (2, 3)))
    strategy = der_plus_plus(training=training)
    oracle = persist(strategy, mlp(), split(2, task=True), epochs=1)
    assert isinstance(oracle, DER)
    for label, group in oracle.storage_policy.buffer_groups.items():
        for logits in group.buffer.logits:
            shown = (logits > -1e3).nonzero().flatten().tolist()
            assert shown == [label // 2 * 2, label // 2 * 2 + 1]
