"""What a client turn costs when the client does nothing: our runtimes against Flower's Ray one.

Both move a model of 1 M parameters to a client and back, into a PyTorch model and out of it, and
average the replies. Run both in one go, because machines differ:

    python benchmarks/overhead.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")

import torch
from torch import nn

SIZE = 1000
"""A square linear layer of SIZE x SIZE weights: 1 M parameters and SIZE biases."""


def model() -> nn.Module:
    """Return the model that travels."""
    return nn.Linear(SIZE, SIZE)


def ours(num_clients: int, num_rounds: int, *, on_ray: bool) -> dict[str, float]:
    """Return milliseconds a no-op turn in a runtime of ours, and with aggregation."""
    from fedlearn.client import Client
    from fedlearn.evaluation import Evaluator
    from fedlearn.local_work import LocalWork
    from fedlearn.runtimes.inprocess import InProcess
    from fedlearn.runtimes.ray_simulation import RaySimulation
    from fedlearn.schedule import Schedule
    from fedlearn.server import RoundPlan, Server, make_server_app
    from fedlearn.types import (
        Experience,
        Report,
        Samples,
        Scenario,
        Shares,
        State,
        Topic,
        Turn,
    )
    from strategies.aggregation.fedavg import FedAvg

    class NoOp:
        def train_turn(
            self,
            model: nn.Module,
            experience: Experience,
            stream: Callable[[int], Experience],
            turn: Turn,
            state: State,
        ) -> Report:
            return Report(state, 0.0, 0)

    samples = Samples(torch.zeros(num_clients, SIZE), torch.zeros(num_clients, dtype=torch.int64))
    none = torch.empty(0, dtype=torch.int64)
    scenario = Scenario(
        name="no-op",
        kind="class",
        train=samples,
        test=samples,
        shares=Shares.of([[torch.tensor([k])] for k in range(num_clients)]),
        held_out=Shares.of([[none]] * num_clients),
        topics=(Topic((0,), torch.tensor([0])),),
        orders=torch.zeros(num_clients, 1, dtype=torch.int64),
        num_classes=SIZE,
    )
    schedule = Schedule.in_step(num_clients, 1, num_rounds)
    evaluator = Evaluator(SIZE, None)
    times: list[dict[str, float]] = []
    ended_at: list[float] = []

    def note(event: Mapping[str, Any]) -> None:
        if event["event"] == "round":
            times.append(event["time"])
            ended_at.append(time.perf_counter())

    server = Server(
        scenario,
        schedule,
        FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1),
        None,
        model,
        evaluator,
        RoundPlan(0, 1.0, 0.0, num_rounds, 1),
        note,
    )
    client = Client(scenario, schedule, NoOp(), model, evaluator, LocalWork(0, 1, 1))
    runtime = RaySimulation() if on_ray else InProcess()
    begun = time.perf_counter()
    with runtime.open(client) as grid:
        runtime.run(make_server_app(server), grid)
    times = times[1:]
    return {
        "first_round_s": ended_at[0] - begun,
        "turn_ms": 1e3 * statistics.median(t["train_s"] for t in times) / num_clients,
        "turn_and_aggregation_ms": 1e3
        * statistics.median(t["round_s"] - t["evaluate_s"] for t in times)
        / num_clients,
    }


def flowers(num_clients: int, num_rounds: int) -> dict[str, float]:
    """Return milliseconds a no-op turn in Flower's Ray simulation, and with aggregation."""
    import logging

    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    client_app = ClientApp()

    @client_app.train()
    def train(message: Message, _: Context) -> Message:
        local = nn.Linear(1000, 1000)
        local.load_state_dict(message.content["arrays"].to_torch_state_dict())
        content = RecordDict(
            {
                "arrays": ArrayRecord(local.state_dict()),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    server_app = ServerApp()
    seconds: list[float] = []
    with_aggregation: list[float] = []
    first_round_at: list[float] = []

    @server_app.main()
    def main(grid: Grid, _: Context) -> None:
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=num_clients)
        arrays = ArrayRecord(model().state_dict())
        for server_round in range(1, num_rounds + 1):
            started = time.perf_counter()
            messages = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
            sent = time.perf_counter()
            replies = list(grid.send_and_receive(messages))
            seconds.append(time.perf_counter() - sent)
            arrays, _ = strategy.aggregate_train(server_round, replies)
            with_aggregation.append(time.perf_counter() - started)
            first_round_at.append(time.perf_counter())

    begun = time.perf_counter()
    run_simulation(
        server_app,
        client_app,
        num_supernodes=num_clients,
        backend_config={
            "init_args": {"address": "local", "logging_level": logging.ERROR},
            "client_resources": {"num_cpus": 1},
        },
    )
    return {
        "first_round_s": first_round_at[0] - begun,
        "turn_ms": 1e3 * statistics.median(seconds[1:]) / num_clients,
        "turn_and_aggregation_ms": 1e3 * statistics.median(with_aggregation[1:]) / num_clients,
    }


SIDES = {
    "fedlearn": partial(ours, on_ray=False),
    "fedlearn, Ray": partial(ours, on_ray=True),
    "Flower, Ray": flowers,
}


def _in_a_process(side: str, clients: int, rounds: int) -> dict[str, float]:
    # one process each: Ray's workers and our threads must not share one
    command = [sys.executable, __file__, "--side", side, "--clients", str(clients)]
    result = subprocess.run(
        [*command, "--rounds", str(rounds)], check=True, capture_output=True, text=True
    )
    return dict(json.loads(result.stdout.splitlines()[-1]))


def main() -> None:
    """Print all sides, and in brackets how many times what ours takes Flower's does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--side", choices=SIDES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.side:
        print(json.dumps(SIDES[arguments.side](arguments.clients, arguments.rounds)))
        return
    found = {side: _in_a_process(side, arguments.clients, arguments.rounds) for side in SIDES}
    print(f"no-op client turn, 1 001 000 parameters, {arguments.clients} clients a round, median")
    print(f"{'':26}" + "".join(f"{side:>18}" for side in SIDES))
    for key, label in (
        ("turn_ms", "turn, ms"),
        ("turn_and_aggregation_ms", "turn and aggregation, ms"),
        ("first_round_s", "start to first round, s"),
    ):
        flower = found["Flower, Ray"][key]
        cells = [
            f"{each[key]:.2f}" + (f" ({flower / each[key]:.1f}x)" if each[key] != flower else "")
            for each in found.values()
        ]
        print(f"{label:26}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
