# mypy: disable-error-code="import-not-found"
"""BlazeFL: ``python -m speed.peers.blazefl PLAN WEIGHTS PARALLEL``.

Its FedAvg, on one trainer, or on so many threads. Batches are slices of tensors, which is faster
than a data loader. Its random generators are not used: orders are the plan's.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from blazefl.contrib.fedavg import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgThreadPoolClientTrainer,
)
from speed.plan import Plan, read_plan
from speed.stopwatch import Stopwatch
from torch import Tensor, nn

SEED = 0


class Selector:
    """Makes the plan's network, whatever its name."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def select_model(self, model_name: str) -> nn.Module:
        """Return a new network."""
        return self._plan.network()


class Batches(list[tuple[Tensor, Tensor]]):
    """A turn's batches, with the data set that a trainer asks for its size."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int) -> None:
        super().__init__(zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True))
        self.dataset = y


class PlannedData:
    """The plan's turns: a client id is a place in the present round's cohort."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.at = 0

    def get_dataloader(self, type_: Any, cid: int, batch_size: int, generator: Any) -> Batches:
        """Return the batches of one turn."""
        return Batches(*self._plan.turn(self.at, cid), batch_size)


def main(plan_path: str, weights: Path, parallel: int) -> None:
    """Run and report."""
    torch.set_num_threads(1)
    plan = read_plan(plan_path)
    work = plan.workload
    rounds, size = plan.cohorts.shape
    watch = Stopwatch(rounds)
    selector, data = Selector(plan), PlannedData(plan)
    common = {"model_selector": selector, "model_name": "network", "dataset": data}
    server: Any = FedAvgBaseServerHandler(
        **common,
        global_round=rounds,
        num_clients=work.num_clients,
        sample_ratio=size / work.num_clients,
        device="cpu",
        batch_size=work.batch_size,
        seed=SEED,
    )
    settings = {
        "device": "cpu",
        "num_clients": work.num_clients,
        "epochs": 1,
        "batch_size": work.batch_size,
        "lr": work.lr,
        "seed": SEED,
    }
    trainer: Any
    if parallel == 1:
        trainer = FedAvgBaseClientTrainer(**common, **settings)
    else:
        trainer = FedAvgThreadPoolClientTrainer(**common, **settings, num_parallels=parallel)
    while not server.is_stopped():
        data.at = server.round
        trainer.local_process(server.downlink_package(), list(range(size)))
        for package in trainer.uplink_package():
            server.load(package)
        watch.round_ends()
    watch.report(server.model.parameters(), weights)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
