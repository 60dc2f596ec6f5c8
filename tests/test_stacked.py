"""A cohort's instructions and replies, stacked: the same as single messages, when asked for."""

import json

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedlearn import records
from fedlearn.columns import ClientColumns
from fedlearn.runtimes.task import task_identity
from fedlearn.screening import ScreenedStack, screen
from fedlearn.stacked import Instructions, MeanOnly, Replies, Stack
from strategies.aggregation.fedavg import FedAvg

PARAMETERS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.0, -1.0])}
BUFFERS = {"n": torch.tensor(3)}


@pytest.fixture(autouse=True)
def _task():
    with task_identity():
        yield


def instructions(number=4, weighted_by=None, unread=()):
    content = RecordDict(
        {"arrays": records.to_arrays(PARAMETERS), "config": ConfigRecord({"proximal-mu": 0.5})}
    )
    made = Instructions(content, [k + 1 for k in range(number)], "train", weighted_by)
    return made.addressed(BUFFERS, 7, list(range(number)), frozenset(unread))


def replies(places=(0, 2, 3), **more):
    generator = torch.Generator().manual_seed(1)
    models = [
        {name: torch.randn(each.shape, generator=generator) for name, each in PARAMETERS.items()}
        for _ in places
    ]
    metrics = {
        "num-examples": np.array([5, 1, 7][: len(places)]),
        "train_loss": np.array([0.5, 1.5, 0.25][: len(places)]),
        "steps": np.array([2, 1, 3][: len(places)]),
        "replayed": np.array([0, 4, 0][: len(places)]),
        "state-bytes": np.array([8, 0, 16][: len(places)]),
        "grad-norm": np.array([1.0, 2.0, 3.0][: len(places)]),
    }
    return Replies(
        instructions(), np.array(places), metrics, Stack(models), dict(BUFFERS), **more
    ), models


def test_each_message_is_its_client_s_own_and_says_what_all_are_told():
    made = instructions()
    messages = list(made)
    assert [message.metadata.dst_node_id for message in messages] == [1, 2, 3, 4]
    assert {message.metadata.message_type for message in messages} == {"train"}
    for place, message in enumerate(messages):
        read = records.read_instruction(message)
        assert (read.server_round, read.acknowledged) == (7, place)
        assert read.config == {"proximal-mu": 0.5}
        assert read.parameters["a"] is made.common.parameters["a"]  # nothing is copied
        assert torch.equal(read.buffers["n"], BUFFERS["n"])
    messages[0].content["config"]["proximal-mu"] = 9.0
    assert records.read_instruction(messages[1]).config == {"proximal-mu": 0.5}
    assert [message.metadata.dst_node_id for message in made[1:3]] == [2, 3]


def test_stacked_instructions_cost_the_bytes_of_single_ones():
    made = instructions()
    single = sum(records.wire_bytes(message.content) for message in made)
    assert made.wire_bytes == single > 4 * 8 * 4


def test_replies_are_messages_when_somebody_iterates():
    stacked, models = replies()
    for at, message in enumerate(stacked):
        assert message.metadata.src_node_id == [1, 3, 4][at]
        told = dict(records.metrics_of(message))
        assert told == {name: column[at] for name, column in stacked.metrics.items()}
        assert type(told["num-examples"]) is int
        arrays = records.to_tensors(next(iter(message.content.array_records.values())))
        assert arrays["a"] is not None
        assert torch.equal(arrays["a"], models[at]["a"])
    assert stacked.up_bytes == sum(
        records.wire_bytes(m.content) + records.wire_bytes(_buffers()) for m in stacked
    )


def _buffers():
    return RecordDict({"buffers": records.to_arrays(BUFFERS)})


def test_fedavg_of_a_stack_is_fedavg_of_its_messages_bit_for_bit():
    stacked, _ = replies()
    average = FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
    together, told = average.aggregate_train(1, stacked)
    one_by_one, told_singly = average.aggregate_train(1, list(stacked))
    for name in PARAMETERS:
        assert torch.equal(records.to_tensors(together)[name], records.to_tensors(one_by_one)[name])
    assert told.keys() == told_singly.keys()
    for name in told:
        assert told[name] == pytest.approx(told_singly[name], rel=1e-15)


def test_screening_a_stack_tells_what_screening_its_messages_tells():
    cohort = [10, 11, 12, 13]
    stacked, _ = replies(diverged={1: "the loss is nan"})
    one = ScreenedStack(stacked, cohort, set())
    messages = [_with_buffers(message) for message in stacked]
    node = instructions()[1]
    messages.append(records.diverged_reply(node, "the loss is nan"))
    client_of = dict(zip([1, 2, 3, 4], cohort, strict=True))
    other = screen(messages, client_of, PARAMETERS, BUFFERS, lambda _: 10)
    assert list(one.accepted) == list(other.accepted) == [10, 12, 13]
    assert one.diverged == other.diverged == {11: "the loss is nan"}
    assert one.up_bytes == other.up_bytes
    mine, theirs = one.told(), other.told()
    assert {key: dict(each) for key, each in mine.clients.items()} == dict(theirs.clients)
    assert mine.losses == theirs.losses
    assert mine.state_bytes == theirs.state_bytes
    assert (mine.steps, mine.replayed) == (theirs.steps, theirs.replayed) == (6, 4)
    assert one.accepted[12].metadata.src_node_id == 3
    with pytest.raises(KeyError):
        one.accepted[11]


def _with_buffers(message: Message) -> Message:
    message.content["buffers"] = records.to_arrays(BUFFERS)
    return message


def test_only_the_mean_that_was_asked_for_is_there():
    mean = MeanOnly(PARAMETERS)
    assert mean.mean(None) is PARAMETERS
    with pytest.raises(ValueError, match="only the mean"):
        mean.mean(np.ones(2))
    with pytest.raises(ValueError, match="was not kept"):
        mean.of(0)


def test_an_aggregation_that_looks_at_replies_is_handed_single_models():
    arrays, config = records.to_arrays(PARAMETERS), ConfigRecord()

    class Looks(FedAvg):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, list(replies))

    class Nodes:
        def get_node_ids(self):
            return [1, 2]

    for kind, weighted_by in ((FedAvg, "num-examples"), (Looks, None)):
        made = kind().configure_train(1, arrays, config, Nodes())
        assert made.weighted_by == weighted_by
    own = FedAvg(train_metrics_aggr_fn=lambda contents, key: MetricRecord())
    assert own.configure_train(1, arrays, config, Nodes()).weighted_by is None


def test_columns_are_a_mapping_of_dictionaries():
    columns = ClientColumns([3, 8], {"loss": [0.5, float("nan")], "steps": [1, 2]})
    assert list(columns) == ["3", "8"]
    assert columns["3"] == {"loss": 0.5, "steps": 1}
    assert columns["8"]["steps"] == 2
    assert dict(columns.items())["3"] == columns["3"]
    told = json.loads(columns.to_json())
    assert told == {"3": {"loss": 0.5, "steps": 1}, "8": {"loss": None, "steps": 2}}
    odd = ClientColumns([0], {'a "%s" b': [1]})
    assert json.loads(odd.to_json()) == {"0": {'a "%s" b': 1}}
    assert json.loads(ClientColumns([], {"loss": []}).to_json()) == {}
    with pytest.raises(KeyError):
        columns["4"]
