"""The run's files: ``metrics.jsonl``, ``summary.json``, ``manifest.json`` and ``env.json``.

Always written, whatever else tracks a run, so that reviewing one depends on nothing but JSON.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from fedlearn.columns import ClientColumns
from fedlearn.tracking.environment import describe_environment
from fedlearn.tracking.tracker import Event

METRICS, SUMMARY, MANIFEST, ENVIRONMENT = (
    "metrics.jsonl",
    "summary.json",
    "manifest.json",
    "env.json",
)


class JsonlTracker:
    """Writes every event as one line, at once, and the JSON files around them.

    The events are those of `fedlearn.tracking.tracker`; a number that is not finite is written as
    null.
    """

    def __init__(self, resumed_from: int | None = None) -> None:
        """Make a tracker.

        Args:
            resumed_from: The last round that still holds of the run that is in the directory; None
                for a fresh run.
        """
        self._resumed_from = resumed_from
        self._path: Path | None = None
        self._file: IO[str] | None = None
        self._finished = False

    def start(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        manifest: Mapping[str, Any],
    ) -> None:
        """Write ``manifest.json`` and ``env.json``; an existing ``metrics.jsonl`` is continued.

        Of a run that is resumed, what came later goes: events, and a summary that says it ended.
        """
        self._path = run_dir / METRICS
        if self._resumed_from is not None:
            (run_dir / SUMMARY).unlink(missing_ok=True)
            cut_back(self._path, self._resumed_from)
        write_json(run_dir / MANIFEST, manifest)
        write_json(run_dir / ENVIRONMENT, describe_environment())

    def event(self, event: Event) -> None:
        """Append the event to ``metrics.jsonl``."""
        line = line_of(event)
        if self._file is None:
            assert self._path is not None, "start() comes before any event"
            self._file = _open_for_appending(self._path)
        self._file.write(line + "\n")
        self._file.flush()
        if self._finished:  # a late warning
            self._close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        assert self._path is not None, "start() comes before finish()"
        self._finished = True
        try:
            self._close()
        finally:
            write_json(self._path.parent / SUMMARY, summary)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON, so that `path` holds either the old content or all of the new.

    Numbers that are not finite become null.
    """
    text = json.dumps(_finite(value), allow_nan=False, indent=2) + "\n"
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Return a finished run's summary.

    Raises:
        FileNotFoundError: There is none: the run has not ended, or was killed.
    """
    summary: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    return summary


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Return the events of a run that hold, in order.

    A run that was resumed from round r repeats what came after it, so the rounds and experiences of
    the earlier attempt that came later than r are left out, and everything before a fresh start is.
    A line that a crash has cut off is left out too.

    Raises:
        FileNotFoundError: The run has no ``metrics.jsonl``.
    """
    events: list[dict[str, Any]] = []
    with (run_dir / METRICS).open(encoding="utf-8") as file:
        for line in file:
            try:
                event: dict[str, Any] = json.loads(line)
            except json.JSONDecodeError:
                continue
            if event.get("event") == "start":
                last = event.get("resumed_from")
                events = [] if last is None else [e for e in events if e.get("round", 0) <= last]
            events.append(event)
    return events


def cut_back(path: Path, last: int) -> None:
    """Cut a run's events off before the first one of a round later than `last`.

    Args:
        path: Of ``metrics.jsonl``.
        last: The last round that holds.

    Raises:
        FileNotFoundError: There is no such file.
    """
    end = at = 0
    whole = True
    with path.open("rb+") as file:
        for line in file:
            at += len(line)
            try:
                event: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == "start" and event.get("resumed_from") is None:
                whole = True  # whatever came before was another run's
            whole = whole and event.get("round", 0) <= last
            end = at if whole else end
        file.truncate(end)


def _open_for_appending(path: Path) -> IO[str]:
    """Open a file of lines to continue it on a line of its own, even after a cut-off one."""
    file = path.open("a+b")
    try:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
    finally:
        file.close()
    return path.open("a", encoding="utf-8")


def line_of(event: Event) -> str:
    """Return an event as JSON on one line."""
    clients = event.get("clients")
    if not isinstance(clients, ClientColumns):
        return json.dumps(_finite(event), allow_nan=False, separators=(",", ":"))
    others = {key: value for key, value in event.items() if key != "clients"}
    begun = json.dumps(_finite(others), allow_nan=False, separators=(",", ":"))
    return f'{begun[:-1]},"clients":{clients.to_json()}}}'


def _finite(value: Any) -> Any:
    """Return `value` with every number that JSON cannot hold as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
