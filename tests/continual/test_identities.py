"""A client in rounds is exactly a client that lives through whole experiences."""

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from lone_client import (
    KEEPING,
    KINDS,
    REGRESSION,
    REGRESSION_TRAINING,
    STATELESS,
    STRATEGIES,
    TASK_TRAINING,
    TRAINING,
    built,
    gap,
    live,
    mlp,
    model_for,
    permuted,
    persist,
    regression,
    split,
    stream_for,
    through_json,
    turn_at,
)

from fedlearn.types import State

MODELS = {
    "plain": mlp,
    "two outputs": partial(mlp, outputs=2),
    "dropout": partial(mlp, dropout=0.3),
    "norm": partial(mlp, norm=True),
}
STREAMS = {
    "class": (TRAINING, split()),
    "task": (TASK_TRAINING, split(task=True)),
    "domain": (TRAINING, permuted()),
    "mask": (replace(TRAINING, mask_loss=((0, 1), (2, 3), (4, 5), (6, 7, 8, 9))), split()),
    "clipped": (replace(TRAINING, max_grad_norm=0.5), split()),
    "regression": (REGRESSION_TRAINING, regression()),
}
KIND = {"class": "class", "task": "task", "domain": "domain", "mask": "class", "clipped": "class"}
CASES = [
    (name, stream, model)
    for name in STRATEGIES
    for stream, model in [("class", each) for each in MODELS if each != "two outputs"]
    + [(each, "plain") for each in KIND if each != "class"]
    if KIND[stream] in KINDS[name]
] + [(name, "regression", "two outputs") for name in REGRESSION]


@pytest.mark.parametrize(("name", "stream", "model"), CASES)
def test_rounds_state_and_one_long_training_agree_exactly(
    name: str, stream: str, model: str
) -> None:
    training, experiences = STREAMS[stream]
    strategy = STRATEGIES[name](training=training)
    in_rounds, at_once, persistent, travelled = (
        model_for(strategy, MODELS[model]) for _ in range(4)
    )

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
    strategy, stream = built(name), stream_for(name)
    remembering, forgetting = model_for(strategy), model_for(strategy)
    live(strategy, remembering, stream, rounds=2)
    live(strategy, forgetting, stream, rounds=2, forget=True)
    assert gap(remembering, forgetting) > 1e-3


@pytest.mark.parametrize("name", STATELESS)
def test_some_keep_nothing(name: str) -> None:
    strategy = built(name)
    for report in live(strategy, model_for(strategy), stream_for(name), rounds=2):
        assert not report.state.tensors
        assert not report.state.values


@pytest.mark.parametrize("name", KEEPING)
def test_strategies_differ_from_naive_from_the_second_experience_on(name: str) -> None:
    for length, differ in ((1, False), (2, True)):
        strategy = built(name)
        one, other = model_for(strategy), model_for(strategy)
        live(strategy, one, stream_for(name, length), rounds=2)
        live(built("naive", strategy.training), other, stream_for(name, length), rounds=2)
        assert differ is False or gap(one, other) > 1e-4


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_turn_leaves_the_state_and_the_global_generators_as_they_were(name: str) -> None:
    strategy, stream = built(name), stream_for(name)
    model = model_for(strategy, MODELS["dropout"])
    state = live(strategy, model, stream[:2], rounds=2, whole=stream)[-1].state
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
    strategy = built(name)
    model = model_for(strategy, MODELS["plain"] if KINDS[name] == ["task"] else MODELS["norm"])
    state = live(strategy, model, stream_for(name), rounds=2)[-1].state
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
