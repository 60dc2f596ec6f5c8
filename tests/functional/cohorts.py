"""Cohorts on scikit-learn's digits: scenarios of a few clients, and their turns one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from lone_client import DIGITS
from torch import Tensor, nn

from fedlearn.turns import NEVER, CohortReport, Turns
from fedlearn.types import (
    DivergedError,
    Kind,
    Report,
    Samples,
    Scenario,
    Shares,
    State,
    Topic,
)
from strategies.continual.functional.continual import FunctionalContinual

SIZES = (17, 1, 24, 9, 24, 7)
"""Samples of each client in each of its experiences."""
EXPERIENCES = 3


def _pixels(x: Tensor, order: Tensor) -> Tensor:
    return x[:, order]


def scenario(
    kind: Kind = "class",
    sizes: Sequence[int] = SIZES,
    dtype: torch.dtype = torch.float64,
    samples: Samples | None = None,
    has_views: bool = False,
) -> Scenario:
    """Return a scenario of one client a size, whose experiences come in orders of their own."""
    rng = torch.Generator().manual_seed(3)
    store = samples or Samples(DIGITS.x.to(dtype), DIGITS.y)
    topics, pools = [], []
    for index in range(EXPERIENCES):
        if kind == "domain":
            order = torch.randperm(64, generator=rng)
            transform = partial(_pixels, order=order) if index else None
            topics.append(Topic(tuple(range(10)), torch.arange(5), transform))
            pools.append(torch.randperm(len(store), generator=rng))
        else:
            topics.append(Topic((2 * index, 2 * index + 1), torch.arange(5)))
            rows = (DIGITS.y // 2 == index).nonzero().squeeze(1)
            pools.append(rows[torch.randperm(len(rows), generator=rng)])
    orders = torch.tensor([[(at + client) % 3 for at in range(3)] for client in range(len(sizes))])
    ends = np.cumsum(sizes)
    nested = [
        [pools[int(topic)][end - size : end] for topic in orders[client]]
        for client, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]
    views = None
    if has_views:
        views = tuple(
            None if client % 2 else partial(_pixels, order=torch.randperm(64, generator=rng))
            for client in range(len(sizes))
        )
    shares = Shares.of(nested)
    none = Shares.of([[torch.empty(0, dtype=torch.int64)] * 3 for _ in sizes])
    return Scenario("cohorts", kind, store, store, shares, none, tuple(topics), orders, 10, views)


@dataclass
class Clock:
    """Rounds in which clients enter experiences at different times, and not all take part.

    Attributes:
        scenario: Whose clients they are.
        rounds: How many.
        more: Fields of the turns.
    """

    scenario: Scenario
    rounds: int = 4
    more: dict[str, Any] = field(default_factory=dict)

    def cohort(self, server_round: int) -> tuple[list[int], list[int]]:
        """Return clients and the experience of each."""
        clients = range(self.scenario.num_clients)
        taking_part = [client for client in clients if (client + server_round) % 5 or client == 1]
        return taking_part, [
            min((server_round + client % 3) // 2, EXPERIENCES - 1) for client in taking_part
        ]

    def turns(self, server_round: int, last: dict[int, int]) -> Turns:
        """Return the turns of a round, 0-based."""
        clients, experiences = self.cohort(server_round)
        n = len(clients)
        settings: dict[str, Any] = {
            "epochs": 2,
            "batch_size": 8,
            "steps": None,
            "config": {},
            "lr_factors": np.ones(n),
            "works": np.ones(n),
        }
        for key, value in self.more.items():
            settings[key] = value(np.array(clients)) if callable(value) else value
        return Turns(
            scenario=self.scenario,
            run_seed=7,
            server_round=server_round + 1,
            client_ids=np.array(clients),
            experiences=np.array(experiences),
            last=np.array([last.get(client, NEVER) for client in clients]),
            first_epochs=np.array([2 * server_round + client % 2 for client in clients]),
            progress=np.zeros(n),
            **settings,
        )


def tensors_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of a model's parameters and buffers."""
    return (
        {name: each.detach().clone() for name, each in model.named_parameters()},
        {name: each.clone() for name, each in model.named_buffers()},
    )


def alone(
    strategy: FunctionalContinual,
    model: nn.Module,
    received: tuple[dict[str, Tensor], dict[str, Tensor]],
    turns: Turns,
    states: Sequence[State],
) -> list[tuple[Report | str, dict[str, Tensor], dict[str, Tensor]]]:
    """Return what `train_turn` makes of each client: a report, or why it diverged, and tensors."""
    found: list[tuple[Report | str, dict[str, Tensor], dict[str, Tensor]]] = []
    for at in range(len(turns)):
        with torch.no_grad():
            for tensors in received:
                for name, each in tensors.items():
                    dict((*model.named_parameters(), *model.named_buffers()))[name].copy_(each)
        model.train()
        try:
            report: Report | str = strategy.train_turn(
                model, turns.experience(at), turns.stream(at), turns.turn(at), states[at]
            )
        except DivergedError as error:
            report = str(error)
        found.append((report, *tensors_of(model)))
    return found


def difference(one: Tensor, other: Tensor) -> float:
    """Return the distance of two tensors relative to the size of the first, where it has one."""
    if one.dtype == torch.bool or not one.is_floating_point():
        return 0.0 if torch.equal(one, other) else float("inf")
    size = max(float(one.double().norm()), 1e-8)
    return float((one.double() - other.double()).norm()) / size


def compare(
    strategy: FunctionalContinual,
    build: Callable[[], nn.Module],
    clock: Clock,
    formulation: Any,
    tolerance: float,
    chunk: int | None = None,
    state_tolerance: float | None = None,
) -> list[CohortReport]:
    """Train a cohort over rounds in both ways, states carried on, and check that they agree."""
    model, lone = build(), build()
    trainer = strategy.cohort_trainer(model, torch.device("cpu"), formulation)
    if chunk is not None and trainer.formulation != "loop":
        trainer.chunk = chunk
    received = tensors_of(model)
    before = {name: each.clone() for name, each in received[0].items()}
    ours: dict[int, State] = {}
    theirs: dict[int, State] = {}
    last: dict[int, int] = {}
    reports = []
    for server_round in range(clock.rounds):
        turns = clock.turns(server_round, last)
        ids = turns.client_ids.tolist()
        expected = alone(strategy, lone, received, turns, [theirs.get(c, State()) for c in ids])
        states = [ours.get(c, State()) for c in ids] if trainer.keeps_state else []
        report = trainer.train(*received, turns, states)
        reports.append(report)
        assert trainer.keeps_state == strategy.keeps_state
        assert len(report.states) == (len(ids) if trainer.keeps_state else 0)
        sums: dict[str, Tensor] = {}
        for at, (client, (own, parameters, buffers)) in enumerate(zip(ids, expected, strict=True)):
            if isinstance(own, str):
                assert report.diverged[at] == own
                continue
            assert at not in report.diverged
            assert report.parameters.keys() == parameters.keys()
            for name, each in parameters.items():
                assert difference(each, report.parameters[name][at]) <= tolerance, (client, name)
                sums[name] = sums.get(name, torch.zeros_like(each)) + each
            for name, each in report.buffers.items():
                assert difference(buffers[name], each[at]) <= tolerance, (client, name)
            assert report.steps[at] == own.steps
            assert report.replayed[at] == own.replayed
            slack = 10 * max(tolerance, 1e-6)
            assert abs(report.losses[at] - own.loss) <= slack * abs(own.loss) + 1e-7
            assert report.metrics.keys() == own.metrics.keys()
            for key, value in own.metrics.items():
                assert abs(report.metrics[key][at] - value) <= slack * value
            theirs[client] = own.state
            last[client] = int(turns.experiences[at])
            if trainer.keeps_state:
                state = report.states[at]
                check_states(own.state, state, state_tolerance or 100 * tolerance)
                ours[client] = copied(state)
        assert all(torch.equal(received[0][name], each) for name, each in before.items())
        if sums:
            count = sum(1 for own, *_ in expected if not isinstance(own, str))
            received = ({name: each / count for name, each in sums.items()}, received[1])
            before = {name: each.clone() for name, each in received[0].items()}
    return reports


def copied(state: State) -> State:
    """Return `state` as it is after a trip to other memory."""
    return State({name: each.clone() for name, each in state.tensors.items()}, dict(state.values))


def check_states(one: State, other: State, tolerance: float) -> None:
    """Check that two states agree in names, values, shapes and, within tolerance, numbers."""
    assert one.values == other.values
    assert list(one.tensors) == list(other.tensors)
    for name, each in one.tensors.items():
        assert each.shape == other.tensors[name].shape, name
        assert each.dtype == other.tensors[name].dtype, name
        assert difference(each, other.tensors[name]) <= tolerance, name
