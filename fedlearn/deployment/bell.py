"""The bell: how the server's app tells the gate, another process, that it has sent messages."""

from contextlib import suppress
from pathlib import Path


class Bell:
    """A file that is touched."""

    def __init__(self, path: Path) -> None:
        """Make one; the file need not exist."""
        self._path = path

    def ring(self) -> None:
        """Say that messages were sent."""
        with suppress(OSError):  # a round is slower without it, and nothing else
            self._path.touch()

    def rung(self) -> int:
        """Return a number that changes when it is rung."""
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0
