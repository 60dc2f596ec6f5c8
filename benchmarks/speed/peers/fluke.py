# mypy: disable-error-code="import-not-found"
"""fluke's FedAVG: ``python -m speed.peers.fluke PLAN WEIGHTS``.

Its own clients, server and data loaders; the server chooses the plan's cohort and puts each
client's samples into the order of its turn.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fluke.algorithms.fedavg import FedAVG
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.server import Server
from fluke.utils import FederationObserver
from speed.plan import Plan, read_plan
from speed.stopwatch import Stopwatch
from speed.workloads import NUM_CLASSES


class PlannedServer(Server):  # type: ignore[misc]
    """Chooses the plan's cohorts."""

    plan: Plan
    at = 0

    def get_eligible_clients(self, eligible_perc: float) -> Sequence[Client]:
        """Return a round's cohort, ready for its turns."""
        cohort = [self.clients[client_id] for client_id in self.plan.cohorts[self.at].tolist()]
        for place, client in enumerate(cohort):
            client.train_set.tensors = self.plan.turn(self.at, place)
        self.at += 1
        return cohort


class RoundWatch(FederationObserver):  # type: ignore[misc]
    """Takes the time of every round, and reports after the last one."""

    def __init__(self, watch: Stopwatch, server: PlannedServer, weights: Path) -> None:
        self._watch, self._server, self._weights = watch, server, weights

    def end_round(self, round: int) -> None:
        """Note a round's end; what follows the last is an evaluation of every client."""
        self._watch.round_ends()
        if round == len(self._server.plan.cohorts):
            self._watch.report(self._server.model.parameters(), self._weights)


def main(plan_path: str, weights: Path) -> None:
    """Run and report."""
    torch.set_num_threads(1)
    plan = read_plan(plan_path)
    work = plan.workload
    rounds, size = plan.cohorts.shape
    watch = Stopwatch(rounds)
    optimizer = OptimizerConfigurator({"name": "SGD", "lr": work.lr})
    loaders = [
        FastDataLoader(
            plan.x[client_id],
            plan.y[client_id],
            num_labels=NUM_CLASSES,
            batch_size=work.batch_size,
            shuffle=False,
        )
        for client_id in range(work.num_clients)
    ]
    clients: list[Any] = [
        Client(client_id, loader, None, optimizer, torch.nn.CrossEntropyLoss(), local_epochs=1)
        for client_id, loader in enumerate(loaders)
    ]
    server = PlannedServer(plan.network(), None, clients, weighted=True)
    server.plan = plan
    federation = FedAVG(work.num_clients, None, {}, clients, server)
    federation.set_callbacks([RoundWatch(watch, server, weights)])
    federation.run(rounds, size / work.num_clients)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
