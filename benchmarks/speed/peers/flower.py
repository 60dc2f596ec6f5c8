"""Flower's simulation on Ray: ``python -m speed.peers.flower PLAN WEIGHTS``.

The Message API, FedAvg and a client app with a plain PyTorch loop, as in its quickstart; two actors
of one core each. Which client a node is in a round comes with the message, so that the schedule is
the plan's.
"""

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from speed.plan import read_plan
from speed.stopwatch import Stopwatch
from torch.nn import functional as F

client_app = ClientApp()


@client_app.train()
def train(message: Message, _: Context) -> Message:
    """Train one client for one epoch."""
    torch.set_num_threads(1)
    config = message.content.config_records["config"]
    plan = read_plan(str(config["plan"]))
    model = plan.network()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=plan.workload.lr)
    server_round, place = (cast(int, config[key]) for key in ("server-round", "place"))
    x, y = plan.turn(server_round - 1, place)
    size = plan.workload.batch_size
    for inputs, labels in zip(torch.split(x, size), torch.split(y, size), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y)}),
        }
    )
    return Message(content, reply_to=message)


class Planned(FedAvg):
    """FedAvg that tells each sampled node which place of the plan's cohort is its own."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages, each with its place."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for place, message in enumerate(messages):
            own = dict(message.content.config_records["config"])
            own["place"] = place
            # a record of its own: FedAvg gives all messages the same one
            message.content = RecordDict({**message.content, "config": ConfigRecord(own)})
        return messages


def main(plan_path: str, weights: Path) -> None:
    """Run and report."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    plan = read_plan(plan_path)
    rounds, size = plan.cohorts.shape
    watch = Stopwatch(rounds)
    server_app = ServerApp()

    @server_app.main()
    def run(grid: Grid, _: Context) -> None:
        strategy = Planned(
            fraction_train=size / plan.workload.num_clients,
            fraction_evaluate=0.0,
            min_train_nodes=size,
            min_available_nodes=plan.workload.num_clients,
        )
        arrays: ArrayRecord | None = ArrayRecord(plan.network().state_dict())
        for server_round in range(1, rounds + 1):
            assert arrays is not None, "every reply counts"
            config = ConfigRecord({"plan": plan_path, "server-round": server_round})
            messages = strategy.configure_train(server_round, arrays, config, grid)
            replies = list(grid.send_and_receive(messages))
            assert len(replies) == size, f"{len(replies)} of {size} clients replied"
            arrays, _metrics = strategy.aggregate_train(server_round, replies)
            watch.round_ends()
        assert arrays is not None, "every reply counts"
        watch.report(arrays.to_torch_state_dict().values(), weights)

    run_simulation(
        server_app,
        client_app,
        num_supernodes=plan.workload.num_clients,
        backend_config={
            "init_args": {"address": "local", "num_cpus": 2, "logging_level": logging.ERROR},
            "client_resources": {"num_cpus": 1},
        },
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
