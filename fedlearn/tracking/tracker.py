"""Trackers: what consumes the events of a run.

The engine tells what happens as *events*: plain dicts of JSON values with the key ``event``. They
are the lines of ``metrics.jsonl``, so their keys are part of the interface. Accuracies and shares
are in [0, 1], times in seconds, sizes in bytes; rounds count from 1, experiences and clients from
0; null stands for what was not measured. T is the number of experiences.

``start``, once, first
    ``name`` of the run; ``rounds``, ``rounds_per_experience``, ``experiences`` (T), ``clients``,
    ``cohort_size`` (clients sampled a round); ``parameters`` of the model; ``seed``;
    ``manifest_hash`` of the protocol; ``score``, what accuracies are called: ``accuracy``, or
    ``R²`` of a regression (`fedlearn.evaluation`); ``device``, or several parted by commas;
    ``executor``, what executes clients (its name as ``executor``, ``workers``, and ``formulation``,
    ``why`` and ``chunk`` where cohorts are trained as one program); ``scenario``, ``continual``,
    ``aggregation`` (the chosen options). ``resumed_from``: the last round that still holds if the
    run was resumed, so that later events of an earlier attempt are void; absent or null for a fresh
    run.
``round``, after every round
    ``round``; ``experience``, how many experiences all clients have behind them.
    ``server``: ``accuracy`` and ``loss`` (mean over the clients of the mean over the experiences
    that each has entered), ``per_experience`` [T] (mean over the clients), all on the global test
    sets; or {} where this round was not evaluated.
    ``clients``: by client id, ``loss`` (training), ``num_examples``, ``steps``, ``replayed``
    (samples from memory), ``state_bytes`` (tensors kept for the next turn), and what else the
    continual strategy reports, such as ``grad_norm`` and ``grad_norm_max`` (see
    ``local.gradient_metrics``); those whose update was used.
    ``idle``: ids of clients that were sampled and had nothing to learn.
    ``dropped``: ids of clients whose reply was lost on purpose (`fedlearn.faults`).
    ``diverged``, ``quarantined``, ``failed``: [{``client``, ``reason``}] whose loss was lost, whose
    reply was refused, or never came.
    ``comm``: ``up_bytes``, ``down_bytes`` of this round.
    ``time``: ``round_s``, ``train_s``, ``evaluate_s``.
    ``aggregated``: what the aggregation reports.
``experience``, once the last client has finished it by its clock
    ``experience``, ``round``; ``accuracy`` [T], a row of a[i, j] (see `fedlearn.scoreboard` for
    what it means where clients' streams differ); ``cl``: the continual metrics so
    far (`fedlearn.metrics.continual_summary`); ``client``: the spread over the clients
    (`fedlearn.metrics.client_summary`), or {}; ``client_accuracy``: by client id, [T] on its own
    held-out samples.
``warning``, at any time
    ``message``, one line.

The *summary* of a run becomes ``summary.json``: ``status`` (``completed``, ``interrupted`` or
``failed``), ``name``, ``digest`` (sha256 of the final weights), ``manifest_hash``, ``seed``,
``rounds`` (completed), ``clients``, ``experiences``, ``score``, ``accuracy_matrix`` [T][T],
``baseline`` [T] (of the initial model), ``cl``, ``client``, ``comm`` {``up_bytes``,
``down_bytes``}, ``time`` {``total_s``, ``train_s``, ``round_s_median``}, ``work`` {``steps``,
``samples_replayed``}, ``turns`` {``accepted``, ``idle``, ``dropped``, ``diverged``,
``quarantined``, ``failed``} (how many ended so), ``storage`` {``client_state_bytes_max``,
``client_state_bytes_mean``} (over the clients, each after its last turn), ``wandb`` {``mode``,
``id``, ``dir``}.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

_log = logging.getLogger(__name__)

Event = Mapping[str, Any]


class TrackerError(Exception):
    """What a tracker has to tell the user, as one line; the tracker itself has coped with it."""


class Tracker(Protocol):
    """Consumes the events of one run.

    A tracker may raise: `Trackers` turns that into a warning and goes on.
    """

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Get ready, before any event.

        Args:
            run_dir: Where the run's files go; exists.
            config: The composed configuration.
            manifest: The protocol, with its ``hash`` (see `fedlearn.types.Scenario.manifest`).
        """
        ...

    def event(self, event: Event) -> None:
        """Take in one event."""
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Wrap up; called once, whatever the run's ``status``."""
        ...


class NoTracker:
    """Tracks nothing: the run is in its files and on the terminal only."""

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Do nothing."""

    def event(self, event: Event) -> None:
        """Do nothing."""

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Do nothing."""


class Trackers:
    """Several trackers as one, none of which can end the run or keep the others from its events.

    A tracker's exception becomes one ``warning`` event for the others; the tracker still gets what
    follows. The order counts at the end: each is finished before the next.
    """

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        """Make a fan-out.

        Args:
            trackers: In the order in which they get each event.
        """
        self._trackers = list(trackers)
        self._told: set[tuple[int, str]] = set()
        self._pending: list[tuple[Tracker, str]] = []

    @property
    def info(self) -> dict[str, Any]:
        """What the trackers add to the summary, e.g. ``{"wandb": {"mode": "offline", ...}}``."""
        merged: dict[str, Any] = {}
        for tracker in self._trackers:
            merged.update(getattr(tracker, "info", {}))
        return merged

    def start(self, run_dir: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Start every tracker, and only then tell of those that could not."""
        for tracker in self._trackers:
            self._call(tracker, partial(tracker.start, run_dir, config, manifest))
        self._tell()

    def event(self, event: Event) -> None:
        """Give the event to every tracker."""
        for tracker in self._trackers:
            self._call(tracker, partial(tracker.event, event))
        self._tell()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Finish every tracker, with `info` added to the summary.

        Even if the user interrupts one of them: the others are finished before that goes on.
        """
        interrupt: BaseException | None = None
        full = {**summary, **self.info}
        for tracker in self._trackers:
            try:
                self._call(tracker, partial(tracker.finish, full))
                self._tell()
            except (KeyboardInterrupt, SystemExit) as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def _call(self, tracker: Tracker, call: Callable[[], None]) -> None:
        try:
            call()
        except TrackerError as error:
            self._remember(tracker, str(error), str(error))
        except Exception as error:
            name = type(tracker).__name__
            what = " ".join(f"{type(error).__name__}: {error}".split())
            self._remember(tracker, "", f"{name} failed, the run goes on: {what}")

    def _remember(self, tracker: Tracker, key: str, message: str) -> None:
        if (id(tracker), key) not in self._told:
            self._told.add((id(tracker), key))
            self._pending.append((tracker, message))

    def _tell(self) -> None:
        while self._pending:
            source, message = self._pending.pop(0)
            others = [tracker for tracker in self._trackers if tracker is not source]
            if not others:
                _log.warning("%s", message)
            warning = {"event": "warning", "message": message}
            for tracker in others:
                self._call(tracker, partial(tracker.event, warning))
