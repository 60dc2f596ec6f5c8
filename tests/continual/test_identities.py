"""A client in rounds is exactly a client that lives through whole experiences."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from lone_client import (
    KEEPING,
    STRATEGIES,
    TRAINING,
    gap,
    live,
    mlp,
    permuted,
    persist,
    split,
    through_json,
    turn_at,
)

from fedlearn.types import State

MODELS = {
    "plain": mlp,
    "dropout": partial(mlp, dropout=0.3),
    "norm": partial(mlp, norm=True),
}
TASK_TRAINING = replace(TRAINING, heads=((0, 1), (2, 3), (4, 5)))
STREAMS = {
    "class": (TRAINING, split()),
    "task": (TASK_TRAINING, split(task=True)),
    "domain": (TRAINING, permuted()),
    "mask": (replace(TRAINING, mask_loss=((0, 1), (2, 3), (4, 5), (6, 7, 8, 9))), split()),
    "clipped": (replace(TRAINING, max_grad_norm=0.5), split()),
}
CASES = [("class", model) for model in MODELS] + [
    (stream, "plain") for stream in STREAMS if stream != "class"
]


@pytest.mark.parametrize(("stream", "model"), CASES)
@pytest.mark.parametrize("name", STRATEGIES)
def test_rounds_state_and_one_long_training_agree_exactly(
    name: str, stream: str, model: str
) -> None:
    training, experiences = STREAMS[stream]
    strategy = STRATEGIES[name](training=training)
    in_rounds, at_once, persistent, travelled = (MODELS[model]() for _ in range(4))

    reports = live(strategy, in_rounds, experiences, rounds=3, epochs=1)
    long_reports = live(strategy, at_once, experiences, rounds=1, epochs=3)
    persist(strategy, persistent, experiences, epochs=3)
    live(strategy, travelled, experiences, rounds=3, epochs=1, carry=through_json)

    assert gap(in_rounds, at_once) == 0.0
    assert gap(in_rounds, persistent) == 0.0
    assert gap(in_rounds, travelled) == 0.0
    assert reports[-1].loss == long_reports[-1].loss
    assert sum(report.steps for report in reports) == sum(each.steps for each in long_reports)
    assert sum(report.replayed for report in reports) == sum(each.replayed for each in long_reports)


@pytest.mark.parametrize("name", KEEPING)
def test_without_its_state_a_client_learns_something_else(name: str) -> None:
    strategy = STRATEGIES[name](training=TRAINING)
    remembering, forgetting = mlp(), mlp()
    live(strategy, remembering, split(), rounds=2)
    live(strategy, forgetting, split(), rounds=2, forget=True)
    assert gap(remembering, forgetting) > 1e-3


def test_naive_keeps_nothing() -> None:
    for report in live(STRATEGIES["naive"](training=TRAINING), mlp(), split(), rounds=2):
        assert not report.state.tensors
        assert not report.state.values


@pytest.mark.parametrize("name", KEEPING)
def test_strategies_differ_from_naive_from_the_second_experience_on(name: str) -> None:
    for length, differ in ((1, False), (2, True)):
        one, other = mlp(), mlp()
        live(STRATEGIES[name](training=TRAINING), one, split(length), rounds=2)
        live(STRATEGIES["naive"](training=TRAINING), other, split(length), rounds=2)
        assert (gap(one, other) > 1e-4) is differ


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_turn_leaves_the_state_and_the_global_generators_as_they_were(name: str) -> None:
    strategy, model, stream = STRATEGIES[name](training=TRAINING), mlp(dropout=0.3), split()
    state = live(strategy, model, stream[:2], rounds=2)[-1].state
    tensors = {key: tensor.clone() for key, tensor in state.tensors.items()}
    values = dict(state.values)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    for previous in (None, stream[1]):
        experience = stream[1] if previous is None else stream[2]
        turn = turn_at(4, epochs=2, previous=previous)
        strategy.train_turn(model, experience, stream.__getitem__, turn, state)

    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])
    assert state.values == values
    assert state.tensors.keys() == tensors.keys()
    assert all(torch.equal(state.tensors[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", KEEPING)
def test_what_a_turn_returns_does_not_change_with_the_model(name: str) -> None:
    model = mlp(norm=True)
    state = live(STRATEGIES[name](training=TRAINING), model, split(), rounds=2)[-1].state
    before = {key: tensor.clone() for key, tensor in state.tensors.items()}
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(9)
    assert all(torch.equal(state.tensors[key], before[key]) for key in before)


def test_two_clients_with_the_same_data_draw_differently() -> None:
    strategy, stream = STRATEGIES["naive"](training=TRAINING), split()
    models = [mlp(), mlp(), mlp()]
    for model, client_id in zip(models, (0, 0, 1), strict=True):
        turn = turn_at(0, client_id=client_id)
        strategy.train_turn(model, stream[0], stream.__getitem__, turn, State())
    assert gap(models[0], models[1]) == 0.0
    assert gap(models[0], models[2]) > 0.0
