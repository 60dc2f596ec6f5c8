"""The run's files: complete, valid JSON, and readable after any crash."""

import json
import math
import os

import pytest
from example_run import example_run
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.tracking import jsonl
from fedlearn.tracking.jsonl import JsonlTracker, read_events, read_summary, write_json


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_events_and_its_summary(tmp_path):
    events, summary = example_run()
    tracker = JsonlTracker()
    tracker.start(tmp_path, {"seed": 4}, {"hash": "x", "sizes": [[1, 2]]})
    for event in events:
        tracker.event(event)
    tracker.finish(summary)
    assert lines(tmp_path) == read_events(tmp_path) == events
    assert read_summary(tmp_path) == summary
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"hash": "x", "sizes": [[1, 2]]}
    assert json.loads((tmp_path / "env.json").read_text())["packages"]["torch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "env.json",
        "manifest.json",
        "metrics.jsonl",
        "summary.json",
    ]


def test_every_event_is_on_disk_before_the_next(tmp_path):
    tracker = JsonlTracker()
    tracker.start(tmp_path, {}, {})
    for number in range(3):
        tracker.event({"event": "round", "round": number})
        assert len(lines(tmp_path)) == number + 1
    tracker.finish({})


def test_numbers_that_json_cannot_hold_become_null(tmp_path):
    tracker = JsonlTracker()
    tracker.start(tmp_path, {}, {})
    tracker.event({"event": "round", "loss": math.nan, "a": [math.inf, {"b": -math.inf}], "c": 1.5})
    tracker.finish({"cl": {"forgetting": math.nan}})
    assert lines(tmp_path) == [{"event": "round", "loss": None, "a": [None, {"b": None}], "c": 1.5}]
    assert read_summary(tmp_path) == {"cl": {"forgetting": None}}


def test_a_warning_after_the_end_is_kept_and_the_file_closed(tmp_path):
    tracker = JsonlTracker()
    tracker.start(tmp_path, {}, {})
    tracker.finish({"status": "completed"})
    tracker.event({"event": "warning", "message": "late"})
    assert lines(tmp_path) == [{"event": "warning", "message": "late"}]


def test_a_cut_off_line_costs_itself_only(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event":"round","round":1}\n{"event":"round","rou')
    tracker = JsonlTracker()
    tracker.start(tmp_path, {}, {})
    tracker.event({"event": "round", "round": 2})
    tracker.finish({})
    assert [event["round"] for event in read_events(tmp_path)] == [1, 2]


def test_a_resumed_run_reads_like_an_unbroken_one(tmp_path):
    events, summary = example_run(experiences=3, rounds=2)
    until_crash = [e for e in events if e.get("round", 0) <= 5]  # experience 1 ended at round 4
    again = [{**events[0], "resumed_from": 3}, *(e for e in events if e.get("round", 0) > 3)]
    for part in (until_crash, again):
        tracker = JsonlTracker()
        tracker.start(tmp_path, {}, {})
        for event in part:
            tracker.event(event)
        tracker.finish(summary)
    held = [event for event in read_events(tmp_path) if event["event"] != "start"]
    assert held == [event for event in events if event["event"] != "start"]


def test_a_fresh_run_in_an_old_directory_starts_over(tmp_path):
    for name in ("old", "new"):
        tracker = JsonlTracker()
        tracker.start(tmp_path, {}, {})
        tracker.event({"event": "start", "name": name})
        tracker.event({"event": "round", "round": 1})
        tracker.finish({})
    assert [event.get("name") for event in read_events(tmp_path)] == ["new", None]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    write_json(path, {"status": "completed"})

    def fail(_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="space"):
        write_json(path, {"status": "failed"})
    assert json.loads(path.read_text()) == {"status": "completed"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_summary_is_written_even_if_the_events_cannot_be(tmp_path):
    class Full:
        def write(self, text):
            raise OSError("No space left on device")

        flush = close = lambda self: self.write("")

    tracker = JsonlTracker()
    tracker.start(tmp_path, {}, {})
    tracker._file = Full()
    with pytest.raises(OSError, match="space"):
        tracker.finish({"status": "failed"})
    assert read_summary(tmp_path) == {"status": "failed"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(values)
def test_any_json_value_survives_but_for_what_is_not_finite(value):
    finite = jsonl._finite(value)
    assert json.loads(json.dumps(finite, allow_nan=False)) == finite
    if "nan" not in repr(value) and "inf" not in repr(value):
        assert finite == value
