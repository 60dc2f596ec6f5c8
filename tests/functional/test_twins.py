"""Each twin ends with the weights that the Avalanche engine ends with."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from lone_client import (
    REGRESSION,
    REGRESSION_TRAINING,
    TRAINING,
    TWINS,
    live,
    mlp,
    permuted,
    regression,
    split,
    turn_at,
)
from torch import Tensor, nn
from twins import NODES, OPTIMIZERS, in_float64, pair, relative

from fedlearn.freezing import freeze
from fedlearn.types import DivergedError, Experience, LocalTraining

TASKS = replace(TRAINING, heads=((0, 1), (2, 3), (4, 5)))
GROUPS = ((0, 1), (2, 3), (4, 5), (6, 7, 8, 9))
ADAM = replace(TRAINING, optimizer=OPTIMIZERS["adam"])


def shaken(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return inputs with noise: an augmentation that suits vectors."""
    return x + 0.1 * torch.randn(x.shape, generator=generator)


def half_frozen() -> nn.Module:
    """Return a model with normalisation whose first two layers are frozen."""
    model = mlp(norm=True)
    freeze(model, ("0.*", "1.*"))
    return model


class WithASpareLayer(nn.Module):
    """A model with parameters that its outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = mlp(), nn.Linear(2, 2)
        nn.init.ones_(self.spare.weight)
        nn.init.ones_(self.spare.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


CASES: dict[str, tuple[LocalTraining, Callable[[], nn.Module], list[Experience], dict[str, Any]]]
CASES = {
    "class": (TRAINING, mlp, split(), {}),
    "task": (TASKS, mlp, split(task=True), {}),
    "domain": (TRAINING, mlp, permuted(), {}),
    "dropout": (TRAINING, partial(mlp, dropout=0.3), split(), {}),
    "dropout, task": (TASKS, partial(mlp, dropout=0.3), split(task=True), {}),
    "batch norm": (TRAINING, partial(mlp, norm=True), split(), {}),
    "batches of one": (TRAINING, partial(mlp, norm=True), split(size=9), {"batch_size": 2}),
    "adam, task": (replace(ADAM, heads=TASKS.heads), mlp, split(task=True), {}),
    "mask": (replace(TRAINING, mask_loss=GROUPS), mlp, split(), {}),
    "clipped": (replace(TRAINING, max_grad_norm=0.5), mlp, split(), {}),
    "proximal": (TRAINING, mlp, split(), {"config": {"proximal-mu": 0.5}}),
    "rate": (TRAINING, mlp, split(), {"lr_factor": 0.3}),
    "steps": (TRAINING, mlp, split(), {"steps": 5}),
    "smoothing": (replace(TRAINING, label_smoothing=0.1), mlp, split(), {}),
    "balance": (replace(TRAINING, class_balance=0.9), mlp, permuted(), {}),
    "bce": (replace(TRAINING, loss="bce"), mlp, split(), {}),
    "mse, task": (replace(TASKS, loss="mse"), mlp, split(task=True), {}),
    "augment": (replace(TRAINING, augment=shaken), mlp, split(), {}),
    "frozen": (replace(TRAINING, frozen=("0.*", "1.*")), half_frozen, split(), {}),
    "unused": (replace(TRAINING, optimizer=OPTIMIZERS["decay"]), WithASpareLayer, split(), {}),
    "bfloat16": (replace(TRAINING, precision="bfloat16"), mlp, split(), {}),
    "regression": (REGRESSION_TRAINING, partial(mlp, outputs=2), regression(), {}),
    "norms": (replace(ADAM, gradient_metrics=True, max_grad_norm=1.0), mlp, split(), {}),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [
        (name, case)
        for name in TWINS
        for case in CASES
        if case != "regression" or name in REGRESSION
    ],
)
def test_a_twin_ends_with_the_same_weights(name: str, case: str) -> None:
    training, build, stream, more = CASES[case]
    strategy, twin = pair(name, training)
    models = build(), build()
    reports, others = (
        live(each, model, stream, rounds=2, epochs=2, **more)
        for each, model in zip((strategy, twin), models, strict=True)
    )
    assert relative(*models) <= 1e-5
    for one, other in zip(reports, others, strict=True):
        assert (one.steps, one.replayed) == (other.steps, other.replayed)
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", TWINS)
def test_in_float64_it_is_the_same_to_rounding(name: str, optimizer: str) -> None:
    training = replace(TRAINING, optimizer=OPTIMIZERS[optimizer])
    stream, models = in_float64(split()), (mlp().double(), mlp().double())
    torch.set_default_dtype(torch.float64)  # Avalanche keeps importances in it
    try:
        for each, model in zip(pair(name, training), models, strict=True):
            live(each, model, stream, rounds=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert relative(*models) <= 1e-12


@pytest.mark.parametrize("anchor", ["local", "global"])
@pytest.mark.parametrize("name", [name for name in TWINS if NODES[name].get("anchor")])
def test_the_anchor_means_the_same(name: str, anchor: str) -> None:
    """A client that receives other weights than its own when it enters an experience."""
    stream, ends = permuted(2), []
    for each in pair(name, TRAINING):
        strategy, model = replace(each, anchor=anchor), mlp()
        state = live(strategy, model, stream[:1], rounds=2)[-1].state
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        turn = turn_at(2, epochs=2, previous=stream[0])
        strategy.train_turn(model, stream[1], stream.__getitem__, turn, state)
        ends.append(model)
    assert relative(*ends) <= 1e-5


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("name", [name for name in TWINS if "memory_per_client" in NODES[name]])
def test_memories_of_any_size_hold_the_same(name: str, size: int) -> None:
    stream, models = permuted(4, size=20), (mlp(), mlp())
    reports = []
    for factory, model in zip(pair(name, TRAINING), models, strict=True):
        module = NODES[name]["_target_" if not reports else "functional"]
        settings = {
            key: value
            for key, value in NODES[name].items()
            if key not in ("_target_", "functional", "kinds", "regression", "in_step")
        }
        strategy = get_object(module)(training=TRAINING, **settings | {"memory_per_client": size})
        assert type(strategy) is type(factory)
        reports.append(live(strategy, model, stream, batch_size=4))
    assert relative(*models) <= 1e-5
    assert [each.replayed for each in reports[0]] == [each.replayed for each in reports[1]]


@pytest.mark.parametrize("per_class", [1, 3])
def test_a_memory_bounded_by_class_holds_the_same(per_class: int) -> None:
    settings = {"policy": "class_balanced", "memory_per_client": None}
    node, models = NODES["replay"], (mlp(), mlp())
    for target, model in zip((node["_target_"], node["functional"]), models, strict=True):
        factory = get_object(target)
        strategy = factory(training=TRAINING, memory_per_class=per_class, **settings)
        live(strategy, model, permuted(), rounds=2)
    assert relative(*models) <= 1e-5


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_takes_the_same_settings(name: str) -> None:
    theirs, ours = (
        inspect.signature(get_object(NODES[name][key])).parameters
        for key in ("_target_", "functional")
    )
    assert {key: each.default for key, each in theirs.items()} == {
        key: each.default for key, each in ours.items()
    }


@pytest.mark.parametrize(
    "more", [{"max_loss": 1e-3}, {"optimizer": partial(torch.optim.SGD, lr=1e30)}]
)
def test_a_lost_turn_ends_with_the_same_error(more: dict[str, Any]) -> None:
    messages = []
    for strategy in pair("naive", replace(TRAINING, **more)):
        with pytest.raises(DivergedError) as caught:
            live(strategy, mlp(), split(1), epochs=3)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
