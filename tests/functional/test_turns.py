"""A functional client in rounds: identities, state, and what a turn leaves alone."""

import random
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from lone_client import (
    STRATEGIES,
    TRAINING,
    TWINS,
    gap,
    live,
    mlp,
    permuted,
    split,
    through_json,
    turn_at,
)
from torch import nn
from twins import FUNCTIONAL, NODES, REMEMBERING, vector

from fedlearn.types import State
from strategies.continual.functional.ewc import ewc
from strategies.continual.functional.naive import naive

TASKS = replace(TRAINING, heads=((0, 1), (2, 3), (4, 5)))
CASES = {
    "plain": (TRAINING, mlp, split()),
    "dropout": (TRAINING, partial(mlp, dropout=0.3), split()),
    "norm": (TRAINING, partial(mlp, norm=True), split()),
    "task": (TASKS, mlp, split(task=True)),
    "domain": (TRAINING, mlp, permuted()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TWINS)
def test_rounds_epochs_and_state_through_json_agree_exactly(name: str, case: str) -> None:
    training, build, stream = CASES[case]
    strategy = FUNCTIONAL[name](training=training)
    in_rounds, at_once, travelled = build(), build(), build()
    reports = live(strategy, in_rounds, stream, rounds=3)
    long_reports = live(strategy, at_once, stream, epochs=3)
    live(strategy, travelled, stream, rounds=3, carry=through_json)
    assert gap(in_rounds, at_once) == 0.0
    assert gap(in_rounds, travelled) == 0.0
    assert reports[-1].loss == long_reports[-1].loss
    assert sum(each.replayed for each in reports) == sum(each.replayed for each in long_reports)


@pytest.mark.parametrize("name", REMEMBERING)
def test_without_its_state_a_client_learns_something_else(name: str) -> None:
    strategy = FUNCTIONAL[name](training=TRAINING)
    remembering, forgetting = mlp(), mlp()
    live(strategy, remembering, split(), rounds=2)
    live(strategy, forgetting, split(), rounds=2, forget=True)
    assert gap(remembering, forgetting) > 1e-3


@pytest.mark.parametrize("name", TWINS)
def test_a_turn_leaves_the_state_and_the_global_generators_as_they_were(name: str) -> None:
    strategy, model, stream = FUNCTIONAL[name](training=TRAINING), mlp(dropout=0.3), split()
    state = live(strategy, model, stream[:2], rounds=2)[-1].state
    tensors = {key: tensor.clone() for key, tensor in state.tensors.items()}
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    for previous in (None, stream[1]):
        experience = stream[1] if previous is None else stream[2]
        turn = turn_at(4, epochs=2, previous=previous)
        strategy.train_turn(model, experience, stream.__getitem__, turn, state)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert all(torch.equal(state.tensors[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("anchor", ["local", "global"])
@pytest.mark.parametrize("name", REMEMBERING)
def test_what_a_turn_returns_does_not_change_with_the_model(name: str, anchor: str) -> None:
    strategy = replace(FUNCTIONAL[name](training=TRAINING), anchor=anchor)
    model = mlp(norm=True)
    states = [report.state for report in live(strategy, model, split(), rounds=2)]
    before = [{key: each.clone() for key, each in state.tensors.items()} for state in states]
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(9)
    for state, copies in zip(states, before, strict=True):
        assert all(torch.equal(state.tensors[key], copies[key]) for key in copies)


@pytest.mark.parametrize("name", TWINS)
def test_training_is_in_place_and_leaves_no_gradient(name: str) -> None:
    """The weights stay in the memory that held them, which may be shared with other processes."""
    model, stream = mlp(norm=True), split()
    tensors = dict(model.state_dict(keep_vars=True))
    homes = {key: tensor.data_ptr() for key, tensor in tensors.items()}
    live(FUNCTIONAL[name](training=TRAINING), model, stream)
    after = model.state_dict(keep_vars=True)
    assert all(after[key] is tensor for key, tensor in tensors.items())
    assert {key: tensor.data_ptr() for key, tensor in after.items()} == homes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("name", REMEMBERING)
def test_state_grows_neither_with_rounds_nor_with_experiences(name: str) -> None:
    """Once two experiences are consolidated, it has its full size."""
    strategy = FUNCTIONAL[name](training=TRAINING)
    sizes = {
        (length, rounds): live(strategy, mlp(), permuted(length), rounds)[-1].state.num_bytes
        for length, rounds in ((3, 1), (3, 3), (5, 1))
    }
    assert sizes[3, 1] == sizes[3, 3]
    assert sizes[5, 1] <= sizes[3, 1] + 2 * 8  # two more groups with a share of memory


def test_state_is_as_large_as_promised() -> None:
    theta = 4 * vector(mlp()).numel()
    expected = {"ewc": (4, 3), "ewc_online": (3, 2), "si": (4, 3), "lwf": (2, 1), "mas": (3, 2)}
    for name, sizes in expected.items():
        for anchor, size in zip(("local", "global"), sizes, strict=True):
            strategy = FUNCTIONAL[name](training=TRAINING, anchor=anchor)
            state = live(strategy, mlp(), split(), rounds=2)[-1].state
            assert size * theta <= state.num_bytes <= size * theta + 16, (name, anchor)
    assert not live(naive(training=TRAINING), mlp(), split())[-1].state.tensors
    replay = live(FUNCTIONAL["replay"](training=TRAINING), mlp(), split())[-1].state
    assert replay.num_bytes == 20 * (3 * 8 + 4) + 2 * 8


@pytest.mark.parametrize("name", [name for name in TWINS if NODES[name].get("anchor")])
def test_a_lost_state_is_an_error_and_not_a_guess(name: str) -> None:
    strategy, stream = FUNCTIONAL[name](training=TRAINING), split(2)
    with pytest.raises(ValueError, match="client 0 has lost the state it had"):
        strategy.train_turn(
            mlp(), stream[1], stream.__getitem__, turn_at(1, previous=stream[0]), State()
        )


def test_a_lost_turn_leaves_the_weights_where_they_belong() -> None:
    strategy = naive(training=replace(TRAINING, max_loss=1e-6))
    model = mlp()
    homes = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(ArithmeticError):
        live(strategy, model, split(1))
    assert [parameter.data_ptr() for parameter in model.parameters()] == homes


def test_separate_ewc_is_as_cheap_as_one_spring() -> None:
    """Penalties of any number of experiences are one, with the loss that all of them have."""
    strategy = ewc(training=TRAINING, ewc_lambda=10.0)
    states = [report.state for report in live(strategy, mlp(), permuted(5), rounds=2)]
    assert states[-1].tensors.keys() == states[-4].tensors.keys()
    assert float(states[-1].tensors["memory/offset"]) > float(states[4].tensors["memory/offset"])


def test_no_module_of_the_engine_needs_avalanche() -> None:
    program = (
        "import pkgutil, importlib, sys, strategies.continual.functional as engine\n"
        "for module in pkgutil.iter_modules(engine.__path__):\n"
        "    importlib.import_module(f'{engine.__name__}.{module.name}')\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('avalanche', 'flwr')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[]\n"


class Odd(nn.Module):
    """Keeps a buffer that it replaces, and ties its two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64), nn.Linear(64, 64)
        self.two.weight = self.one.weight
        self.head = mlp()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen = self.seen + len(x)
        return self.head(self.two(self.one(x).relu())) * (1 + self.seen / 1000)


@pytest.mark.parametrize("name", ["naive", "ewc", "lwf", "si"])
def test_tied_weights_and_replaced_buffers_are_trained_and_kept(name: str) -> None:
    models = []
    for factory in (STRATEGIES[name], FUNCTIONAL[name]):
        torch.manual_seed(0)
        models.append(Odd())
        live(factory(training=TRAINING), models[-1], split(), rounds=2)
    assert gap(*models) < 1e-5
    assert models[1].one.weight is models[1].two.weight
