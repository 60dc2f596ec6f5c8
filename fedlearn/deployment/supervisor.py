"""The supervisor: starts a machine's processes, starts again what ends, and ends all of them."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

SHORTEST_S, LONGEST_S = 1.0, 10.0
"""Seconds before a process that ended is started again: doubled while it keeps ending early."""

STEADY_S = 60.0
"""A process that ran so long was well."""

GRACE_S = 10.0
"""Seconds that processes have to end by themselves."""


class GivenUpError(RuntimeError):
    """A process cannot run; the message is one line for the user."""


Why = Callable[[str, float], str | None]
"""Why there is no use in another start of a process, in one line, or None."""


@dataclass
class Child:
    """A process to keep running.

    Attributes:
        name: What messages call it.
        command: The program and its arguments.
        log: File that its output is added to.
        environment: Variables beside those of this process.
        why: Given what it has printed since it was started and the seconds since it first failed,
            a line that says why there is no use in another start; None to start it again.
    """

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    why: Why = lambda *_: None

    process: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    next_start: float = 0.0
    pause: float = SHORTEST_S
    failing_since: float | None = None
    offset: int = 0

    def start(self) -> None:
        """Start it.

        Raises:
            GivenUpError: There is no such program, or no place for its log.
        """
        try:
            self._start()
        except (FileNotFoundError, PermissionError) as error:
            raise GivenUpError(
                f"{self.name} cannot be started: {error.filename}: {error.strerror}"
            ) from error

    def _start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.offset = log.tell()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        self.started = time.monotonic()

    def printed(self) -> str:
        """Return what it has printed since it was started."""
        with self.log.open("rb") as log:
            log.seek(self.offset)
            return log.read(100_000).decode(errors="replace")


def supervise(
    children: Sequence[Child],
    say: Callable[[str], None],
    once: Callable[[], bool] = lambda: True,
) -> None:
    """Keep processes running until this one is told to end, then end them.

    Args:
        children: Started in their order.
        say: Tells the user a line.
        once: Called again and again until it returns True, as long as the processes run.

    Raises:
        GivenUpError: One of them cannot run.
        KeyboardInterrupt: Ctrl-C.
    """
    before = signal.signal(signal.SIGTERM, _interrupt)
    pending = True
    try:
        for child in children:
            child.start()
        while True:
            for child in children:
                _look_after(child, say)
            if pending:
                pending = not once()
            time.sleep(0.2)
    finally:
        try:
            end(children)
        finally:
            signal.signal(signal.SIGTERM, before)


def end(children: Sequence[Child]) -> None:
    """End processes, the last one first; by force those that take too long.

    Whoever asks once more, by Ctrl-C or SIGTERM, has them ended by force at once.
    """
    running = [child.process for child in reversed(children) if child.process is not None]
    try:
        for process in running:
            process.terminate()
        deadline = time.monotonic() + GRACE_S
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
    finally:
        for process in running:
            process.kill()  # does nothing to one that has ended
            process.wait()


def _look_after(child: Child, say: Callable[[str], None]) -> None:
    now = time.monotonic()
    process = child.process
    if process is None:
        if now >= child.next_start:
            child.start()
        return
    if process.poll() is None:
        if now - child.started > STEADY_S:
            child.pause, child.failing_since = SHORTEST_S, None
        return
    if now - child.started > STEADY_S:
        child.pause, child.failing_since = SHORTEST_S, None
    child.failing_since = child.failing_since or now
    if reason := child.why(child.printed(), now - child.failing_since):
        raise GivenUpError(reason)
    say(f"{child.name} ended ({_ending(process.returncode)}); starts again; see {child.log}")
    child.process, child.next_start = None, now + child.pause
    child.pause = min(2 * child.pause, LONGEST_S)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is gone, however that went."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
