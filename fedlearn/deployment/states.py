"""A node's continual state on its own disk: what a client carries from round to round of a run.

Flower keeps it in the SuperNode's memory, and loses it with the SuperNode. Here every turn's state
is on disk before its reply leaves, staged beside the committed one (see `fedlearn.client_state`),
so whatever dies, the node goes on from where the server last saw it.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedlearn import records
from fedlearn.client_state import read_back, written
from fedlearn.deployment.packing import pack_arrays, unpack_arrays

KEPT_RUNS = 3
"""Runs whose states stay on disk: the latest ones."""

STATES, STATE = "states", "state"
"""The folder of a node's part that they are in, and the file in a run's folder in it."""

_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9-]{0,99}")

_log = logging.getLogger(__name__)


class StateError(RuntimeError):
    """A state cannot be read; going on without it would be a lie."""


class StateFiles:
    """States of one client, one file a run.

    A file is the sha256 of what follows, a line of JSON, and all tensors as one block. It is
    replaced as a whole: a node that dies while it writes has the file of the turn before.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder of states.

        Args:
            folder: Made when the first state is written.
        """
        self._folder = folder
        self._read: tuple[str, RecordDict] | None = None

    def state(self, run: str) -> RecordDict:
        """Return the state in a run, empty before any turn; `save` what was changed in it.

        Raises:
            StateError: The file is damaged.
        """
        if self._read is None or self._read[0] != run:
            path = self._path(run)
            self._read = run, _read(path) if path.exists() else RecordDict()
        return self._read[1]

    def forget(self) -> None:
        """Drop what is in memory: the next `state` is what is on disk."""
        self._read = None

    def save(self, run: str) -> None:
        """Have the state of a run on disk, all of it or, should this be cut off, what was there."""
        path = self._path(run)
        if not path.exists():
            path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            _sync(self._folder)
            self._tidy(path.parent)
        draft = path.with_suffix(".draft")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for piece in _pieces(self.state(run)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync(path.parent)

    def _path(self, run: str) -> Path:
        if not _NAME.fullmatch(run):  # it becomes a path
            raise StateError(f"run {run[:100]!r}: is no name of a run")
        return self._folder / run / STATE

    def _tidy(self, new: Path) -> None:
        """Remove the states of all but the latest runs; `new` is one, whatever the clock says."""
        others = [path for path in self._folder.iterdir() if path != new]
        others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for old in others[KEPT_RUNS - 1 :]:
            shutil.rmtree(old, ignore_errors=True)


def _pieces(state: RecordDict) -> tuple[bytes, bytes, bytes]:
    layout, data = pack_arrays(records.of_kind(state, ArrayRecord))
    header = {
        "layout": layout,
        "values": {
            key: {name: written(value) for name, value in record.items()}
            for key, record in records.of_kind(state, ConfigRecord).items()
        },
    }
    line = json.dumps(header).encode() + b"\n"
    return _digest(line, data) + b"\n", line, data


def _digest(*pieces: bytes) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest().encode()


def _read(path: Path) -> RecordDict:
    digest, _, rest = path.read_bytes().partition(b"\n")
    try:
        if _digest(rest) != digest:
            raise ValueError("its checksum is wrong")
        line, _, data = rest.partition(b"\n")
        header: dict[str, Any] = json.loads(line)
        state = RecordDict({**unpack_arrays(header["layout"], [data])})
        for key, values in header["values"].items():
            state[key] = ConfigRecord({name: read_back(each) for name, each in values.items()})
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path}: this client's state is damaged: {error}") from error
    return state


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
