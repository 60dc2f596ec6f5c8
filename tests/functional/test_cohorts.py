"""A cohort under ``vmap`` steps as its clients do one by one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from lone_client import TRAINING, TWINS, mlp
from torch import Tensor, nn
from twins import FUNCTIONAL, OPTIMIZERS

from fedlearn.freezing import freeze
from fedlearn.losses import make_loss
from fedlearn.types import LocalTraining
from strategies.continual.functional.cohort import (
    Stateless,
    initial_slots,
    over_cohort,
    stack,
    unstack,
)
from strategies.continual.functional.consolidation import Survey
from strategies.continual.functional.continual import FunctionalContinual
from strategies.continual.functional.method import Learnt
from strategies.continual.functional.springs import Spring
from strategies.continual.functional.step import Step, by_transform
from strategies.continual.functional.trees import Batch, Tree

THERE = (6, 4, 0, 6)
"""Present samples of each client's padded batches; the third one has none."""
REMEMBERED = (5, 3, 5, 0)
"""And of what each replays."""
TASKS = replace(TRAINING, heads=((0, 1), (2, 3), (4, 5)))


class Cohort:
    """Clients with weights, memories and padded batches of their own."""

    def __init__(self, strategy: FunctionalContinual, build: Callable[[], nn.Module]) -> None:
        self.generator = torch.Generator().manual_seed(1)
        self.strategy, self.model = strategy, build().double()
        self.network = Stateless(self.model, strategy.training)
        self.params = [self._weights() for _ in THERE]
        self.memories = [self._memory(params, place) for place, params in enumerate(self.params)]
        self.steps = [[self._batch(place) for place in range(len(THERE))] for _ in range(3)]

    def step(self, **more: Any) -> Step[Any]:
        training = self.strategy.training
        return Step(
            self.strategy.method,
            self.network,
            self.strategy.optimizer,
            make_loss(training, None),
            by_transform,
            max_grad_norm=training.max_grad_norm,
            **more,
        )

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _weights(self) -> Tree:
        return {
            name: each.detach() + 0.1 * self._random(*each.shape)
            for name, each in self.model.named_parameters()
            if each.requires_grad
        }

    def _memory(self, params: Tree, place: int) -> Any:
        method = self.strategy.method
        memory = method.blank(self.network, params)
        for _ in range(place):  # the first client has not consolidated anything
            heads = self.strategy.training.heads
            importance = {
                name: 0.01 * self._random(*each.shape) ** 2 for name, each in params.items()
            }
            classes = self._random(1 if heads is None else len(heads), 10) > 0
            memory = method.enter(memory, self._weights(), self.network)
            if memory is not None and hasattr(memory, "trajectory"):
                path = {name: -(self._random(*each.shape) ** 2) for name, each in params.items()}
                memory = memory._replace(trajectory=path)
            memory = method.consolidate(memory, Learnt(self._weights(), importance, classes))
        return method.enter(memory, params, self.network)

    def _batch(self, place: int) -> Batch:
        batch = self._samples(6, THERE[place])
        if self.strategy.rehearsal is not None:
            batch["replayed"] = self._samples(5, REMEMBERED[place])
            batch["replayed"]["logits"] = self._random(5, 10)
        return batch

    def _samples(self, size: int, there: int) -> Batch:
        task = torch.randint(0, 3, (size,), generator=self.generator)
        batch: Batch = {
            "x": self._random(size, 64),
            "y": 2 * task + torch.randint(0, 2, (size,), generator=self.generator),
            "present": torch.arange(size) < there,
        }
        if self.strategy.training.heads is not None:
            batch["task"] = task
        return batch

    def together(self, step: Step[Any], **more: Any) -> tuple[Any, ...]:
        """Return weights, slots, memories and the last measures after all steps, stacked."""
        params = stack(self.params)
        memory = None if self.memories[0] is None else stack(self.memories)
        slots, measures = initial_slots(step.optimizer, params), {}
        advance = over_cohort(step)
        for batches in self.steps:
            params, slots, memory, measures = advance(params, slots, memory, stack(batches), **more)
        return params, slots, memory, measures

    def alone(self, step: Step[Any], place: int) -> tuple[Any, ...]:
        """Return the same of one client, whose batches hold no padding."""
        params, memory = self.params[place], self.memories[place]
        slots, measures = step.optimizer.initial(params), {}
        for batches in self.steps:
            batch = unpadded(batches[place])
            if len(batch["y"]):
                params, slots, memory, measures = step(params, slots, memory, batch)
        return params, slots, memory, measures


def unpadded(batch: Batch) -> Batch:
    """Return the samples of a batch that are present, and nothing about presence."""
    there = batch["present"]
    kept: Batch = {
        key: each[there] for key, each in batch.items() if key not in ("present", "replayed")
    }
    if "replayed" in batch and batch["replayed"]["present"].any():
        kept["replayed"] = unpadded(batch["replayed"])
    return kept


def apart(one: Any, other: Any) -> float:
    """Return the largest difference between two trees."""
    if isinstance(one, Tensor):
        return float((one.double() - torch.as_tensor(other).double()).abs().max())
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((apart(one[key], other[key]) for key in one), default=0.0)
    return max((apart(*pair) for pair in zip(one, other, strict=True)), default=0.0)


def check(cohort: Cohort, step: Step[Any], **more: Any) -> None:
    params, slots, memory, measures = cohort.together(step, **more)
    for place in range(len(THERE)):
        expected = cohort.alone(step, place)
        assert apart(unstack(params, place), expected[0]) < 1e-12
        assert apart(unstack(slots, place), expected[1]) < 1e-12
        if memory is not None:
            assert apart(unstack(memory, place), expected[2]) < 1e-9
        if THERE[place]:
            assert apart(unstack(measures, place), expected[3]) < 1e-9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", TWINS)
def test_a_cohort_steps_as_its_clients_do(name: str, optimizer: str) -> None:
    training = replace(TRAINING, optimizer=OPTIMIZERS[optimizer])
    cohort = Cohort(FUNCTIONAL[name](training=training), mlp)
    check(cohort, cohort.step())


VARIANTS: dict[str, LocalTraining] = {
    "task": TASKS,
    "mask": replace(TRAINING, mask_loss=((0, 1), (2, 3), (4, 5), (6, 7, 8, 9))),
    "smoothing": replace(TRAINING, label_smoothing=0.1),
    "mse": replace(TRAINING, loss="mse"),
    "clipped": replace(TRAINING, max_grad_norm=0.3),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", TWINS)
def test_so_it_does_with_every_loss_and_head(name: str, variant: str) -> None:
    cohort = Cohort(FUNCTIONAL[name](training=VARIANTS[variant]), mlp)
    step = cohort.step(measures_gradient=True)
    received = {name: torch.zeros_like(each) for name, each in cohort.params[0].items()}
    check(cohort, replace(step, proximal=Spring(0.05, received)))


def test_clients_may_weigh_classes_differently() -> None:
    cohort = Cohort(FUNCTIONAL["replay"](training=TRAINING), mlp)
    step = cohort.step()
    weights = 0.1 + torch.rand(len(THERE), 10, generator=cohort.generator, dtype=torch.float64)
    params, *_ = cohort.together(step, class_weights=weights)
    for place, own in enumerate(weights):
        weighted = replace(step, criterion=replace(step.criterion, class_weights=own))
        assert apart(unstack(params, place), cohort.alone(weighted, place)[0]) < 1e-12


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_a_cohort_is_surveyed_as_its_clients_are(name: str) -> None:
    cohort = Cohort(FUNCTIONAL[name](training=TRAINING), mlp)
    network = Stateless(cohort.model, TRAINING, evaluating=True)
    survey = Survey(cohort.strategy.method, network, make_loss(TRAINING, None), by_transform)
    params = stack(cohort.params)
    total = {key: torch.zeros_like(each) for key, each in params.items()}
    for batches in cohort.steps:
        total = torch.vmap(survey)(total, params, stack(batches))
    for place in range(len(THERE)):
        expected = {key: torch.zeros_like(each) for key, each in cohort.params[place].items()}
        for batches in cohort.steps:
            batch = unpadded(batches[place])
            if len(batch["y"]):
                expected = survey(expected, cohort.params[place], batch)
        assert apart(unstack(total, place), expected) < 1e-12


@pytest.mark.parametrize("name", ["ewc", "mas", "si", "lwf"])
def test_a_blank_memory_teaches_nothing(name: str) -> None:
    """Stacked, a client without a past steps as one that has no memory at all."""
    cohort = Cohort(FUNCTIONAL[name](training=TRAINING), mlp)
    step, batch = cohort.step(), cohort.steps[0][0]
    params = cohort.params[0]
    slots = step.optimizer.initial(params)
    blank = cohort.strategy.method.blank(cohort.network, params)
    with_blank, _, _, measures = step(params, slots, blank, batch)
    without, _, _, others = step(params, slots, None, batch)
    assert apart(with_blank, without) == 0.0
    assert apart(measures, others) == 0.0


def test_layers_that_mix_clients_are_refused_in_one_line() -> None:
    start = "runtime.executor=vectorized: "
    refused = {
        "1 (BatchNorm1d) mixes a batch with its padding": mlp(norm=True),
        "2 (Dropout) draws other numbers": mlp(dropout=0.5),
        "0 (InstanceNorm1d) tracks": nn.Sequential(nn.InstanceNorm1d(3, track_running_stats=True)),
    }
    for message, model in refused.items():
        if not list(model.parameters()):
            model.append(nn.Linear(2, 2))
        with pytest.raises(ValueError, match="vectorized") as caught:
            Stateless(model, TRAINING)
        assert str(caught.value).startswith(start + message)
        assert "\n" not in str(caught.value)


def test_frozen_normalisation_may_be_stacked() -> None:
    def build() -> nn.Module:
        model = mlp(norm=True)
        freeze(model, ("1.*",))
        return model

    cohort = Cohort(FUNCTIONAL["naive"](training=replace(TRAINING, frozen=("1.*",))), build)
    check(cohort, cohort.step())
    assert int(cohort.model[1].num_batches_tracked) == 0


def test_bfloat16_runs_under_vmap() -> None:
    training = replace(TRAINING, precision="bfloat16")
    model = mlp()
    network = Stateless(model, training)
    params = stack([{name: each.detach() for name, each in model.named_parameters()}] * 2)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    outputs = torch.vmap(network)(params, x)
    exact = torch.vmap(Stateless(model, TRAINING))(params, x)
    assert outputs.dtype == torch.float32
    assert 0 < float((outputs - exact).abs().max()) < 0.05


def test_adam_in_a_cohort_keeps_float32_weights_and_counts_in_float64() -> None:
    model = mlp()
    optimizer = FUNCTIONAL["naive"](
        training=replace(TRAINING, optimizer=partial(torch.optim.Adam, lr=1e-3))
    ).optimizer
    params = {name: each.detach() for name, each in model.named_parameters()}
    gradient = {name: 1e-3 * each for name, each in params.items()}
    alone, slots = params, optimizer.initial(params)
    stacked = stack([params] * 2)
    many = initial_slots(optimizer, stacked)
    for _ in range(3):
        alone, slots = optimizer.update(alone, gradient, slots)
        stacked, many = torch.vmap(optimizer.update)(stacked, stack([gradient] * 2), many)
    for name, each in alone.items():
        assert stacked[name].dtype == torch.float32
        assert torch.allclose(stacked[name][1], each, rtol=1e-6, atol=1e-8)
