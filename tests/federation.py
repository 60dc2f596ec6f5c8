"""A small federation for tests: synthetic samples, a tiny model, a plain SGD learner."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy
from torch import nn
from torch.nn import functional as F

from fedlearn.client import Client, make_client_app
from fedlearn.cohorts.sampler import CohortSampler
from fedlearn.cohorts.uniform import Uniform
from fedlearn.evaluation import Evaluator
from fedlearn.faults import Faults
from fedlearn.grids import restore_clients
from fedlearn.local_work import LocalWork
from fedlearn.lr_schedules import Constant, LrSchedule
from fedlearn.runtimes.inprocess import InProcess, InProcessGrid
from fedlearn.runtimes.serial import Executor, Serial
from fedlearn.schedule import Schedule
from fedlearn.seeding import borrowed_global_rng
from fedlearn.server import Bound, RoundPlan, Server, make_server_app
from fedlearn.types import Experience, Report, Samples, Scenario, Shares, State, Topic, Turn
from strategies.aggregation.fedavg import FedAvg

CLASSES, FEATURES = 4, 6

Fault = Callable[[Message, Message, Context], Message]
"""Given the instruction, the honest reply and the context, the reply that is sent instead."""


class PlainSgd:
    """The least continual strategy: SGD on the turn's samples; remembers how often it trained."""

    def __init__(self, lr: float = 0.1) -> None:
        self.lr = lr

    def train_turn(
        self,
        model: nn.Module,
        experience: Experience,
        stream: Callable[[int], Experience],
        turn: Turn,
        state: State,
    ) -> Report:
        x, y = experience.gather()
        loss, steps, epoch = 0.0, 0, 0
        while steps < (most := turn.num_steps(-(-len(y) // turn.batch_size))):
            order = torch.randperm(
                len(y),
                generator=torch.Generator().manual_seed(
                    turn.seed("batches", turn.first_epoch + epoch)
                ),
            )
            epoch += 1
            for batch in order.split(turn.batch_size)[: most - steps]:
                model.zero_grad()
                objective = F.cross_entropy(model(x[batch]), y[batch])
                objective.backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter -= self.lr * parameter.grad
                loss, steps = float(objective.detach()), steps + 1
        turns = int(state.values.get("turns", 0)) + 1
        consolidated = list(state.values.get("consolidated", []))
        if turn.previous is not None:
            consolidated.append(turn.previous.index)
        kept = State(
            {"anchor": next(model.parameters()).detach().clone()},
            {"turns": turns, "consolidated": consolidated, "client": turn.client_id},
        )
        return Report(kept, loss, steps)


def make_scenario(
    num_clients: int = 4, num_experiences: int = 2, per_pair: int = 12, empty: Any = ()
) -> Scenario:
    """Learnable blobs; every (client, experience) has `per_pair` samples but the `empty` pairs."""
    generator = torch.Generator().manual_seed(0)
    total = num_clients * num_experiences * (per_pair + 2)
    classes = tuple(
        tuple(range(i * CLASSES // num_experiences, (i + 1) * CLASSES // num_experiences))
        for i in range(num_experiences)
    )
    centres = 2 * torch.randn(CLASSES, FEATURES, generator=generator)
    labels, shares, held_out = [], [], []
    row = 0
    for client_id in range(num_clients):
        stream, tests = [], []
        for index in range(num_experiences):
            own = torch.tensor(classes[index])
            labels.append(own[torch.arange(per_pair + 2) % len(own)])
            rows = torch.arange(row, row + per_pair + 2)
            row += per_pair + 2
            none = (client_id, index) in empty
            stream.append(rows[:0] if none else rows[2:])
            tests.append(rows[:0] if none else rows[:2])
        shares.append(stream)
        held_out.append(tests)
    y = torch.cat(labels)
    x = centres[y] + 0.3 * torch.randn(total, FEATURES, generator=generator)
    test_y = torch.arange(40) % CLASSES
    test_x = centres[test_y] + 0.3 * torch.randn(40, FEATURES, generator=generator)
    return Scenario(
        name="blobs",
        kind="class",
        train=Samples(x, y),
        test=Samples(test_x, test_y),
        shares=Shares.of(shares),
        held_out=Shares.of(held_out),
        topics=tuple(
            Topic(own, torch.isin(test_y, torch.tensor(own)).nonzero().flatten()) for own in classes
        ),
        orders=torch.arange(num_experiences).expand(num_clients, -1),
        num_classes=CLASSES,
        recipe={"seed": 0},
    )


def tiny_model() -> nn.Module:
    with borrowed_global_rng(7):
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def norm_model() -> nn.Module:
    with borrowed_global_rng(7):
        return nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))


def with_faults(app: ClientApp, faults: Mapping[int, Fault]) -> ClientApp:
    """Return an app whose clients `faults` answer training otherwise than they should."""
    faulty = ClientApp()

    def train(message: Message, context: Context) -> Message:
        reply = app(message, context)
        fault = faults.get(int(context.node_config["partition-id"]))
        return reply if fault is None else fault(message, reply, context)

    faulty.train()(train)
    faulty.evaluate()(app)
    faulty.query()(app)
    return faulty


def federate(
    scenario: Scenario | None = None,
    aggregation: Strategy | None = None,
    *,
    continual: Any = None,
    build_model: Callable[[], nn.Module] = tiny_model,
    rounds_per_experience: int = 2,
    run_seed: int = 0,
    fraction_train: float = 1.0,
    epochs: int = 1,
    steps: int | None = None,
    lr_schedule: LrSchedule | None = None,
    max_failed_rounds: int = 3,
    bound: Bound | None = None,
    faults: Mapping[int, Fault] | None = None,
    grid_type: type[InProcessGrid] = InProcessGrid,
    executor: Callable[[ClientApp, int], Executor] = Serial,
    cohort_executor: Callable[[Client], Executor] | None = None,
    schedule: Schedule | None = None,
    cohort: CohortSampler | None = None,
    injected: Faults | None = None,
    restored: tuple[Any, Any] | None = None,
    after_round: Callable[[Server, InProcessGrid], None] | None = None,
) -> tuple[Server, list[dict[str, Any]], InProcessGrid]:
    """Run a federation to its end; return the server, its events and the grid.

    It goes on from what `restored` holds: a server's state, and its clients' used turns.
    """
    scenario = make_scenario() if scenario is None else scenario
    if schedule is None:
        schedule = Schedule.in_step(
            scenario.num_clients, scenario.num_experiences, rounds_per_experience
        )
    evaluator = Evaluator(scenario.num_classes, None)
    events: list[dict[str, Any]] = []
    server = Server(
        scenario,
        schedule,
        FedAvg(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
        if aggregation is None
        else aggregation,
        bound,
        build_model,
        evaluator,
        RoundPlan(
            run_seed,
            fraction_train,
            1.0,
            1,
            max_failed_rounds,
            cohort or Uniform(),
            injected or Faults(),
        ),
        lambda event: events.append(dict(event)),
    )
    client = Client(
        scenario,
        schedule,
        PlainSgd() if continual is None else continual,
        build_model,
        evaluator,
        LocalWork(run_seed, epochs, 4, steps, lr_schedule or Constant(), injected or Faults()),
    )
    app = with_faults(make_client_app(client), faults or {})
    if cohort_executor is None:
        grid = grid_type(executor(app, scenario.num_clients))
    else:
        grid = grid_type(cohort_executor(client))
    if restored is not None:
        server.restore(*restored[0])
        restore_clients(grid, restored[1])
    told = None if after_round is None else lambda: after_round(server, grid)
    try:
        InProcess().run(make_server_app(server, told), grid)
    finally:
        grid.executor.close()
        server.events = events  # type: ignore[attr-defined]
    return server, events, grid
