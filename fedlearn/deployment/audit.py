"""The audit: a record, on a node's own disk, of everything that it has sent to the server."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord

from fedlearn import records


class Audit:
    """Writes down what leaves, before it does: one line of JSON a message."""

    def __init__(self, path: Path) -> None:
        """Open the record, or begin one.

        Args:
            path: A file of lines; they are only ever added.
        """
        self._path = path

    def note(self, run: str, reply: Message) -> None:
        """Write down a message that is about to leave.

        Args:
            run: The run's own name.
            reply: As the client made it, not packed.
        """
        line = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": run,
            "kind": reply.metadata.message_type,
            **contents_of(reply),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def contents_of(reply: Message) -> dict[str, Any]:
    """Return what is in a message: names, shapes and types of arrays, names of all else."""
    if reply.has_error():
        return {"error": reply.error.reason}
    content = reply.content
    arrays = records.of_kind(content, ArrayRecord)
    return {
        "arrays": {
            f"{key}/{name}": f"{array.dtype}{list(array.shape)}"
            for key, record in arrays.items()
            for name, array in record.items()
        },
        "bytes": records.wire_bytes(content),
        "metrics": [
            name for each in records.of_kind(content, MetricRecord).values() for name in each
        ],
        "values": [
            name for each in records.of_kind(content, ConfigRecord).values() for name in each
        ],
    }


@dataclass
class Sent:
    """What messages of one kind, in one run, had in them.

    Attributes:
        count: How many there were.
        array_bytes: Of all of them.
        arrays: Each array's type and shape, by name.
        metrics: Names of numbers.
        values: Names of other values.
        errors: Messages that said that something went wrong, and what.
    """

    count: int = 0
    array_bytes: int = 0
    arrays: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, None] = field(default_factory=dict)
    values: dict[str, None] = field(default_factory=dict)
    errors: dict[str, None] = field(default_factory=dict)

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a message in."""
        self.count += 1
        self.array_bytes += line.get("bytes", 0)
        self.arrays |= line.get("arrays", {})
        self.metrics |= dict.fromkeys(line.get("metrics", ()))
        self.values |= dict.fromkeys(line.get("values", ()))
        if "error" in line:
            self.errors[line["error"]] = None


def read_audit(path: Path) -> dict[tuple[str, str], Sent]:
    """Return what has left a node, by run and kind of message; nothing where nothing has."""
    sent: dict[tuple[str, str], Sent] = {}
    for line in _lines(path):
        sent.setdefault((line["run"], line["kind"]), Sent()).add(line)
    return sent


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # cut off with the process that wrote it
                continue


def told(sent: Mapping[tuple[str, str], Sent]) -> Iterator[str]:
    """Yield the lines that tell a person what has left a node."""
    for (run, kind), each in sent.items():
        yield f"{run}  {kind}: {each.count} messages, {each.array_bytes} bytes of arrays"
        yield from _wrapped("arrays", (f"{name} {what}" for name, what in each.arrays.items()))
        yield from _wrapped("metrics", each.metrics)
        yield from _wrapped("values", each.values)
        yield from _wrapped("errors", each.errors)


def _wrapped(what: str, names: Iterable[str]) -> Iterator[str]:
    for at, name in enumerate(names):
        yield f"    {what if not at else '':<8} {name}"
