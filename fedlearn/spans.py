"""Spans: named stretches of time, for whoever asks where a run's time goes.

::

    with span("aggregate"):
        ...
    with span("turn", client=3):  # arguments are shown beside the span
        ...

Outside `recording` a span costs about what `contextlib.nullcontext` does and leaves no trace;
inside, about a microsecond, and it ends up as a plain tuple, `Span`. Spans nest within their
thread, and a span's *own* time is its duration without that of the spans right inside it; it is
recorded however its block ends. A process forked inside `recording` records too, from nothing on:
it sends what `drain` returns to its parent, which takes it in by `absorb`. Times are those of
`time.perf_counter_ns`, one clock for all processes of a machine.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from time import perf_counter_ns
from typing import Protocol

Arguments = dict[str, int | str]

Span = tuple[tuple[str, ...], int, int, int, int, int, Arguments]
"""Path (the names of the spans around it in its thread, then its own), start, duration and own time
in nanoseconds, process id, thread (`threading.get_ident`), arguments."""

Take = Callable[[Sequence[Span]], None]

BLOCK = 10_000
"""Spans that a recorder holds before it hands them on, where it has anywhere to hand them."""


class Stretch(Protocol):
    """What ``with`` needs of a span."""

    def __enter__(self) -> None:
        """Begin it."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """End it."""


def span(name: str, /, **arguments: int | str) -> Stretch:
    """Return a context whose block is recorded under `name` while spans are.

    Args:
        name: One of few: times are added up by name and surroundings.
        arguments: What tells this span from others of its name, e.g. ``client=3``.
    """
    return _OFF if _recorder is None else _Open(_recorder, name, arguments)


@contextmanager
def recording(take: Take | None = None) -> Iterator[None]:
    """Record the spans of this process inside.

    Args:
        take: Is handed what was recorded and absorbed in blocks of some `BLOCK` spans, and the rest
            in the end, never twice at a time; without it, all is kept for `drain`, which must be
            called before the end.

    Raises:
        RuntimeError: Spans are recorded already.
    """
    global _recorder
    if _recorder is not None:
        raise RuntimeError("spans are recorded already; a process records one run at a time")
    _start_anew_in_forks()
    recorder = _recorder = _Recorder(take)
    try:
        yield
    finally:
        _recorder = None
        recorder.end_open()
        recorder.hand_on()


def is_recording() -> bool:
    """Return whether spans are recorded: a process made by other means than a fork has to know."""
    return _recorder is not None


def drain() -> list[Span]:
    """Return the spans recorded and absorbed since last asked, in the order in which they ended."""
    return [] if _recorder is None else _recorder.drain()


def absorb(spans: Iterable[Span]) -> None:
    """Take in what another process's `drain` returned; where nothing is recorded, nothing."""
    if _recorder is not None:
        _recorder.spans.extend(spans)
        _recorder.hand_on_blocks()


class _Off:
    """The span of a process that does not record."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        pass


class _Thread(threading.local):
    """What a recorder knows of a thread: who it is, and the span that it is in."""

    def __init__(self) -> None:
        self.ident = threading.get_ident()
        self.innermost: _Open | None = None


class _Recorder:
    """The spans of one process that have ended."""

    def __init__(self, take: Take | None) -> None:
        self.spans: list[Span] = []  # one list throughout: threads append to it without a lock
        self.process = os.getpid()
        self.thread = _Thread()
        self._take = take
        self._lock = threading.Lock()

    def end_open(self, outermost: "_Open | None" = None) -> None:
        """End the spans that this thread is in, up to `outermost`.

        More than one if Ctrl-C came between the end of a block and that of its span.
        """
        end = perf_counter_ns()
        while (innermost := self.thread.innermost) is not None:
            innermost.end(end)
            if innermost is outermost:
                break

    def drain(self) -> list[Span]:
        with self._lock:
            count = len(self.spans)
            drained = self.spans[:count]
            del self.spans[:count]
            return drained

    def hand_on_blocks(self) -> None:
        if len(self.spans) >= BLOCK:
            self.hand_on()

    def hand_on(self) -> None:
        if self._take is not None:
            spans = self.drain()
            with self._lock:
                self._take(spans)


class _Open:
    """A span that is being recorded."""

    __slots__ = ("_arguments", "_around", "_inside_ns", "_name", "_path", "_recorder", "_start")

    def __init__(self, recorder: _Recorder, name: str, arguments: Arguments) -> None:
        self._recorder = recorder
        self._name = name
        self._arguments = arguments

    def __enter__(self) -> None:
        thread = self._recorder.thread
        self._around = around = thread.innermost
        self._path: tuple[str, ...] = (*around._path, self._name) if around else (self._name,)
        self._inside_ns = 0
        self._start = perf_counter_ns()
        thread.innermost = self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._recorder.end_open(self)
        self._recorder.hand_on_blocks()

    def end(self, now: int) -> None:
        recorder, around = self._recorder, self._around
        thread = recorder.thread
        duration = now - self._start
        own = duration - self._inside_ns
        # From here to the end no Python function begins: Ctrl-C cannot come in between.
        thread.innermost = around
        if around is not None:
            around._inside_ns += duration
        recorder.spans.append(
            (
                self._path,
                self._start,
                duration,
                own,
                recorder.process,
                thread.ident,
                self._arguments,
            )
        )


_OFF = _Off()
_recorder: _Recorder | None = None


@cache
def _start_anew_in_forks() -> None:
    """Have every process forked while spans are recorded begin with none, and in none."""
    os.register_at_fork(after_in_child=_start_anew)


def _start_anew() -> None:
    global _recorder
    if _recorder is not None:
        _recorder = _Recorder(None)
