"""Consolidation belongs to the end of an experience, whatever rounds a client took part in."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from lone_client import (
    CONSOLIDATING_WEIGHTS,
    KEEPING,
    STRATEGIES,
    TRAINING,
    gap,
    live,
    mlp,
    permuted,
    persist,
    split,
    turn_at,
    twin,
    weights,
)

from fedlearn.types import State
from strategies.continual.avalanche.snapshot import capture


def count(state: State) -> int:
    """Return how many experiences have been consolidated."""
    return state.values["clock"][1]


@pytest.mark.parametrize("name", KEEPING)
def test_state_and_clock_grow_with_experiences_and_not_with_rounds(name: str) -> None:
    strategy = STRATEGIES[name](training=TRAINING)
    few = [live(strategy, mlp(), split(length), rounds=1)[-1].state for length in (1, 2, 3)]
    many = [live(strategy, mlp(), split(length), rounds=4)[-1].state for length in (1, 2, 3)]
    assert [count(state) for state in few] == [count(state) for state in many] == [0, 1, 2]
    assert [state.num_bytes for state in few] == [state.num_bytes for state in many]


def test_state_is_as_large_as_promised() -> None:
    theta = 4 * weights(mlp()).numel()
    expected = {  # (local anchor, global anchor) in parameters, after three experiences
        "ewc": (5, 4),
        "ewc_online": (3, 2),
        "si": (4, 3),
        "lwf": (2, 1),
        "mas": (3, 2),
    }
    for name, sizes in expected.items():
        for anchor, size in zip(("local", "global"), sizes, strict=True):
            strategy = STRATEGIES[name](training=TRAINING, anchor=anchor)
            state = live(strategy, mlp(), split(), rounds=2)[-1].state
            assert state.num_bytes == size * theta, (name, anchor)
    replay = live(STRATEGIES["replay"](training=TRAINING), mlp(), split(), rounds=2)[-1].state
    assert replay.num_bytes == 20 * (2 * 8 + 4)  # row and experience, and the reservoir's key


@pytest.mark.parametrize("name", KEEPING)
def test_missing_the_last_rounds_consolidates_what_the_client_had_learnt(name: str) -> None:
    """Rounds 2 and 3 of 4 pass without the client, and the global model moves on."""
    strategy, stream, model = STRATEGIES[name](training=TRAINING), split(2), mlp()
    state = live(strategy, model, stream[:1], rounds=2)[-1].state
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1)
    turn = turn_at(4, previous=stream[0])
    kept = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state).state

    expected = State()
    capture(persist(strategy, mlp(), stream[:1], epochs=2), strategy.keeps, expected)
    of_new_experience = "plugins.0.syn_data.trajectory/"
    names = [key for key in expected.tensors if not key.startswith(of_new_experience)]
    assert names
    assert all(torch.equal(kept.tensors[key], expected.tensors[key]) for key in names)
    assert kept.values["tree"] == expected.values["tree"]
    assert count(kept) == 1


@pytest.mark.parametrize("name", KEEPING)
def test_skipping_an_experience_consolidates_the_one_before_it(name: str) -> None:
    """A client that is away for all of experience 1 goes from experience 0 to 2."""
    strategy, stream = STRATEGIES[name](training=TRAINING), split(4)
    model, persistent, state, previous = mlp(), mlp(), State(), None
    for index in (0, 2, 3):
        turn = turn_at(index, previous=previous)
        report = strategy.train_turn(model, stream[index], stream.__getitem__, turn, state)
        state, previous = report.state, stream[index]
    persist(strategy, persistent, [stream[0], *stream[2:]], epochs=1, first_epochs=[0, 2, 3])
    assert gap(model, persistent) == 0.0
    assert count(state) == 2
    for key, tensor in state.tensors.items():
        if key.endswith("/rows"):
            assert set(tensor[:, 0].tolist()) <= {0, 2}


@pytest.mark.parametrize("name", CONSOLIDATING_WEIGHTS)
def test_the_anchor_decides_whose_weights_are_consolidated(name: str) -> None:
    stream, received = permuted(2), mlp()
    with torch.no_grad():
        for tensor in received.parameters():
            tensor.mul_(1.5)
    trained = {}
    for anchor in ("local", "global"):
        strategy = STRATEGIES[name](training=TRAINING, anchor=anchor)
        model = mlp()
        state = live(strategy, model, stream[:1], rounds=2)[-1].state
        assert any(key.startswith("weights/") for key in state.tensors) is (anchor == "local")
        own = twin(model)
        for case, weights_received in (("same", own), ("other", received)):
            model.load_state_dict(weights_received.state_dict())
            turn = turn_at(2, epochs=2, previous=stream[0])
            strategy.train_turn(model, stream[1], stream.__getitem__, turn, state)
            trained[anchor, case] = twin(model)
    assert gap(trained["local", "same"], trained["global", "same"]) == 0.0
    assert gap(trained["local", "other"], trained["global", "other"]) > 1e-6


@pytest.mark.parametrize("anchor", ["local", "global"])
@pytest.mark.parametrize("name", CONSOLIDATING_WEIGHTS)
def test_training_starts_at_the_received_weights(name: str, anchor: str) -> None:
    """With a learning rate of almost 0, a consolidating turn returns what it received."""
    still = replace(TRAINING, optimizer=partial(torch.optim.SGD, lr=1e-12))
    strategy, stream = STRATEGIES[name](training=still, anchor=anchor), split(2)
    model, received = mlp(), mlp()
    with torch.no_grad():
        for tensor in received.parameters():
            tensor.add_(0.3)
    state = live(strategy, model, stream[:1])[-1].state
    model.load_state_dict(received.state_dict())
    strategy.train_turn(model, stream[1], stream.__getitem__, turn_at(1, previous=stream[0]), state)
    assert gap(model, received) < 1e-8


def test_consolidation_does_not_move_batch_statistics() -> None:
    stream = split(2)
    for name in CONSOLIDATING_WEIGHTS:
        strategy, model = STRATEGIES[name](training=TRAINING), mlp(norm=True)
        state = live(strategy, model, stream[:1])[-1].state
        before = int(model[1].num_batches_tracked)
        turn = turn_at(1, previous=stream[0])
        steps = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state).steps
        assert int(model[1].num_batches_tracked) - before == steps


def test_a_lost_state_is_an_error_and_not_a_guess() -> None:
    strategy, stream = STRATEGIES["ewc"](training=TRAINING), split(2)
    with pytest.raises(ValueError, match="client 0 has lost the state it had"):
        strategy.train_turn(
            mlp(), stream[1], stream.__getitem__, turn_at(1, previous=stream[0]), State()
        )
