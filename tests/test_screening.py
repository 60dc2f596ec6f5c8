import math

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fedlearn import records
from fedlearn.runtimes.task import task_identity
from fedlearn.screening import average_buffers, check_evaluation, is_finite, screen

PARAMETERS = {"w": torch.zeros(2, 3), "b": torch.zeros(3)}
BUFFERS = {"mean": torch.zeros(2), "count": torch.tensor(0)}


@pytest.fixture(autouse=True)
def _identity():
    with task_identity():
        yield


def _reply(node=1, parameters=None, buffers=None, metrics=None):
    instruction = Message(RecordDict(), dst_node_id=node, message_type="train")
    content = RecordDict(
        {
            "arrays": records.to_arrays(PARAMETERS if parameters is None else parameters),
            "buffers": records.to_arrays(BUFFERS if buffers is None else buffers),
            "metrics": MetricRecord(
                {"num-examples": 5, "train_loss": 0.5, **({} if metrics is None else metrics)}
            ),
        }
    )
    return Message(content, reply_to=instruction)


def _screen(*replies):
    return screen(replies, {1: 0, 2: 1, 3: 2}, PARAMETERS, BUFFERS, lambda client_id: 10)


def test_sound_replies_come_out_in_client_order_with_their_buffers_split_off():
    screened = _screen(_reply(3), _reply(1), _reply(2))
    assert list(screened.accepted) == [0, 1, 2]
    assert not screened.quarantined
    assert not screened.failed
    for message in screened.accepted.values():
        assert list(message.content.array_records) == ["arrays"]
        assert len(message.content.metric_records) == 1
    assert set(screened.buffers[1]) == {"mean", "count"}
    assert records.metrics_of(screened.accepted[2])["num-examples"] == 5


NAN = {**PARAMETERS, "w": torch.tensor([[0.0, math.nan, 0], [0, 0, 0]])}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"parameters": NAN}, "'w' holds NaN"),
        ({"parameters": {**PARAMETERS, "b": torch.full((3,), math.inf)}}, "'b' holds NaN"),
        ({"parameters": {**PARAMETERS, "b": torch.zeros(1)}}, r"shape \[1\], must be \[3\]"),
        ({"parameters": {**PARAMETERS, "b": torch.zeros(3).double()}}, "dtype torch.float64"),
        ({"parameters": {"w": PARAMETERS["w"]}}, r"missing \['b'\]"),
        ({"parameters": {**PARAMETERS, "c": torch.zeros(1)}}, r"unexpected \['c'\]"),
        ({"buffers": {"mean": torch.zeros(2)}}, r"missing \['count'\]"),
        ({"buffers": {**BUFFERS, "mean": torch.full((2,), math.nan)}}, "'mean' holds NaN"),
        ({"metrics": {"num-examples": 10**12}}, "1e"),
        ({"metrics": {"num-examples": 11}}, r"num-examples is 11, must be in 1\.\.10"),
        ({"metrics": {"num-examples": -2}}, "num-examples is -2"),
        ({"metrics": {"num-examples": 0}}, "num-examples is 0"),
        ({"metrics": {"num-examples": math.nan}}, "num-examples is nan"),
        ({"metrics": {"num-examples": [5]}}, "num-examples is"),
        ({"metrics": {"train_loss": math.inf}}, "train_loss is inf"),
        ({"metrics": {"train_loss": [0.5]}}, r"train_loss is \[0.5\]"),
        ({"metrics": {"steps": math.nan}}, "steps is nan"),
        ({"metrics": {"steps": -1}}, "steps is -1"),
        ({"metrics": {"replayed": [1, 2]}}, r"replayed is \[1, 2\]"),
        ({"metrics": {"state-bytes": math.inf}}, "state-bytes is inf"),
        ({"metrics": {"state-bytes": -4}}, "state-bytes is -4"),
    ],
)
def test_a_bad_reply_is_quarantined_with_its_reason(bad, reason):
    screened = _screen(_reply(2, **bad), _reply(1))
    assert list(screened.accepted) == [0]
    assert list(screened.quarantined) == [1]
    assert __import__("re").search(reason, screened.quarantined[1])
    assert "\n" not in screened.quarantined[1]


def test_a_reply_with_two_array_records_is_quarantined():
    reply = _reply(1)
    reply.content["extra"] = records.to_arrays({"x": torch.zeros(1)})
    assert "2 array records" in _screen(reply).quarantined[0]


def test_errors_idle_clients_strangers_and_duplicates_are_told_apart():
    failed = records.error_reply(Message(RecordDict(), 2, "train"), "Boom:\n line two")
    idle = records.idle_reply(Message(RecordDict(), 3, "train"))
    screened = _screen(_reply(1), failed, idle, _reply(1, metrics={"num-examples": 9}), _reply(99))
    assert list(screened.accepted) == [0]
    told = records.metrics_of(screened.accepted[0])
    assert told["num-examples"] == 5  # the first delivery counts, the second is ignored
    assert screened.failed == {1: "Boom: line two"}
    assert screened.idle == [2]


def test_metrics_that_not_every_client_sent_are_left_out():
    screened = _screen(_reply(1, metrics={"extra": 1.0}), _reply(2))
    assert all("extra" not in records.metrics_of(m) for m in screened.accepted.values())


@pytest.mark.parametrize("odd", [[1.0, 2.0], math.nan])
def test_metrics_that_cannot_be_averaged_are_left_out_for_all(odd):
    screened = _screen(_reply(1, metrics={"extra": odd}), _reply(2, metrics={"extra": 1.0}))
    assert list(screened.accepted) == [0, 1]
    assert all("extra" not in records.metrics_of(m) for m in screened.accepted.values())


def _evaluation(**metrics):
    honest = {"num-examples": 4, "correct": 3, "accuracy": [0.5, 1.0, math.nan]}
    content = RecordDict({"metrics": MetricRecord({**honest, **metrics})})
    return Message(content, reply_to=Message(RecordDict(), 1, "evaluate"))


def test_an_honest_evaluation_passes():
    check_evaluation(_evaluation(), 3)
    nothing = {"num-examples": 0, "correct": 0, "accuracy": [math.nan] * 3}
    check_evaluation(_evaluation(**nothing), 3)


def test_the_score_of_a_regression_may_be_negative():
    bad = _evaluation(correct=-9.5, accuracy=[-30.0, 0.5, math.nan])
    check_evaluation(bad, 3, lowest=-math.inf)
    with pytest.raises(ValueError, match=r"-9.5 correct of 4"):
        check_evaluation(bad, 3)
    for lie in ({"correct": 4.5}, {"accuracy": [0.5, 1.5, 0.0]}, {"accuracy": [-math.inf] * 3}):
        with pytest.raises(ValueError, match=r"accuracy|correct of"):
            check_evaluation(_evaluation(**lie), 3, lowest=-math.inf)


@pytest.mark.parametrize(
    "lie",
    [
        {"accuracy": [0.5, 1.0]},
        {"accuracy": [0.5, 1.0, 1.5]},
        {"accuracy": [0.5, 1.0, math.inf]},
        {"accuracy": [0.5, 1.0, -1.0]},
        {"accuracy": 0.5},
        {"correct": 5},
        {"correct": math.nan},
        {"num-examples": -1},
        {"num-examples": [4]},
    ],
)
def test_a_dishonest_evaluation_is_refused(lie):
    with pytest.raises(ValueError, match=r"accuracy|correct of"):
        check_evaluation(_evaluation(**lie), 3)


def test_up_bytes_count_every_reply_that_arrived():
    one = records.wire_bytes(_reply(1).content)
    assert one > 0
    assert _screen(_reply(1), _reply(2, parameters=NAN)).up_bytes == 2 * one


def test_is_finite_does_not_mistake_a_sum_that_overflows():
    assert is_finite(torch.full((4,), 3e38))
    assert not is_finite(torch.tensor([1.0, math.inf]))
    assert not is_finite(torch.tensor([math.inf, -math.inf]))
    assert is_finite(torch.tensor([1, 2]))


def test_buffers_are_averaged_by_weight_and_integers_stay_integers():
    mean = average_buffers(
        {
            3: {"mean": torch.tensor([1.0, 0.0]), "count": torch.tensor(10)},
            1: {"mean": torch.tensor([4.0, 3.0]), "count": torch.tensor(4)},
        },
        {3: 1.0, 1: 2.0},
    )
    assert torch.allclose(mean["mean"], torch.tensor([3.0, 2.0]))
    assert mean["count"].dtype == torch.int64
    assert mean["count"] == 6
