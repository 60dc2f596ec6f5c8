"""A tracker in a thread of its own gets everything, in order, and its end comes last."""

import threading
import time

from fedlearn.tracking.background import MOST_WAITING, Background


class Slow:
    def __init__(self, seconds=0.0):
        self.seconds, self.got, self.threads = seconds, [], set()

    def start(self, run_dir, config, manifest):
        self.got.append(("start", run_dir, config, manifest))

    def event(self, event):
        time.sleep(self.seconds)
        self.threads.add(threading.current_thread())
        self.got.append(event)

    def finish(self, summary):
        self.got.append(("finish", summary))


def test_everything_arrives_in_order_and_the_end_last(tmp_path):
    slow = Slow(0.001)
    background = Background(slow)
    background.start(tmp_path, {"a": 1}, {"b": 2})
    events = [{"event": "round", "round": number} for number in range(50)]
    for event in events:
        background.event(event)
    background.finish({"status": "completed"})
    end = ("finish", {"status": "completed"})
    assert slow.got == [("start", tmp_path, {"a": 1}, {"b": 2}), *events, end]
    (thread,) = slow.threads
    assert thread is not threading.main_thread()
    assert not thread.is_alive()


def test_the_run_does_not_wait_for_its_tracker(tmp_path):
    slow = Slow()
    holds = threading.Event()
    slow.event = lambda event: (holds.wait(10), slow.got.append(event))
    background = Background(slow)
    for number in range(100):
        background.event({"round": number})
    assert slow.got == []  # the first is still being told
    holds.set()
    background.finish({})
    assert len(slow.got) == 101


def test_a_run_that_is_too_far_ahead_waits(tmp_path):
    told = []
    holds = threading.Event()
    slow = Slow()
    slow.event = lambda event: (holds.wait(10), told.append(event))
    background = Background(slow)
    ahead = threading.Thread(
        target=lambda: [background.event({"round": n}) for n in range(MOST_WAITING + 10)]
    )
    ahead.start()
    ahead.join(0.5)
    assert ahead.is_alive()
    holds.set()
    ahead.join(10)
    background.finish({})
    assert len(told) == MOST_WAITING + 10


def test_no_event_no_thread():
    slow = Slow()
    before = threading.active_count()
    background = Background(slow)
    background.finish({"status": "failed"})
    assert slow.got == [("finish", {"status": "failed"})]
    assert threading.active_count() == before
