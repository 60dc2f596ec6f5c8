"""What a round's event tells of its clients, as columns."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class ClientColumns(Mapping[str, dict[str, Any]]):
    """A mapping from client ids to dictionaries, kept as columns: cohorts can be large."""

    def __init__(self, client_ids: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> None:
        """Hold columns.

        Args:
            client_ids: n of them.
            columns: n values by name, plain Python numbers.
        """
        self._client_ids = client_ids
        self.columns = columns

    def __getitem__(self, key: str) -> dict[str, Any]:
        try:
            at = self._client_ids.index(int(key))
        except ValueError:
            raise KeyError(key) from None
        return {name: column[at] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[str]:
        return map(str, self._client_ids)

    def __len__(self) -> int:
        return len(self._client_ids)

    def items(self) -> Any:
        """Return the pairs, made in one pass."""
        names = tuple(self.columns)
        rows = zip(*self.columns.values(), strict=True)
        pairs = zip(self, rows, strict=True)
        return [(key, dict(zip(names, row, strict=True))) for key, row in pairs]

    def values(self) -> Any:
        """Return the dictionaries, made in one pass."""
        return [each for _, each in self.items()]

    def to_json(self) -> str:
        """Return it as a JSON object, with null for numbers that are not finite.

        By columns, which takes half the time of encoding each client.
        """
        if not self._client_ids:
            return "{}"
        names = [json.dumps(name).replace("%", "%%") for name in self.columns]
        row = '"%d":{' + ",".join(f"{name}:%s" for name in names) + "}"
        columns = [_to_json(column) for column in self.columns.values()]
        rows = zip(self._client_ids, *columns, strict=True)
        return "{" + ",".join([row % each for each in rows]) + "}"


def _to_json(column: Sequence[float]) -> list[str]:
    """Return each number as JSON."""
    if not all(map(math.isfinite, column)):
        column = [value if math.isfinite(value) else None for value in column]  # type: ignore[misc]
    return json.dumps(list(column), allow_nan=False)[1:-1].split(", ")
