"""Charts: which key of which event becomes which curve, for trackers that draw curves."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fedlearn.tracking.tracker import Event

MOST_CLIENTS = 20
"""Above this, clients are summarised: a chart with more curves says nothing."""

Row = dict[str, Any]
Worst = Callable[[Iterable[float]], float]


class Charts:
    """Turns events into rows of named numbers; what was not measured has no entry.

    Every row holds ``round`` and ``experience``, the two axes. A round's row:
    ``server/{accuracy, loss}``, ``server/experience_<j>/accuracy``; ``client/<id>/{loss,
    num_examples, steps, replayed, state_bytes, ...}`` (whatever clients report) for up to 20
    clients, else ``client/{mean, p10, p90}/...`` and ``client/worst/loss``; likewise
    ``node/<id>/{seconds, round_trip_s, load, memory, gpu_memory}`` of a deployment's machines;
    ``comm/{up, down}_bytes`` and ``comm/cumulative_{up, down}_bytes``;
    ``time/{round_s, train_s, evaluate_s}``; ``cohort/{idle, dropped, diverged, quarantined,
    failed}``, numbers of clients; ``aggregated/...``. An experience's row: ``cl/...``,
    ``client_accuracy/{mean, weighted, std, worst10, jain}``, and ``client/<id>/accuracy`` (mean
    over the experiences learned so far) or its spread.
    """

    def __init__(self, num_clients: int) -> None:
        """Make the charts of one run.

        Args:
            num_clients: Clients in the run.
        """
        self.summarises_clients = num_clients > MOST_CLIENTS
        self._sent = {"up_bytes": 0, "down_bytes": 0}

    def count(self, events: Iterable[Event]) -> None:
        """Take up the bytes of rounds that came before, when a run is resumed."""
        for event in events:
            if event["event"] == "round":
                self._count(event["comm"])

    def round_row(self, event: Event) -> Row:
        """Return the row of a ``round`` event."""
        server = event.get("server", {})
        told = event.get("aggregated", {})  # machines are charted one by one
        aggregated = {name: each for name, each in told.items() if not name.startswith("node-")}
        self._count(event["comm"])
        row: Row = {
            "round": event["round"],
            "experience": event["experience"],
            **_numbers("server", {key: server.get(key) for key in ("accuracy", "loss")}),
            **_numbers("comm", event["comm"]),
            **_numbers("comm", {f"cumulative_{name}": sent for name, sent in self._sent.items()}),
            **_numbers("time", event["time"]),
            **_numbers("aggregated", aggregated),
        }
        for j, accuracy in enumerate(server.get("per_experience", ())):
            row |= _numbers(f"server/experience_{j}", {"accuracy": accuracy})
        for name in ("idle", "dropped", "diverged", "quarantined", "failed"):
            row[f"cohort/{name}"] = len(event.get(name, ()))
        clients = event.get("clients", {})
        for metric in dict.fromkeys(name for each in clients.values() for name in each):
            told = {key: each.get(metric) for key, each in clients.items()}
            worst = max if metric == "loss" else None
            if metric.startswith("node_"):
                row |= self._clients("node", metric.removeprefix("node_"), told, worst)
            else:
                row |= self._clients("client", metric, told, worst)
        return row

    def experience_row(self, event: Event) -> Row:
        """Return the row of an ``experience`` event."""
        learned = event["experience"] + 1
        means = {
            key: float(np.mean(measured))
            for key, accuracies in event.get("client_accuracy", {}).items()
            if (measured := [each for each in accuracies[:learned] if each is not None])
        }
        return {
            "round": event["round"],
            "experience": event["experience"],
            **_numbers("cl", event["cl"]),
            **_numbers("client_accuracy", event.get("client", {})),
            **self._clients("client", "accuracy", means, worst=min),
        }

    def _clients(
        self, prefix: str, metric: str, told: Mapping[str, float | None], worst: Worst | None
    ) -> Row:
        """Return a metric of each client, or its spread where there are too many of them."""
        known = {key: value for key, value in told.items() if value is not None}
        if not self.summarises_clients:
            return {f"{prefix}/{key}/{metric}": value for key, value in known.items()}
        if not known:
            return {}
        values = list(known.values())
        row: Row = {
            f"{prefix}/mean/{metric}": float(np.mean(values)),
            f"{prefix}/p10/{metric}": float(np.percentile(values, 10)),
            f"{prefix}/p90/{metric}": float(np.percentile(values, 90)),
        }
        return row if worst is None else {**row, f"{prefix}/worst/{metric}": worst(values)}

    def _count(self, comm: Mapping[str, int]) -> None:
        for name in self._sent:
            self._sent[name] += comm[name]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Row:
    """Return nested mappings as one, their keys joined by ``/``; lists are left out."""
    flat: Row = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        elif not isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = value
    return flat


def _numbers(prefix: str, values: Mapping[str, Any]) -> Row:
    return {
        f"{prefix}/{key}": value for key, value in values.items() if isinstance(value, int | float)
    }
