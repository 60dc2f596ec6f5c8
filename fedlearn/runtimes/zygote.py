"""The zygote: a process without threads that starts workers by forking itself.

It is made early, before the main process has threads, so that a worker that died can be replaced
by one that inherits what the first ones did. It also is who buries them: however the main process
ends, the zygote notices, kills the workers and goes.
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

_ORDER = struct.Struct("<cqq")
_ANSWER = struct.Struct("<q")
_START, _BURY = b"S", b"B"
_PR_SET_PDEATHSIG = 1

Work = Callable[[socket.socket, int, int], Any]
"""A worker's life, given its connection, its place among the workers and its serial number."""


class Zygote:
    """The main process's end of the zygote."""

    def __init__(self, connection: socket.socket, wait: Callable[[], Any]) -> None:
        self._connection = connection
        self._wait = wait

    @classmethod
    def fork(cls, work: Work) -> "Zygote":
        """Return a zygote that inherits everything that this process has now."""
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        collecting = gc.isenabled()
        gc.disable()
        gc.freeze()  # or the collector would write to, and so copy, every page that is shared
        main = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # libraries' idle threads
                pid = os.fork()
            if not pid:
                with contextlib.suppress(BaseException):
                    ours.close()
                    serve(theirs, work, main)
                os._exit(0)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            gc.unfreeze()
            if collecting:
                gc.enable()
        theirs.close()
        return cls(ours, lambda: os.waitpid(pid, 0))

    @classmethod
    def spawn(cls, module: str, arguments: Sequence[str], fds: Sequence[int]) -> "Zygote":
        """Return a zygote that is a new Python process.

        Args:
            module: Run as ``python -m``; calls `serve` on the connection that it inherits.
            arguments: Of the module, after the connection's descriptor and this process's id.
            fds: What it inherits.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid())]
            process = subprocess.Popen(
                [*command, *arguments],
                pass_fds=[theirs.fileno(), *fds],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return cls(ours, process.wait)

    def start(self, place: int, serial: int) -> tuple[socket.socket, int]:
        """Start a worker; return the connection to it and its process id.

        Raises:
            RuntimeError: The zygote is no more.
        """
        ours, theirs = socket.socketpair()
        with theirs, self._checked():
            socket.send_fds(
                self._connection, [_ORDER.pack(_START, place, serial)], [theirs.fileno()]
            )
            return ours, self._answer()

    def bury(self, pid: int) -> int:
        """End a worker and return its exit status as `os.waitpid` gives it.

        Raises:
            RuntimeError: The zygote is no more.
        """
        with self._checked():
            self._connection.sendall(_ORDER.pack(_BURY, pid, 0))
            return self._answer()

    def close(self) -> None:
        """End the zygote and all its workers; wait until they have gone."""
        self._connection.close()
        with contextlib.suppress(ChildProcessError):  # where a program has children not waited for
            self._wait()

    def _answer(self) -> int:
        data = self._connection.recv(_ANSWER.size, socket.MSG_WAITALL)
        if len(data) < _ANSWER.size:
            raise EOFError
        return int(_ANSWER.unpack(data)[0])

    @contextlib.contextmanager
    def _checked(self) -> Any:
        try:
            yield
        except (OSError, EOFError) as error:
            raise RuntimeError("the process that starts workers has ended") from error


def serve(connection: socket.socket, work: Work, main: int) -> None:
    """Start and bury workers until the main process closes its end or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process to act on
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # The kernel also sends this when only the thread that forked us has ended.
    signal.signal(signal.SIGHUP, lambda *_: None if os.getppid() == main else sys.exit(0))
    die_with_parent(signal.SIGHUP, main)
    pids: set[int] = set()
    try:
        while True:
            data, fds, *_ = socket.recv_fds(connection, _ORDER.size, 1)
            if len(data) < _ORDER.size:
                return
            order, number, serial = _ORDER.unpack(data)
            if order == _START:
                pid = _fork_worker(connection, socket.socket(fileno=fds[0]), work, number, serial)
                pids.add(pid)
                answer = pid
            else:
                _kill(number)  # it has closed its connection: an exit status, if any, is set
                answer = os.waitpid(number, 0)[1]
                pids.discard(number)
            connection.sendall(_ANSWER.pack(answer))
    finally:
        for pid in pids:
            _kill(pid)
        for pid in pids:
            os.waitpid(pid, 0)


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Have the kernel send this signal when the parent ends, where it can; go if it has."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:
        os._exit(0)


def _fork_worker(
    zygote: socket.socket, connection: socket.socket, work: Work, place: int, serial: int
) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        connection.close()
        return pid
    status = 1
    try:
        die_with_parent(signal.SIGKILL, parent)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        zygote.close()
        work(connection, place, serial)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
