"""Rounds and experiences: the Flower ServerApp, over any `flwr.serverapp.strategy.Strategy`."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedlearn import records
from fedlearn.cohort import CohortGrid, sample_clients
from fedlearn.evaluation import Evaluator
from fedlearn.ledger import OUTCOMES, Ledger
from fedlearn.schedule import Schedule
from fedlearn.scoreboard import Accuracies, Scoreboard, jsonable
from fedlearn.screening import Screened, average_buffers, check_evaluation, is_finite, screen
from fedlearn.seeding import borrowed_global_rng, seed
from fedlearn.types import Scenario

Bound = Callable[[int], str | None]
"""Given the number of replies, None or one line: why the aggregation cannot use so few."""


class RunFailedError(RuntimeError):
    """The run cannot learn: too many rounds in a row changed nothing."""


@dataclass(frozen=True)
class RoundPlan:
    """What the server does each round.

    Attributes:
        run_seed: The run's seed.
        fraction_train: Share of the clients that train in a round, in (0, 1].
        fraction_evaluate: Share of the clients that test the model on their held-out samples at
            an experience's end, in [0, 1].
        evaluate_every: The seen experiences are tested every so many rounds, and at an
            experience's end always.
        max_failed_rounds: So many failed rounds in a row end the run.
    """

    run_seed: int
    fraction_train: float
    fraction_evaluate: float
    evaluate_every: int
    max_failed_rounds: int


class Server:
    """Trains the global model over the whole stream and has it measured.

    Attributes:
        parameters: The global parameters by name.
        buffers: The global buffers by name.
        scoreboard: What was measured so far.
        ledger: What it cost so far.
        rounds: Rounds completed.
    """

    def __init__(
        self,
        scenario: Scenario,
        schedule: Schedule,
        aggregation: Strategy,
        bound: Bound | None,
        build_model: Callable[[], nn.Module],
        evaluator: Evaluator,
        plan: RoundPlan,
        emit: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """Make a server.

        Args:
            scenario: Tests the model, and says what a client can honestly report.
            schedule: The task clock.
            aggregation: Makes the new global parameters of each round.
            bound: What the aggregation needs of a round, if anything.
            build_model: Builds the initial model; the same on every call.
            evaluator: Scores a model on an experience.
            plan: What happens each round.
            emit: Receives every event (see `fedlearn.tracking.tracker`).
        """
        self._scenario = scenario
        self._schedule = schedule
        self._aggregation = aggregation
        self._bound = bound
        self._plan = plan
        self._emit = emit
        model = build_model()
        self.parameters = records.parameters_of(model)
        self.buffers = records.buffers_of(model)
        self._frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
        self.scoreboard = Scoreboard(scenario, model, evaluator)
        self.ledger = Ledger()
        self.rounds = 0
        self._acknowledged: dict[int, int] = {}
        self._failed_in_a_row = 0

    @property
    def digest(self) -> str:
        """The sha256 of the global weights."""
        return digest_of({**self.parameters, **self.buffers})

    @property
    def learned(self) -> int:
        """Experiences learned to their end."""
        return self.rounds // self._schedule.rounds_per_experience

    def run(self, grid: Grid) -> None:
        """Run every round.

        Raises:
            RunFailedError: `max_failed_rounds` rounds in a row changed nothing.
        """
        nodes = self._find_clients(grid)
        everything = range(self._scenario.num_experiences)
        self.scoreboard.baseline, _ = self._test(everything)
        for server_round in range(1, self._schedule.num_rounds + 1):
            self._round(grid, nodes, server_round)
            if self._schedule.ends_experience(server_round):
                self._end_experience(grid, nodes, server_round)
            self.rounds = server_round

    def _find_clients(self, grid: Grid) -> dict[int, int]:
        """Return each client's node id: Flower's ids are transport, and random on some grids."""
        asked = [
            Message(RecordDict(), dst_node_id=node_id, message_type="query")
            for node_id in grid.get_node_ids()
        ]
        nodes: dict[int, int] = {}
        for reply in grid.send_and_receive(asked):
            if reply.has_error():
                continue
            told = records.metrics_of(reply).get(records.PARTITION_ID)
            if isinstance(told, int) and 0 <= told < self._scenario.num_clients:
                nodes[told] = reply.metadata.src_node_id
        for client_id in sorted(set(range(self._scenario.num_clients)) - nodes.keys()):
            self._warn(f"client {client_id} did not answer; the run goes on without it")
        return dict(sorted(nodes.items()))

    def _round(self, grid: Grid, nodes: Mapping[int, int], server_round: int) -> None:
        started = time.perf_counter()
        # Step 1: the cohort, a pure function of (seed, round).
        cohort = sample_clients(
            self._plan.run_seed, "cohort", server_round, list(nodes), self._plan.fraction_train
        )
        client_of = {nodes[client_id]: client_id for client_id in cohort}

        # Step 2: the aggregation writes its instructions; each client gets a copy of its own.
        messages = self._addressed(
            self._aggregation.configure_train,
            CohortGrid(grid, list(client_of)),
            client_of,
            server_round,
        )
        down_bytes = sum(records.wire_bytes(message.content) for message in messages)

        # Step 3: the clients train.
        sent = time.perf_counter()
        replies = list(grid.send_and_receive(messages))
        train_s = time.perf_counter() - sent

        # Step 4: only sound replies go on, in the order of client ids.
        screened = screen(
            replies,
            client_of,
            self.parameters,
            self.buffers,
            lambda client_id: self._most_examples(client_id, server_round),
        )
        clients = {str(k): _client_event(message) for k, message in screened.accepted.items()}

        # Step 5: the new global model, and which clients may commit their state.
        aggregated, failure = self._aggregate(screened, server_round)
        if failure is None:
            self._acknowledged.update(dict.fromkeys(screened.accepted, server_round))

        # Step 6: measure and tell.
        evaluation = time.perf_counter()
        server = self._evaluate(server_round)
        evaluate_s = time.perf_counter() - evaluation
        self.ledger.up_bytes += screened.up_bytes
        self.ledger.down_bytes += down_bytes
        self.ledger.train_s += train_s
        self.ledger.steps += sum(int(client["steps"]) for client in clients.values())
        self.ledger.replayed += sum(int(client["replayed"]) for client in clients.values())
        for outcome in OUTCOMES:
            self.ledger.turns[outcome] += len(getattr(screened, outcome))
        self.ledger.state_bytes.update(
            {client_id: clients[str(client_id)]["state_bytes"] for client_id in screened.accepted}
        )
        self.ledger.round_s.append(time.perf_counter() - started)
        self._emit(
            {
                "event": "round",
                "round": server_round,
                "experience": self._schedule.experience(0, server_round),
                "server": server,
                "clients": clients,
                "idle": screened.idle,
                "diverged": _named(screened.diverged),
                "quarantined": _named(screened.quarantined),
                "failed": _named(screened.failed),
                "comm": {"up_bytes": screened.up_bytes, "down_bytes": down_bytes},
                "time": {
                    "round_s": self.ledger.round_s[-1],
                    "train_s": train_s,
                    "evaluate_s": evaluate_s,
                },
                "aggregated": aggregated,
            }
        )
        self._count_failure(failure, server_round)

    def _addressed(
        self,
        configure: Callable[[int, ArrayRecord, ConfigRecord, Grid], Iterable[Message]],
        grid: Grid,
        client_of: Mapping[int, int],
        server_round: int,
    ) -> list[Message]:
        """Return the aggregation's messages, each made its client's own, in client-id order."""
        config = ConfigRecord({records.SERVER_ROUND: server_round})
        arrays = records.to_arrays(self.parameters)
        with borrowed_global_rng(seed(self._plan.run_seed, "configure", server_round)):
            messages = list(configure(server_round, arrays, config, grid))
        messages.sort(key=lambda message: client_of[message.metadata.dst_node_id])
        buffers = records.to_arrays(self.buffers)
        for message in messages:
            client_id = client_of[message.metadata.dst_node_id]
            records.address(message, buffers, server_round, self._acknowledged.get(client_id, 0))
        return messages

    def _most_examples(self, client_id: int, server_round: int) -> int:
        index = self._schedule.experience(client_id, server_round)
        return len(self._scenario.experience(client_id, index))

    def _aggregate(
        self, screened: Screened, server_round: int
    ) -> tuple[dict[str, Any], str | None]:
        """Set the new global model; return the aggregation's metrics and why it failed, if so."""
        accepted = screened.accepted
        if not accepted:
            if screened.quarantined or screened.failed:
                return {}, "no valid reply"
            if screened.diverged:
                return {}, "every client that trained diverged"
            return {}, None  # everyone sampled was idle: nothing to learn is not a failure
        if self._bound is not None and (reason := self._bound(len(accepted))):
            return {}, reason
        weights = {client_id: screened.num_examples(client_id) for client_id in accepted}
        try:
            with borrowed_global_rng(seed(self._plan.run_seed, "aggregate", server_round)):
                arrays, aggregated = self._aggregation.aggregate_train(
                    server_round, list(accepted.values())
                )
        except AppExitException as error:
            return {}, " ".join(str(error).split())
        if arrays is None:
            return {}, f"{type(self._aggregation).__name__} returned no model"
        parameters = {
            name: tensor.to(self.parameters[name])
            for name, tensor in records.to_tensors(arrays).items()
        }
        # The mean of equals may miss them by a bit, and an optimiser on the server has momentum.
        parameters |= {name: self.parameters[name] for name in self._frozen}
        for name, tensor in parameters.items():
            if tensor.shape != self.parameters[name].shape or not is_finite(tensor):
                return {}, f"the aggregated {name!r} is not finite or has another shape"
        self.parameters = parameters
        self.buffers = average_buffers(screened.buffers, weights)
        return dict(aggregated or {}), None

    def _count_failure(self, failure: str | None, server_round: int) -> None:
        if failure is None:
            self._failed_in_a_row = 0
            return
        self._failed_in_a_row += 1
        self._warn(f"round {server_round} failed, the global model stays: {failure}")
        if self._failed_in_a_row >= self._plan.max_failed_rounds:
            raise RunFailedError(
                f"{self._failed_in_a_row} rounds in a row failed, the last one: {failure}"
            )

    def _warn(self, message: str) -> None:
        self._emit({"event": "warning", "message": message})

    def _test(self, experiences: Iterable[int]) -> tuple[Accuracies, Accuracies]:
        return self.scoreboard.test(self.parameters, self.buffers, experiences)

    def _evaluate(self, server_round: int) -> dict[str, Any]:
        """Test the global model where this round asks for it; return the event's section."""
        ends = self._schedule.ends_experience(server_round)
        if not ends and server_round % self._plan.evaluate_every:
            return {}
        now = self._schedule.experience(0, server_round)
        everything, seen = range(self._scenario.num_experiences), range(now + 1)
        accuracy, loss = self._test(everything if ends else seen)
        if ends:
            self.scoreboard.accuracy[now] = accuracy
        return {
            "accuracy": float(accuracy[: now + 1].mean()),
            "loss": float(loss[: now + 1].mean()),
            "per_experience": jsonable(accuracy),
        }

    def _end_experience(self, grid: Grid, nodes: Mapping[int, int], server_round: int) -> None:
        """Have clients test the global model on their own held-out samples; tell the result."""
        now = self._schedule.experience(0, server_round)
        if self._plan.fraction_evaluate > 0:
            self.scoreboard.read_clients(now, self._ask_clients(grid, nodes, server_round))
        self._emit(
            {
                "event": "experience",
                "experience": now,
                "round": server_round,
                **self.scoreboard.row(now),
            }
        )

    def _ask_clients(
        self, grid: Grid, nodes: Mapping[int, int], server_round: int
    ) -> dict[int, Message]:
        chosen = sample_clients(
            self._plan.run_seed, "evaluate", server_round, list(nodes), self._plan.fraction_evaluate
        )
        client_of = {nodes[client_id]: client_id for client_id in chosen}
        messages = self._addressed(
            self._aggregation.configure_evaluate,
            CohortGrid(grid, list(client_of)),
            client_of,
            server_round,
        )
        self.ledger.down_bytes += sum(records.wire_bytes(each.content) for each in messages)
        lowest = -math.inf if self._scenario.train.regression else 0.0
        replies: dict[int, Message] = {}
        for reply in grid.send_and_receive(messages):
            client_id = client_of.get(reply.metadata.src_node_id)
            if client_id is None:
                continue
            try:
                if reply.has_error():
                    raise ValueError(reply.error.reason)
                check_evaluation(reply, self._scenario.num_experiences, lowest)
            except ValueError as error:
                self._warn(f"client {client_id}'s evaluation is left out: {error}")
            else:
                replies[client_id] = reply
        return replies


def make_server_app(server: Server) -> ServerApp:
    """Return the Flower app that runs `server`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        server.run(grid)

    return app


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over the tensors' float32 little-endian bytes, names sorted."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _client_event(message: Message) -> dict[str, Any]:
    told = dict(records.metrics_of(message))
    return {
        "loss": told.pop(records.TRAIN_LOSS, None),
        "num_examples": told.pop(records.NUM_EXAMPLES),
        "steps": told.pop(records.STEPS, 0),
        "replayed": told.pop(records.REPLAYED, 0),
        "state_bytes": told.pop(records.STATE_BYTES, 0),
        **{name.replace("-", "_"): value for name, value in told.items()},
    }


def _named(reasons: Mapping[int, str]) -> list[dict[str, Any]]:
    return [{"client": client_id, "reason": reasons[client_id]} for client_id in sorted(reasons)]
