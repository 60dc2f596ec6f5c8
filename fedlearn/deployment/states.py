"""A node's continual state on its own disk: what a client carries from round to round of a run.

Flower keeps it in the SuperNode's memory, and loses it with the SuperNode. Here every turn's state
is on disk before its reply leaves, staged beside the committed one (see `fedlearn.client_state`),
so whatever dies, the node goes on from where the server last saw it.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedlearn import records
from fedlearn.client_state import read_back, written
from fedlearn.deployment.packing import LAYOUT, PACKED, packer, unpack

KEPT_RUNS = 3
"""Runs whose states stay on disk: the latest ones."""

STATE = "state"

_log = logging.getLogger(__name__)


class StateError(RuntimeError):
    """A state cannot be read; going on without it would be a lie."""


class StateFiles:
    """States of one client, one file a run.

    A file is a line of JSON, with the sha256 of what follows, and all tensors as one block. It is
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
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, mode=0o700)
            self._tidy()
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
        if not run.replace("-", "").isalnum():  # it becomes a path
            raise StateError(f"run {run!r}: is no name of a run")
        return self._folder / run / STATE

    def _tidy(self) -> None:
        """Remove the states of all but the latest runs."""
        runs = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in runs[:-KEPT_RUNS]:
            shutil.rmtree(old, ignore_errors=True)


def _pieces(state: RecordDict) -> tuple[bytes, bytes]:
    packed = packer()(state)
    (array,) = cast(ArrayRecord, packed[PACKED]).values()
    header = {
        "sha256": hashlib.sha256(array.data).hexdigest(),
        LAYOUT: cast(ConfigRecord, packed[LAYOUT])["layout"],
        "values": {
            key: {name: written(value) for name, value in record.items()}
            for key, record in records.of_kind(state, ConfigRecord).items()
        },
    }
    return json.dumps(header).encode() + b"\n", array.data


def _read(path: Path) -> RecordDict:
    head, _, data = path.read_bytes().partition(b"\n")
    try:
        header: dict[str, Any] = json.loads(head)
        if hashlib.sha256(data).hexdigest() != header["sha256"]:
            raise ValueError("its checksum is wrong")
        packed = RecordDict(
            {
                PACKED: ArrayRecord({PACKED: Array("uint8", (len(data),), "raw", data)}),
                LAYOUT: ConfigRecord({"layout": header[LAYOUT]}),
            }
        )
        state = unpack(packed)
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
