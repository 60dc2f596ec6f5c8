"""A tracker in a thread of its own: writing down a round takes nothing from the next one."""

import contextlib
import os
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedlearn.tracking.tracker import Event, Tracker

MOST_WAITING = 1000
"""Events; a run that is further ahead of its tracker waits."""

PAUSE = 0.005
"""Seconds that an event waits at least, unless the run is over: the run's own thread, which shares
the interpreter with this one, is to have handed out the next round's work by then."""


class Background:
    """Passes everything on to one tracker, its events from a thread, in their order.

    `start` and `finish` run where they are called, and `finish` comes after the last event.
    """

    def __init__(self, tracker: Tracker) -> None:
        """Make one.

        Args:
            tracker: Gets everything. Its `event` must not raise: see
                `fedlearn.tracking.tracker.Trackers`.
        """
        self._tracker = tracker
        self._waiting: queue.Queue[Event | threading.Event | None] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Start the tracker."""
        self._tracker.start(run_dir, config, manifest)

    def event(self, event: Event) -> None:
        """Have the event told soon; nobody may change it any more."""
        if self._thread is None:  # only now: worker processes are forked before
            self._thread = threading.Thread(target=self._tell, name="tracker", daemon=True)
            self._thread.start()
        self._waiting.put(event)

    def settle(self) -> None:
        """Return once the tracker has been told everything so far."""
        if self._thread is not None:
            told = threading.Event()
            self._waiting.put(told)
            told.wait()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Finish the tracker, once it has been told everything."""
        try:
            if self._thread is not None:
                self._ending.set()
                self._waiting.put(None)
                self._thread.join()
                self._thread = None
        finally:  # a user who has no patience for the last events wants the summary all the same
            self._tracker.finish(summary)

    def _tell(self) -> None:
        while (event := self._waiting.get()) is not None:
            if isinstance(event, threading.Event):
                event.set()
                continue
            self._ending.wait(PAUSE)
            self._tracker.event(event)


def written_down(tracker: Tracker, path: Path) -> None:
    """Return once every event so far is on disk.

    Args:
        tracker: Gets the events, itself or in the background.
        path: Where they go, if it is there.
    """
    if isinstance(tracker, Background):
        tracker.settle()
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        os.fsync(file.fileno())
