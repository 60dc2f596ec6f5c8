"""The fan-out: no tracker ends the run or keeps the others from its events."""

from pathlib import Path

import pytest

from fedlearn.tracking.tracker import NoTracker, TrackerError, Trackers

RUN = Path("run")


class Recorder:
    def __init__(self):
        self.calls = []

    def start(self, run_dir, config, manifest):
        self.calls.append(("start", run_dir, config, manifest))

    def event(self, event):
        self.calls.append(("event", dict(event)))

    def finish(self, summary):
        self.calls.append(("finish", dict(summary)))

    @property
    def warnings(self):
        return [c[1]["message"] for c in self.calls if c[0] == "event" and "message" in c[1]]


class Broken(NoTracker):
    """Raises on the named calls."""

    def __init__(self, error, *names):
        self.error, self.names, self.events = error, names, 0

    def start(self, run_dir, config, manifest):
        self._perhaps("start")

    def event(self, event):
        self.events += 1
        self._perhaps("event")

    def finish(self, summary):
        self._perhaps("finish")

    def _perhaps(self, name):
        if name in self.names:
            raise self.error


def drive(*trackers, rounds=3):
    fan_out = Trackers(trackers)
    fan_out.start(RUN, {"seed": 1}, {"hash": "x"})
    for number in range(1, rounds + 1):
        fan_out.event({"event": "round", "round": number})
    fan_out.finish({"status": "completed"})


def test_every_tracker_gets_everything_in_order():
    first, second = Recorder(), Recorder()
    drive(first, second)
    assert [call[0] for call in first.calls] == ["start", "event", "event", "event", "finish"]
    assert first.calls == second.calls
    assert first.calls[0] == ("start", RUN, {"seed": 1}, {"hash": "x"})


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", ["start", "event", "finish"])
def test_a_broken_tracker_becomes_one_warning(name, order):
    recorder, broken = Recorder(), Broken(OSError("disk\n full"), name)
    drive(*[(broken, recorder), (recorder, broken)][order])
    assert recorder.warnings == ["Broken failed, the run goes on: OSError: disk full"]
    assert [c for c in recorder.calls if c[0] == "event" and c[1]["event"] == "round"] == [
        ("event", {"event": "round", "round": number}) for number in (1, 2, 3)
    ]
    assert ("finish", {"status": "completed"}) in recorder.calls
    assert broken.events == 3, "a tracker that failed once still gets what follows"


def test_no_warning_reaches_a_tracker_before_its_start():
    recorder = Recorder()
    drive(Broken(ValueError("no"), "start"), recorder)
    assert recorder.calls[0][0] == "start"


def test_what_a_tracker_has_to_say_is_passed_on_word_for_word_and_once():
    recorder = Recorder()
    drive(Broken(TrackerError("W&B is offline"), "event"), recorder)
    assert recorder.warnings == ["W&B is offline"]


def test_two_broken_trackers_do_not_warn_each_other_for_ever():
    recorder = Recorder()
    drive(Broken(ValueError("a"), "event"), Broken(ValueError("b"), "event"), recorder)
    assert sorted(recorder.warnings) == [
        "Broken failed, the run goes on: ValueError: a",
        "Broken failed, the run goes on: ValueError: b",
    ]


def test_a_lone_broken_tracker_is_logged(caplog):
    drive(Broken(ValueError("a"), "event"))
    assert [record.getMessage() for record in caplog.records] == [
        "Broken failed, the run goes on: ValueError: a"
    ]


def test_ctrl_c_in_one_finish_still_finishes_the_others():
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        drive(Broken(KeyboardInterrupt(), "finish"), recorder)
    assert recorder.calls[-1][0] == "finish"


def test_ctrl_c_during_an_event_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        drive(Broken(KeyboardInterrupt(), "event"))


def test_trackers_add_to_the_summary():
    class Online(NoTracker):
        info = {"wandb": {"mode": "online"}}  # noqa: RUF012

    recorder = Recorder()
    drive(recorder, Online())
    assert recorder.calls[-1] == (
        "finish",
        {"status": "completed", "wandb": {"mode": "online"}},
    )
