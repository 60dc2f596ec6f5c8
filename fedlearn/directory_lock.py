"""One process at a time in a run's directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class InUseError(RuntimeError):
    """Another process is writing into the run's directory; the message is one line."""


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Keep other processes from writing into a run's directory, where its file system can.

    Raises:
        InUseError: Another one does already.
    """
    descriptor = os.open(run_dir, os.O_RDONLY)  # closed, and so let go, whatever ends the process
    try:
        with suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InUseError(f"{run_dir}: another process is running it") from error
        yield
    finally:
        os.close(descriptor)
