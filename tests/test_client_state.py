import gc
import weakref

import torch
from flwr.app import RecordDict

from fedlearn.client_state import ClientState
from fedlearn.types import State


def _state(value: float) -> State:
    return State({"w": torch.tensor([value])}, {"n": int(value), "names": ["a", "b"]})


def test_a_client_without_turns_has_an_empty_state():
    state, experience = ClientState(RecordDict()).committed()
    assert (state.tensors, state.values, experience) == ({}, {}, None)


def test_staged_state_is_not_seen_before_it_is_acknowledged():
    kept = ClientState(RecordDict())
    kept.stage(_state(1), 1, 0)
    assert kept.committed()[1] is None
    kept.settle(1)
    state, experience = kept.committed()
    assert experience == 0
    assert state.tensors["w"].item() == 1
    assert state.values == {"n": 1, "names": ["a", "b"]}


def test_what_the_server_did_not_use_is_rolled_back():
    kept = ClientState(RecordDict())
    kept.stage(_state(1), 1, 0)
    kept.settle(1)
    kept.stage(_state(2), 3, 1)
    kept.settle(1)  # round 3 was lost: the last one used is still round 1
    state, experience = kept.committed()
    assert (state.tensors["w"].item(), experience) == (1, 0)
    kept.settle(3)  # and it cannot come back
    assert kept.committed()[0].tensors["w"].item() == 1


def test_settling_twice_changes_nothing():
    records = RecordDict()
    kept = ClientState(records)
    kept.stage(_state(1), 1, 0)
    kept.settle(1)
    before = sorted(records)
    kept.settle(1)
    assert sorted(records) == before
    assert kept.committed()[0].values["n"] == 1


def test_empty_lists_and_every_plain_type_survive():
    values = {"i": 1, "f": 0.5, "b": True, "s": "x", "y": b"\0", "l": [1, 2], "e": []}
    kept = ClientState(RecordDict())
    kept.stage(State({}, dict(values)), 1, 0)
    kept.settle(1)
    assert kept.committed()[0].values == values


def test_a_state_is_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        content = RecordDict()
        kept = ClientState(content)
        kept.settle(0)
        kept.stage(_state(1), 1, 0)
        kept.settle(1)
        assert kept.committed()[1] == 0
        kept.settle(1)
        gone = weakref.ref(content)
        del content, kept
        assert gone() is None
    finally:
        gc.enable()
