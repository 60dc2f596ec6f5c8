"""Clients trained as one program end with what `train_turn` gives them one by one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from cohorts import (
    SIZES,
    Clock,
    alone,
    compare,
    copied,
    difference,
    scenario,
    tensors_of,
)
from lone_client import DIGITS, REGRESSION, TRAINING, TWINS, mlp
from torch import Tensor, nn
from twins import FUNCTIONAL, OPTIMIZERS

from fedlearn.freezing import freeze
from fedlearn.seeding import borrowed_global_rng
from fedlearn.turns import CohortReport
from fedlearn.types import LocalTraining, Samples, State
from strategies.continual.functional import cohort_batches, cohort_springs

STACKED = ("chain", "deferred", "vmap")
small = partial(mlp, hidden=8)
CPU = torch.device("cpu")


def double() -> nn.Module:
    return small().double()


@pytest.mark.parametrize("formulation", [*STACKED, "loop"])
@pytest.mark.parametrize("name", TWINS)
def test_a_cohort_ends_where_its_clients_would(name: str, formulation: str) -> None:
    """In float64 to rounding, and exactly where they are trained one by one."""
    strategy = FUNCTIONAL[name](training=TRAINING)
    tolerance = 0.0 if formulation == "loop" else 1e-10
    compare(strategy, double, Clock(scenario()), formulation, tolerance, chunk=4)


@pytest.mark.parametrize("formulation", STACKED)
@pytest.mark.parametrize("name", TWINS)
def test_in_float32_it_is_close(name: str, formulation: str) -> None:
    """Projections and quotients of small numbers amplify rounding in what is kept."""
    strategy = FUNCTIONAL[name](training=TRAINING)
    clock = Clock(scenario(dtype=torch.float32))
    compare(strategy, small, clock, formulation, 1e-5, state_tolerance=5e-3)


def shaken(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return inputs with noise: an augmentation that suits vectors."""
    return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def half_frozen() -> nn.Module:
    """Return a model with frozen layers, one of which normalises."""
    model = mlp(norm=True, hidden=8).double()
    freeze(model, ("1.*",))
    return model


def tilted() -> nn.Module:
    """Return a model whose first layer is frozen."""
    model = double()
    freeze(model, ("0.weight",))
    return model


class WithASpareLayer(nn.Module):
    """A model with parameters that its outputs do not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.spare = small(), nn.Linear(2, 2)
        nn.init.ones_(self.spare.weight)
        nn.init.ones_(self.spare.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def some(clients: Any) -> Any:
    """Return shares of a turn's work and rates that differ between clients."""
    return np.array([1.0, 0.3, 0.6])[clients % 3]


GROUPS = ((0, 1), (2, 3), (4, 5), (6, 7, 8, 9))
HEADS = ((0, 1), (2, 3), (4, 5))
TASKS = replace(TRAINING, heads=HEADS)
Setting = tuple[LocalTraining, Callable[[], nn.Module], dict[str, Any], dict[str, Any]]
SETTINGS: dict[str, Setting] = {
    **{
        optimizer: (replace(TRAINING, optimizer=build), double, {}, {})
        for optimizer, build in OPTIMIZERS.items()
    },
    "proximal": (TRAINING, double, {}, {"config": {"proximal-mu": 0.5}}),
    "clipped": (replace(TRAINING, max_grad_norm=0.3), double, {}, {}),
    "norms": (replace(TRAINING, gradient_metrics=True), double, {}, {}),
    "both": (
        replace(TRAINING, gradient_metrics=True, max_grad_norm=1.0, optimizer=OPTIMIZERS["adam"]),
        double,
        {},
        {"config": {"proximal-mu": 0.5}},
    ),
    "balance": (replace(TRAINING, class_balance=0.9), double, {}, {}),
    "smoothing": (replace(TRAINING, label_smoothing=0.1), double, {}, {}),
    "bce": (replace(TRAINING, loss="bce", class_balance=0.5), double, {}, {}),
    "mse": (replace(TRAINING, loss="mse"), double, {}, {}),
    "task": (TASKS, double, {"kind": "task"}, {}),
    "mse, task": (replace(TASKS, loss="mse"), double, {"kind": "task"}, {}),
    "mask": (replace(TRAINING, mask_loss=GROUPS), double, {}, {}),
    "augment": (replace(TRAINING, augment=shaken), double, {}, {}),
    "domain": (TRAINING, double, {"kind": "domain"}, {}),
    "views": (TRAINING, double, {"kind": "domain", "has_views": True}, {}),
    "steps": (TRAINING, double, {}, {"steps": 7}),
    "faults": (TRAINING, double, {}, {"works": some}),
    "rates": (TRAINING, double, {}, {"lr_factors": some}),
    "frozen": (replace(TRAINING, frozen=("0.weight",)), tilted, {}, {}),
    "even": (TRAINING, double, {"sizes": (16,) * 6}, {}),
}
EVERYWHERE = ("proximal", "clipped", "task", "domain", "steps", "balance", "augment")
"""Settings that every twin is tried with; optimisers and losses are the same for all."""
SOME = ("naive", "ewc", "si", "replay", "agem", "lwf", "der_plus_plus")
FEW = ("ewc", "si", "agem")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, setting)
        for name in TWINS
        for setting in SETTINGS
        if setting in EVERYWHERE or name in (FEW if setting in OPTIMIZERS else SOME)
    ],
)
def test_so_it_does_in_every_setting(name: str, setting: str) -> None:
    training, build, world, more = SETTINGS[setting]
    strategy = FUNCTIONAL[name](training=training)
    clock = Clock(scenario(**world), rounds=3, more=more)
    for formulation in STACKED:
        compare(strategy, build, clock, formulation, 1e-10, chunk=4)


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize(
    ("build", "more", "formulation"),
    [
        (half_frozen, {"frozen": ("1.*",)}, "vmap"),
        (lambda: WithASpareLayer().double(), {}, "vmap"),
        (lambda: WithASpareLayer().double(), {}, "chain"),
    ],
    ids=["norm", "unused, vmap", "unused, chain"],
)
def test_what_is_frozen_or_unused_is_left_as_it_is(
    name: str, build: Callable[[], nn.Module], more: dict[str, Any], formulation: str
) -> None:
    """Frozen normalisation cuts batches in its own way; what nothing depends on is not decayed."""
    training = replace(TRAINING, optimizer=OPTIMIZERS["decay"], **more)
    clock = Clock(scenario(sizes=(17, 9, 1, 24)))
    compare(FUNCTIONAL[name](training=training), build, clock, formulation, 1e-10)


@pytest.mark.parametrize("settings", [{}, {"lr_factors": some}, {"config": {"proximal-mu": 0.5}}])
@pytest.mark.parametrize("name", ["naive", "ewc", "ewc_online", "mas", "ewc_replay"])
def test_springs_of_large_parameters_pull_piece_by_piece(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort_springs, "STACKED", 20)
    monkeypatch.setattr(cohort_springs, "PIECE", 100)
    strategy = FUNCTIONAL[name](training=TRAINING)
    compare(strategy, double, Clock(scenario(), more=settings), "chain", 1e-10, chunk=4)


def test_bfloat16_runs_under_vmap() -> None:
    """In eight bits, products that are summed up in another order differ in the last one."""
    strategy = FUNCTIONAL["replay"](training=replace(TRAINING, precision="bfloat16"))
    clock = Clock(scenario(dtype=torch.float32), rounds=3)
    compare(strategy, small, clock, "vmap", 2e-2)


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_batches, "GATHERED", 1)
    compare(FUNCTIONAL["replay"](training=TRAINING), double, Clock(scenario()), "chain", 1e-10)


@pytest.mark.parametrize("anchor", ["local", "global"])
@pytest.mark.parametrize("name", ["ewc", "mas", "si", "lwf", "der_plus_plus"])
def test_experiences_are_consolidated_at_the_anchor(name: str, anchor: str) -> None:
    strategy = replace(FUNCTIONAL[name](training=TRAINING), anchor=anchor)
    for formulation in STACKED:
        compare(strategy, double, Clock(scenario()), formulation, 1e-10)


@pytest.mark.parametrize("formulation", STACKED)
@pytest.mark.parametrize("name", [name for name in TWINS if name in REGRESSION])
def test_regressions_are_stacked(name: str, formulation: str) -> None:
    rng = torch.Generator().manual_seed(0)
    x = DIGITS.x.double()
    targets = x @ torch.randn(64, 2, generator=rng, dtype=torch.float64) / 8
    samples = Samples(x, (targets - targets.mean(0)) / targets.std(0))
    training = replace(TRAINING, num_classes=2, loss="mse", regression=True, max_grad_norm=1.0)
    clock = Clock(scenario("domain", samples=samples))
    build = partial(mlp, hidden=8, outputs=2)
    compare(FUNCTIONAL[name](training=training), lambda: build().double(), clock, formulation, 1e-9)


def images() -> Any:
    return scenario(
        samples=Samples(DIGITS.x.double().view(-1, 1, 8, 8), DIGITS.y), sizes=(9, 1, 12)
    )


def cnn(dropout: float = 0.0, norm: bool = False) -> nn.Module:
    with borrowed_global_rng(1):
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            *([nn.BatchNorm2d(3)] if norm else []),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(48, 10),
        ).double()


@pytest.mark.parametrize("formulation", ["chain", "vmap"])
@pytest.mark.parametrize("name", ["naive", "ewc_online", "replay", "lwf", "agem"])
def test_convolutions_are_stacked(name: str, formulation: str) -> None:
    training = replace(TRAINING, input_shape=(1, 8, 8))
    compare(FUNCTIONAL[name](training=training), cnn, Clock(images()), formulation, 1e-10)


@pytest.mark.parametrize(
    ("build", "reason"),
    [(partial(cnn, norm=True), "BatchNorm2d"), (partial(cnn, dropout=0.4), "Dropout")],
    ids=["norm", "dropout"],
)
def test_what_cannot_be_stacked_is_trained_client_by_client(
    build: Callable[[], nn.Module], reason: str
) -> None:
    strategy = FUNCTIONAL["ewc"](training=replace(TRAINING, input_shape=(1, 8, 8)))
    trainer = strategy.cohort_trainer(build(), CPU)
    assert (trainer.formulation, trainer.chunk) == ("loop", 1)
    assert reason in trainer.why
    reports = compare(strategy, build, Clock(images()), "auto", 0.0)
    assert bool(reports[0].buffers) == (reason == "BatchNorm2d")
    for formulation in STACKED:
        with pytest.raises(ValueError, match=f"^runtime.formulation={formulation}: ") as caught:
            strategy.cohort_trainer(build(), CPU, formulation)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


class Looking(nn.Module):
    """A model whose outputs depend on a number that it looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out if out.detach().sum().item() > 0 else 2 * out


class Adding(nn.Module):
    """A model with a connection past a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.past = small(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.past(x)
        return out


def test_formulations_are_chosen_and_can_be_asked_for() -> None:
    strategy = FUNCTIONAL["naive"](training=TRAINING)
    chosen = {
        build: strategy.cohort_trainer(build(), CPU).formulation
        for build in (small, WithASpareLayer, Adding, Looking)
    }
    assert chosen == {
        small: "deferred",
        WithASpareLayer: "deferred",
        Adding: "vmap",
        Looking: "loop",
    }
    assert strategy.cohort_trainer(small(), CPU, "vmap").formulation == "vmap"
    assert strategy.cohort_trainer(small(), CPU, "loop").formulation == "loop"
    for build, formulation in ((Adding, "chain"), (Looking, "vmap")):
        with pytest.raises(ValueError, match=f"^runtime.formulation={formulation}: ") as caught:
            strategy.cohort_trainer(build(), CPU, formulation)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^runtime\.formulation=bmm: must be one of auto,"):
        strategy.cohort_trainer(small(), CPU, "bmm")
    low = FUNCTIONAL["naive"](training=replace(TRAINING, precision="bfloat16"))
    assert low.cohort_trainer(small(), CPU).formulation == "vmap"
    with pytest.raises(ValueError, match=r"^runtime\.formulation=chain: .*bfloat16"):
        low.cohort_trainer(small(), CPU, "chain")


# One client and the others


def poisoned(clients: list[int]) -> Any:
    """Return a scenario in which some clients' first inputs are beyond all bounds."""
    world = scenario(dtype=torch.float32)
    x = world.train.x.clone()
    for client, experience in zip(*Clock(world).cohort(0), strict=True):
        if client in clients:
            x[world.shares[client, experience]] = 1e30
    return replace(world, train=Samples(x, world.train.y))


@pytest.mark.parametrize("formulation", [*STACKED, "loop"])
@pytest.mark.parametrize("name", ["naive", "ewc", "replay", "agem", "lwf", "si"])
def test_a_client_that_diverges_leaves_the_others_alone(name: str, formulation: str) -> None:
    training = replace(TRAINING, max_loss=50.0, gradient_metrics=name == "naive")
    strategy = FUNCTIONAL[name](training=training)
    clock = Clock(poisoned([2, 4]), rounds=4)
    reports = compare(strategy, small, clock, formulation, 1e-5, state_tolerance=1e-2)
    turns = clock.turns(0, {})
    there = [at for at, client in enumerate(turns.client_ids) if client in (2, 4)]
    assert sorted(reports[0].diverged) == there
    assert there
    assert all(reason.startswith("the loss is") for reason in reports[0].diverged.values())


def trained(strategy: Any, places: slice | np.ndarray, formulation: str) -> CohortReport:
    """Train a part of a round's clients, who all have a past."""
    model, clock = double(), Clock(scenario())
    received, states, last = tensors_of(model), {}, {}
    for server_round in range(3):
        turns = clock.turns(server_round, last)
        ids = turns.client_ids.tolist()
        mine = [states.get(client, State()) for client in ids]
        if server_round == 2:
            kept = [mine[at] for at in np.arange(len(mine))[places]]
            trainer = strategy.cohort_trainer(model, CPU, formulation)
            return trainer.train(
                *received, turns.select(places), kept if trainer.keeps_state else []
            )
        for client, (report, *_) in zip(
            ids, alone(strategy, model, received, turns, mine), strict=True
        ):
            states[client] = copied(report.state)
            last[client] = int(turns.experiences[ids.index(client)])
    raise AssertionError


@pytest.mark.parametrize("formulation", STACKED)
@pytest.mark.parametrize("name", TWINS)
def test_it_does_not_matter_who_else_is_there(name: str, formulation: str) -> None:
    strategy = FUNCTIONAL[name](training=TRAINING)
    together = trained(strategy, slice(None), formulation)
    for at in range(len(together.losses)):
        single = trained(strategy, slice(at, at + 1), formulation)
        assert single.losses[0] == pytest.approx(together.losses[at], rel=1e-10)
        for key, each in single.parameters.items():
            assert difference(each[0], together.parameters[key][at]) < 1e-10


# What is left alone


@pytest.mark.parametrize("formulation", STACKED)
@pytest.mark.parametrize("name", ["ewc", "si", "lwf", "replay"])
def test_states_are_not_modified_and_pass_on_what_has_not_changed(
    name: str, formulation: str
) -> None:
    strategy = FUNCTIONAL[name](training=TRAINING)
    model, clock, last = double(), Clock(scenario()), {}
    trainer, received = strategy.cohort_trainer(model, CPU, formulation), tensors_of(model)
    states: dict[int, State] = {}
    for server_round in range(5):
        turns = clock.turns(server_round, last)
        ids = turns.client_ids.tolist()
        before = [states.get(client, State()) for client in ids]
        copies = [copied(state) for state in before]
        report = trainer.train(*received, turns, before)
        for at, client in enumerate(ids):
            old, new = before[at], report.states[at]
            for key, each in copies[at].tensors.items():
                assert torch.equal(old.tensors[key], each)
            if last.get(client) == int(turns.experiences[at]):
                for key, each in old.tensors.items():
                    if key.startswith(("memory/", "kept/")) and "trajectory" not in key:
                        assert new.tensors[key] is each
            states[client], last[client] = new, int(turns.experiences[at])
        held = {client: copied(state) for client, state in states.items()}
        trainer.train(*received, turns, before)  # which uses the same memory again
        for client, state in held.items():
            for key, each in state.tensors.items():
                assert torch.equal(states[client].tensors[key], each)


@pytest.mark.parametrize("formulation", [*STACKED, "loop"])
def test_the_model_and_the_global_generators_are_left_alone(formulation: str) -> None:
    strategy, model = FUNCTIONAL["replay"](training=TRAINING), double()
    before, state = tensors_of(model), torch.get_rng_state()
    trainer = strategy.cohort_trainer(model, CPU, formulation)
    turns = Clock(scenario()).turns(0, {})
    trainer.train(*before, turns, [State()] * len(turns))
    after = tensors_of(model)[0]
    assert all(torch.equal(after[name], each) for name, each in before[0].items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["ewc", "der_plus_plus"])
def test_a_lost_state_is_an_error_and_not_a_guess(name: str) -> None:
    strategy = FUNCTIONAL[name](training=TRAINING)
    trainer, clock = strategy.cohort_trainer(double(), CPU), Clock(scenario())
    turns = clock.turns(2, dict.fromkeys(range(len(SIZES)), 0))
    with pytest.raises(ValueError, match=r"client \d has lost the state it had"):
        trainer.train(*tensors_of(double()), turns, [State()] * len(turns))
