"""``profile=true``: where a run's time went, as a table, ``profile.json`` and ``trace.json``.

Made of the spans (`fedlearn.spans`) of the run's own process and of those that its workers send to
it. What does its work in a thread or process beside the run's own is a *worker* here.

``profile.json``
    ``wall_s``, the run's seconds; ``spans``, how many there were; ``spans_left_out`` of the trace;
    ``server`` and ``workers``: ``count`` of them, ``phases``, and ``unaccounted_s``, the time that
    no span covers, and its ``unaccounted_share``. A phase is a span in its surroundings: ``path``
    (its name after those of the spans around it), ``count``, ``total_s``, ``mean_ms``, ``self_s``
    (without the spans right inside it), ``share``: ``total_s`` of the wall time of all ``count``.
    A worker's wall time is the run's: before it starts, and while it waits, it is unaccounted for.
``trace.json``
    The Chrome trace event format, for https://ui.perfetto.dev or chrome://tracing: a track for the
    server and one for each worker; microseconds since the run began.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fedlearn.spans import Span, recording
from fedlearn.tracking.jsonl import write_json
from fedlearn.tracking.words import counted, human_seconds, percent

TRACE, PROFILE = "trace.json", "profile.json"

KEPT = 200_000
"""Single spans kept for the trace, some 70 MB; totals take in all, however many there are."""

Track = tuple[int, int]
"""The process id and the thread of spans that nest."""

_log = logging.getLogger(__name__)


@contextmanager
def profiled(run_dir: Path) -> Iterator[None]:
    """Record the spans inside; then write the run's profile into `run_dir` and print the table.

    However the block ends. Files that cannot be written cost a warning, not the run.
    """
    profile = Profile(time.perf_counter_ns())
    try:
        with recording(profile.take):
            yield
    finally:
        numbers = profile.numbers(time.perf_counter_ns())
        left_out = numbers["spans_left_out"]
        last = f"profile {PROFILE} and {TRACE}, for ui.perfetto.dev or chrome://tracing"
        if left_out:
            last += f"; the last {counted(left_out, 'span')} are not in the trace"
        try:
            write_json(run_dir / PROFILE, numbers)
            profile.write_trace(run_dir / TRACE)
        except OSError as error:
            last = f"warning: the profile is not written: {error}"
            _log.warning("the profile is not written: %s", error)
        console = Console(highlight=False)
        console.print(profile_table(numbers))
        console.print(last, soft_wrap=True, markup=False)


@dataclass
class _Total:
    """What the spans of one path come to; times in nanoseconds."""

    first: int
    count: int = 0
    total: int = 0
    own: int = 0


class Profile:
    """Adds up spans, and keeps the first of them one by one."""

    def __init__(self, began: int, kept: int = KEPT) -> None:
        """Begin a profile of the run that this thread is about to do.

        Args:
            began: When, by `time.perf_counter_ns`.
            kept: How many single spans to keep for the trace.
        """
        self._server: Track = (os.getpid(), threading.get_ident())
        self._began = began
        self._totals: dict[Track, dict[tuple[str, ...], _Total]] = {self._server: {}}
        self._kept = kept
        self._spans: list[Span] = []
        self._count = 0

    def take(self, spans: Sequence[Span]) -> None:
        """Take in spans, of any process."""
        self._count += len(spans)
        self._spans += spans[: max(0, self._kept - len(self._spans))]
        for path, start, duration, own, process, thread, _ in spans:
            totals = self._totals.setdefault((process, thread), {})
            total = totals.get(path)
            if total is None:
                total = totals[path] = _Total(start)
            total.first = min(total.first, start)
            total.count += 1
            total.total += duration
            total.own += own

    def numbers(self, ended: int) -> dict[str, Any]:
        """Return the content of ``profile.json`` for a run that ended at `ended`."""
        wall = ended - self._began
        workers = [totals for track, totals in self._totals.items() if track != self._server]
        return {
            "wall_s": wall / 1e9,
            "spans": self._count,
            "spans_left_out": self._count - len(self._spans),
            "server": _section([self._totals[self._server]], wall),
            "workers": _section(workers, wall),
        }

    def write_trace(self, path: Path) -> None:
        """Write ``trace.json``, an event a line."""
        tracks = {track: number for number, track in enumerate(self._totals)}
        left_out = self._count - len(self._spans)
        with path.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms",')
            file.write(f'"otherData":{{"spans_left_out":{left_out}}},"traceEvents":[\n')
            file.write(",\n".join(_json(event) for event in self._events(tracks)))
            file.write("\n]}\n")

    def _events(self, tracks: Mapping[Track, int]) -> Iterator[dict[str, Any]]:
        named = set()
        for (process, _), number in tracks.items():
            label = f"worker {number}" if number else "server"
            place = {"ph": "M", "pid": process, "tid": number}
            if process not in named:
                named.add(process)
                yield {**place, "name": "process_name", "args": {"name": label}}
                yield {**place, "name": "process_sort_index", "args": {"sort_index": number}}
            yield {**place, "name": "thread_name", "args": {"name": label}}
        # They come in the order in which they ended; viewers want what is around others first.
        for path, start, duration, _, process, thread, arguments in sorted(
            self._spans, key=lambda span: (span[1], -span[2], len(span[0]))
        ):
            yield {
                "name": path[-1],
                "ph": "X",
                "ts": (start - self._began) / 1000,
                "dur": duration / 1000,
                "pid": process,
                "tid": tracks[process, thread],
                "args": arguments,
            }


def _json(event: Mapping[str, Any]) -> str:
    return json.dumps(event, allow_nan=False, separators=(",", ":"))


def _section(tracks: Sequence[Mapping[tuple[str, ...], _Total]], wall: int) -> dict[str, Any]:
    """Return the phases of tracks that go on for `wall` nanoseconds each.

    In the order of their first start, each before the phases inside it.
    """
    merged: dict[tuple[str, ...], _Total] = {}
    for totals in tracks:
        for path, each in totals.items():
            total = merged.setdefault(path, _Total(each.first))
            total.first = min(total.first, each.first)
            total.count += each.count
            total.total += each.total
            total.own += each.own

    def place(path: tuple[str, ...]) -> list[tuple[int, str]]:
        ends = [path[: depth + 1] for depth in range(len(path))]
        # A span that is still open is not there, though those inside it are.
        return [(merged[end].first if end in merged else 0, end[-1]) for end in ends]

    available = wall * len(tracks)
    phases = [
        {
            "path": list(path),
            "count": merged[path].count,
            "total_s": merged[path].total / 1e9,
            "mean_ms": merged[path].total / merged[path].count / 1e6,
            "self_s": merged[path].own / 1e9,
            "share": merged[path].total / available if available else 0.0,
        }
        for path in sorted(merged, key=place)
    ]
    unaccounted = available - sum(total.own for total in merged.values())
    return {
        "count": len(tracks),
        "phases": phases,
        "unaccounted_s": unaccounted / 1e9,
        "unaccounted_share": unaccounted / available if available else 0.0,
    }


def profile_table(numbers: Mapping[str, Any]) -> Table:
    """Return the content of ``profile.json`` as a table; phases stand below what is around them."""
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"where {human_seconds(numbers['wall_s'])} went",
        title_justify="left",
        caption="share: of the wall time; self: without the phases inside",
        caption_justify="left",
    )
    table.add_column("phase", no_wrap=True)
    for name in ("total", "share", "self", "count", "mean"):
        table.add_column(name, justify="right", no_wrap=True)
    workers = numbers["workers"]["count"]
    for title, section in (
        ("server", numbers["server"]),
        (counted(workers, "worker"), numbers["workers"]),
    ):
        if not section["count"]:
            continue
        table.add_row(title, style="bold")
        for phase in section["phases"]:
            table.add_row(
                "  " * len(phase["path"]) + phase["path"][-1],
                f"{phase['total_s']:.2f} s",
                percent(phase["share"]),
                f"{phase['self_s']:.2f} s",
                f"{phase['count']:,}".replace(",", " "),
                f"{phase['mean_ms']:.3f} ms",
            )
        table.add_row(
            "  unaccounted for",
            f"{section['unaccounted_s']:.2f} s",
            percent(section["unaccounted_share"]),
            style="dim",
        )
    return table
