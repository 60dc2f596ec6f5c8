"""Consolidation belongs to the end of an experience, whatever rounds a client took part in."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from lone_client import (
    CONSOLIDATING_WEIGHTS,
    KEEPING,
    ONLINE,
    STRATEGIES,
    TRAINING,
    built,
    gap,
    live,
    mlp,
    model_for,
    persist,
    split,
    stream_for,
    training_for,
    turn_at,
    twin,
    weights,
)

from fedlearn.types import State
from strategies.continual.avalanche.snapshot import capture


def count(state: State) -> int:
    """Return how many experiences have been consolidated."""
    return state.values["clock"][1]


AT_RECEIVED = ["slda", "fecam"]
"""Those that consolidate at the received weights, whose statistics all clients share."""
AT_BOUNDARIES = [name for name in KEEPING if name not in ONLINE + AT_RECEIVED]


@pytest.mark.parametrize("name", KEEPING)
def test_state_and_clock_grow_with_experiences_and_not_with_rounds(name: str) -> None:
    strategy = built(name)

    def states(rounds: int) -> list[State]:
        return [
            live(strategy, model_for(strategy), stream_for(name, length), rounds)[-1].state
            for length in (1, 2, 3)
        ]

    few, many = states(1), states(4)
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


@pytest.mark.parametrize("name", AT_BOUNDARIES)
def test_missing_the_last_rounds_consolidates_what_the_client_had_learnt(name: str) -> None:
    """Rounds 2 and 3 of 4 pass without the client, and the global model moves on."""
    strategy, stream = built(name), stream_for(name, 2)
    model = model_for(strategy)
    state = live(strategy, model, stream[:1], rounds=2)[-1].state
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1)
    turn = turn_at(4, previous=stream[0])
    kept = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state).state

    expected = State()
    capture(persist(strategy, model_for(strategy), stream[:1], epochs=2), strategy.keeps, expected)
    of_new_experience = ("plugins.0.syn_data.trajectory/", "plugins.0.path/")
    names = [key for key in expected.tensors if not key.startswith(of_new_experience)]
    assert names
    assert all(torch.equal(kept.tensors[key], expected.tensors[key]) for key in names)
    assert kept.values["tree"] == expected.values["tree"]
    assert count(kept) == 1


@pytest.mark.parametrize("name", KEEPING)
def test_skipping_an_experience_consolidates_the_one_before_it(name: str) -> None:
    """A client that is away for all of experience 1 goes from experience 0 to 2."""
    strategy = built(name, replace(training_for(name), num_experiences=4))
    stream = stream_for(name, 4)
    model, persistent = model_for(strategy), model_for(strategy)
    state, previous = State(), None
    for index in (0, 2, 3):
        turn = turn_at(index, previous=previous)
        report = strategy.train_turn(model, stream[index], stream.__getitem__, turn, state)
        state, previous = report.state, stream[index]
    persist(strategy, persistent, [stream[0], *stream[2:]], epochs=1, first_epochs=[0, 2, 3])
    assert gap(model, persistent) == 0.0
    assert count(state) == 2
    for key, tensor in state.tensors.items():
        if key.endswith("/rows"):
            assert set(tensor[:, 0].tolist()) <= ({0, 2, 3} if name in ONLINE else {0, 2})


@pytest.mark.parametrize("name", CONSOLIDATING_WEIGHTS)
def test_the_anchor_decides_whose_weights_are_consolidated(name: str) -> None:
    stream, received = stream_for(name, 2), model_for(built(name))
    with torch.no_grad():
        for tensor in received.parameters():
            tensor.mul_(1.5)
    trained = {}
    for anchor in ("local", "global"):
        strategy = built(name, anchor=anchor)
        model = model_for(strategy)
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
    strategy, stream = built(name, still, anchor=anchor), stream_for(name, 2)
    model, received = model_for(strategy), model_for(strategy)
    with torch.no_grad():
        for tensor in received.parameters():
            tensor.add_(0.3)
    state = live(strategy, model, stream[:1])[-1].state
    model.load_state_dict(received.state_dict())
    strategy.train_turn(model, stream[1], stream.__getitem__, turn_at(1, previous=stream[0]), state)
    pairs = zip(model.parameters(), received.parameters(), strict=True)
    assert max(float((ours - theirs).detach().abs().max()) for ours, theirs in pairs) < 1e-8


def test_consolidation_does_not_move_batch_statistics() -> None:
    stream = split(2)
    for name in ("ewc", "ewc_online", "si", "lwf", "mas", "der", "der_plus_plus"):
        strategy = built(name)
        model = mlp(norm=True)
        state = live(strategy, model, stream[:1])[-1].state
        before = int(model[1].num_batches_tracked)
        turn = turn_at(1, previous=stream[0])
        steps = strategy.train_turn(model, stream[1], stream.__getitem__, turn, state).steps
        assert int(model[1].num_batches_tracked) - before == steps


@pytest.mark.parametrize("name", KEEPING)
def test_a_client_that_joins_late_starts_from_the_received_weights(name: str) -> None:
    """What it meets first is its first experience, whatever the experience's index."""
    strategy, stream = built(name), stream_for(name, 3)
    late, again = model_for(strategy), model_for(strategy)
    for model in (late, again):
        report = strategy.train_turn(
            model, stream[2], stream.__getitem__, turn_at(8, server_round=9), State()
        )
        assert count(report.state) == 0
        for key, tensor in report.state.tensors.items():
            if key.endswith("/rows"):
                assert set(tensor[:, 0].tolist()) <= {2}
    assert gap(late, again) == 0.0


@pytest.mark.parametrize("name", KEEPING)
def test_clients_may_meet_experiences_in_any_order(name: str) -> None:
    """The state of a client that goes 2, 0, 1 is that of a persistent one that goes so."""
    strategy, stream = built(name), stream_for(name, 3)
    model, persistent = model_for(strategy), model_for(strategy)
    order, state, previous = (2, 0, 1), State(), None
    for clock, index in enumerate(order):
        turn = turn_at(clock, previous=previous)
        state = strategy.train_turn(model, stream[index], stream.__getitem__, turn, state).state
        previous = stream[index]
    persist(strategy, persistent, [stream[index] for index in order], epochs=1)
    assert gap(model, persistent) == 0.0
    assert count(state) == 2


def test_a_lost_state_is_an_error_and_not_a_guess() -> None:
    strategy, stream = STRATEGIES["ewc"](training=TRAINING), split(2)
    with pytest.raises(ValueError, match="client 0 has lost the state it had"):
        strategy.train_turn(
            mlp(), stream[1], stream.__getitem__, turn_at(1, previous=stream[0]), State()
        )
