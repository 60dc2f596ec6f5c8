import json
import math

import numpy as np
import pytest
import torch
from federation import (
    PlainSgd,
    federate,
    make_scenario,
    norm_model,
    tiny_model,
)
from flwr.app import ArrayRecord, MetricRecord

from fedlearn import records
from fedlearn.client_state import ClientState
from fedlearn.grids import RunFailedError
from fedlearn.runtimes.inprocess import InProcessGrid
from fedlearn.server import digest_of


def _set_metric(key, value):
    def fault(message, reply, context):
        reply.content["metrics"] = MetricRecord({**reply.content["metrics"], key: value})
        return reply

    return fault


def _change_arrays(change):
    def fault(message, reply, context):
        tensors = records.to_tensors(reply.content["arrays"])
        reply.content["arrays"] = records.to_arrays(change(dict(tensors)))
        return reply

    return fault


def _raises(message, reply, context):
    raise RuntimeError("this client is broken")


def test_the_global_model_learns_and_the_scoreboard_is_filled():
    server, events, _ = federate(continual=PlainSgd(lr=0.5), rounds_per_experience=20)
    board = server.scoreboard
    assert server.scoreboard.learned == 2
    assert np.isfinite(board.accuracy).all()
    assert np.isfinite(board.baseline).all()
    assert board.accuracy[0, 0] > 0.9
    assert board.accuracy[1, 1] > 0.9
    assert board.accuracy[0, 1] == 0  # classes that nobody has met yet
    assert set(board.client_accuracy) == {0, 1, 2, 3}
    kinds = [event["event"] for event in events]
    assert kinds == (["round"] * 20 + ["experience"]) * 2
    json.dumps(events, allow_nan=False)


def test_one_round_equals_hand_arithmetic():
    scenario = make_scenario(num_clients=3, num_experiences=1, per_pair=4)
    server, _, _ = federate(scenario, rounds_per_experience=1, build_model=tiny_model)
    expected = {name: torch.zeros_like(p) for name, p in tiny_model().named_parameters()}
    for client_id in range(3):
        model = tiny_model()
        x, y = scenario.experience(client_id, 0).gather()
        torch.nn.functional.cross_entropy(model(x), y).backward()  # 4 samples: one full batch
        for name, parameter in model.named_parameters():
            expected[name] += (parameter.detach() - 0.1 * parameter.grad) / 3
    for name, tensor in expected.items():
        assert torch.allclose(server.parameters[name], tensor, atol=1e-6)


def test_equal_seeds_give_equal_digests_and_other_seeds_others():
    digests = [federate(run_seed=run_seed, fraction_train=0.5)[0].digest for run_seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


class ShuffledGrid(InProcessGrid):
    """Executes and answers in another order than asked."""

    def push_messages(self, messages):
        return super().push_messages(list(messages)[::-1])

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        return replies[1:] + replies[:1]


def test_the_digest_does_not_depend_on_the_order_of_the_cohort():
    assert federate()[0].digest == federate(grid_type=ShuffledGrid)[0].digest


@pytest.mark.parametrize(
    "fault",
    [
        _change_arrays(lambda t: {**t, "0.bias": torch.full_like(t["0.bias"], math.nan)}),
        _change_arrays(lambda t: {**t, "0.bias": t["0.bias"][:1]}),
        _change_arrays(lambda t: {("other" if k == "0.bias" else k): v for k, v in t.items()}),
        _set_metric("num-examples", 10**12),
        _set_metric("num-examples", -2),
        _set_metric("num-examples", 0),
        _set_metric("steps", math.nan),
        _raises,
    ],
    ids=["nan", "shape", "key", "1e12", "negative", "0", "steps", "raises"],
)
def test_a_bad_client_changes_nothing_but_its_own_part(fault):
    absent = {(2, 0), (2, 1)}
    without, _, _ = federate(make_scenario(empty=absent))
    faulty, events, _ = federate(faults={2: fault})
    assert faulty.digest == without.digest
    rounds = [event for event in events if event["event"] == "round"]
    for event in rounds:
        named = [each["client"] for each in event["quarantined"] + event["failed"]]
        assert named == [2]
        assert sorted(event["clients"]) == ["0", "1", "3"]
    assert without.digest != federate()[0].digest


def test_state_follows_the_client_whatever_the_order_and_participation():
    _, events, grid = federate(
        make_scenario(num_clients=6),
        rounds_per_experience=5,
        fraction_train=0.5,
        grid_type=ShuffledGrid,
    )
    turns = dict.fromkeys(range(6), 0)
    for event in events:
        for client_id in event.get("clients", {}):
            turns[int(client_id)] += 1
    for client_id, count in turns.items():
        kept = ClientState(grid.context(client_id + 1).state)
        kept.settle(10**9)  # what is staged stays out; the committed state is one turn behind
        state, _ = kept.committed()
        if count > 1:
            assert state.values["client"] == client_id
            assert state.values["turns"] == count - 1
    assert sum(turns.values()) == 30


def test_an_experience_is_consolidated_once_whatever_the_participation():
    _, _, grid = federate(
        make_scenario(num_clients=4, num_experiences=4, empty={(1, 1), (2, 0)}),
        rounds_per_experience=3,
    )
    consolidated = {}
    for client_id in range(4):
        state, last = ClientState(grid.context(client_id + 1).state).committed()
        assert last == 3
        consolidated[client_id] = state.values["consolidated"]
    assert consolidated == {0: [0, 1, 2], 1: [0, 2], 2: [1, 2], 3: [0, 1, 2]}


def test_a_turn_that_the_server_did_not_use_leaves_no_trace():
    rounds = []

    def fault(message, reply, context):
        now = records.read_instruction(message).server_round
        rounds.append(now)
        if now == 2:
            reply.content["metrics"] = MetricRecord(
                {**reply.content["metrics"], "num-examples": -1}
            )
        return reply

    _, _, grid = federate(faults={1: fault}, rounds_per_experience=2)
    state, _ = ClientState(grid.context(2).state).committed()
    assert rounds == [1, 2, 3, 4]
    assert state.values["turns"] == 2  # rounds 1 and 3; round 2 rolled back, round 4 is staged


def test_idle_clients_are_no_failure():
    nobody = {(client_id, 1) for client_id in range(4)}
    server, events, _ = federate(make_scenario(empty=nobody))
    assert [event["idle"] for event in events if event["event"] == "round"] == [
        [],
        [],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    assert not [event for event in events if event["event"] == "warning"]
    assert server.rounds == 4


def test_a_run_in_which_nobody_answers_ends_loudly():
    with pytest.raises(RunFailedError, match="2 rounds in a row failed, the last one: no valid"):
        federate(faults=dict.fromkeys(range(4), _raises), max_failed_rounds=2)


def test_rounds_below_the_bound_fail_and_keep_the_model():
    with pytest.raises(RunFailedError, match="needs five"):
        federate(bound=lambda n: "needs five" if n < 5 else None, max_failed_rounds=1)


def test_batch_norm_buffers_are_averaged_and_counters_stay_integers():
    server, _, _ = federate(build_model=norm_model, rounds_per_experience=1)
    assert server.buffers["1.num_batches_tracked"].dtype == torch.int64
    assert server.buffers["1.num_batches_tracked"] == 6  # 12 samples in batches of 4, 2 rounds
    assert server.buffers["1.running_mean"].abs().sum() > 0
    assert torch.isfinite(server.buffers["1.running_var"]).all()


def test_the_ledger_counts_every_array_that_crosses():
    server, events, _ = federate()
    model_bytes = records.wire_bytes(
        __import__("flwr.app").app.RecordDict({"arrays": records.to_arrays(server.parameters)})
    )
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["comm"]["up_bytes"] for event in rounds] == [4 * model_bytes] * 4
    assert server.ledger.up_bytes == 16 * model_bytes
    assert server.ledger.down_bytes == 24 * model_bytes  # 4 rounds and 2 evaluations of 4 clients
    assert server.ledger.steps == 4 * 4 * 3


def test_digest_is_sha256_of_float32_bytes_in_name_order():
    import hashlib

    tensors = {"b": torch.tensor([2.0]), "a": torch.tensor([1], dtype=torch.int64)}
    expected = hashlib.sha256(np.array([1, 2], dtype="<f4").tobytes()).hexdigest()
    assert digest_of(tensors) == expected


def test_training_leaves_the_global_generators_alone():
    import random

    torch_before, python_before = torch.get_rng_state(), random.getstate()
    numpy_before = np.random.get_state()[1].tolist()
    federate(fraction_train=0.5)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert random.getstate() == python_before
    assert np.random.get_state()[1].tolist() == numpy_before


def test_a_client_never_sees_what_another_client_trained():
    """Clients that do not train (learning rate 0) must hand back exactly what they were sent."""
    server, _, _ = federate(continual=PlainSgd(lr=0.0))
    assert server.digest == digest_of(dict(tiny_model().named_parameters()))


def test_the_aggregated_arrays_are_plain_records():
    server, _, _ = federate()
    assert isinstance(records.to_arrays(server.parameters), ArrayRecord)
