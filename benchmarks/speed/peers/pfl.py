# mypy: disable-error-code="import-not-found"
"""Apple's pfl-research: ``python -m speed.peers.pfl PLAN WEIGHTS``; under torchrun for several.

Its FedAvg, weighted by samples, on its simulated backend. A user of its dataset is a turn of the
plan, so that cohorts and orders are the plan's. It evaluates local models in the first round, which
is not timed.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from speed.plan import read_plan
from speed.stopwatch import Stopwatch
from torch import Tensor, nn
from torch.nn import functional as F

SELDOM = 10**9


class Network(nn.Module):
    """The plan's network with the loss and the metrics that pfl asks a model for."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return F.cross_entropy(self.layers(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        """Return what is evaluated of a batch."""
        return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}


class RoundWatch(TrainingProcessCallback):  # type: ignore[misc]
    """Takes the time of every round."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        """Note a round's end."""
        self._watch.round_ends()
        return False, Metrics()


def main(plan_path: str, weights: Path) -> None:
    """Run and report."""
    torch.set_num_threads(1)
    plan = read_plan(plan_path)
    work = plan.workload
    rounds, size = plan.cohorts.shape
    watch = Stopwatch(rounds)
    network = Network(plan.network())
    model = PyTorchModel(
        model=network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    turns = iter([(at, place) for at in range(rounds) for place in range(size)])
    users = FederatedDataset(
        lambda turn: PyTorchTensorDataset(plan.turn(*turn), user_id=str(turn)),
        lambda: next(turns),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=SELDOM,
            train_cohort_size=size,
            val_cohort_size=0,
        ),
        SimulatedBackend(users, users, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work.lr, local_batch_size=work.batch_size
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[RoundWatch(watch)],
        send_metrics_to_platform=False,
    )
    if pytorch_ops.distributed.global_rank == 0:
        watch.report(network.parameters(), weights)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
