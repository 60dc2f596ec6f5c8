# mypy: disable-error-code="import-not-found"
"""FedLab's standalone pipeline: ``python -m speed.peers.fedlab PLAN WEIGHTS``.

Its FedAvg, which weights clients equally: all hold equally many samples. Batches are slices of
tensors, which is faster than the data loader that its examples use.
"""

import sys
from pathlib import Path

import torch
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.fedavg import FedAvgServerHandler
from fedlab.core.standalone import StandalonePipeline
from speed.plan import Plan, read_plan
from speed.stopwatch import Stopwatch
from torch import Tensor


class PlannedServer(FedAvgServerHandler):  # type: ignore[misc]
    """Samples the plan's cohorts."""

    plan: Plan

    def sample_clients(self) -> list[int]:
        """Return the places of a round's cohort."""
        return list(range(len(self.plan.cohorts[self.round])))


class PlannedData:
    """The plan's turns, one round after another."""

    def __init__(self, plan: Plan, server: PlannedServer) -> None:
        self._plan, self._server = plan, server

    def get_dataloader(self, place: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Return the batches of one turn of the present round."""
        x, y = self._plan.turn(self._server.round, place)
        return list(zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True))


class TimedPipeline(StandalonePipeline):  # type: ignore[misc]
    """Takes the time where an evaluation would be."""

    watch: Stopwatch

    def evaluate(self) -> None:
        """Note a round's end."""
        self.watch.round_ends()


def main(plan_path: str, weights: Path) -> None:
    """Run and report."""
    torch.set_num_threads(1)
    plan = read_plan(plan_path)
    work = plan.workload
    rounds, size = plan.cohorts.shape
    watch = Stopwatch(rounds)
    server = PlannedServer(plan.network(), rounds, size / work.num_clients)
    server.plan = plan
    trainer = SGDSerialClientTrainer(plan.network(), work.num_clients)
    trainer.setup_dataset(PlannedData(plan, server))
    trainer.setup_optim(1, work.batch_size, work.lr)
    pipeline = TimedPipeline(server, trainer)
    pipeline.watch = watch
    pipeline.main()
    watch.report(server.model.parameters(), weights)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
