"""Rounds and experiences: the Flower ServerApp, over any `flwr.serverapp.strategy.Strategy`."""

import hashlib
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedlearn import aggregation_state, records
from fedlearn.cohort import CohortGrid, cohort_size
from fedlearn.cohorts.sampler import CohortSampler, Told, candidates_at, sample_clients
from fedlearn.cohorts.uniform import Uniform
from fedlearn.evaluation import Evaluator
from fedlearn.faults import Faults
from fedlearn.grids import Roster, RunFailedError
from fedlearn.ledger import OUTCOMES, Ledger
from fedlearn.schedule import Schedule
from fedlearn.scoreboard import Accuracies, Scoreboard, jsonable
from fedlearn.screening import Screened, ScreenedStack, check_evaluation, is_finite, screen
from fedlearn.seeding import borrowed_global_rng, seed
from fedlearn.spans import span
from fedlearn.stacked import Instructions, Replies
from fedlearn.types import Scenario

Bound = Callable[[int], str | None]
"""Given the number of replies, None or one line: why the aggregation cannot use so few."""


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
        max_failed_rounds: So many failed rounds in a row end the run. A round that only `faults`
            kept from changing anything is neither a failed one nor a success: it is not counted.
        cohort: Chooses who trains in a round.
        faults: Whose replies are lost.
    """

    run_seed: int
    fraction_train: float
    fraction_evaluate: float
    evaluate_every: int
    max_failed_rounds: int
    cohort: CohortSampler = Uniform()  # noqa: RUF009 - frozen
    faults: Faults = Faults()  # noqa: RUF009 - frozen


class Server:
    """Trains the global model over the whole stream and has it measured.

    Attributes:
        parameters: The global parameters by name.
        buffers: The global buffers by name.
        scoreboard: What was measured so far.
        ledger: What it cost so far.
        rounds: Rounds completed.
        told: What cohorts may depend on beside the round.
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
        self._track = emit
        model = build_model()
        self.parameters = records.parameters_of(model)
        self.buffers = records.buffers_of(model)
        self._frozen = [name for name, each in model.named_parameters() if not each.requires_grad]
        self.scoreboard = Scoreboard(scenario, schedule, model, evaluator)
        self.ledger = Ledger()
        self.rounds = 0
        self.told = Told()
        sizes = scenario.shares.sizes()
        self._sizes = (torch.ones_like(sizes) if scenario.elsewhere else sizes).numpy()
        self._acknowledged: dict[int, int] = {}
        self._failed_in_a_row = 0

    @property
    def digest(self) -> str:
        """The sha256 of the global weights."""
        return digest_of({**self.parameters, **self.buffers})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that the server knows after a round, so that another can go on from there.

        No later round changes it. Random draws derive from the seed and the round, so there is no
        more to it; what clients keep is theirs (see `used_turns`).

        Returns:
            Tensors by name, and JSON values.

        Raises:
            UnsavableError: The aggregation keeps something that cannot be saved.
        """
        kept, aggregation = aggregation_state.capture(self._aggregation)
        measured, scoreboard = self.scoreboard.state()
        parts = {
            "parameters": self.parameters,
            "buffers": self.buffers,
            "aggregation": kept,
            "scoreboard": measured,
        }
        tensors = {f"{part}/{name}": each for part in parts for name, each in parts[part].items()}
        return tensors, {
            "rounds": self.rounds,
            "failed_in_a_row": self._failed_in_a_row,
            "acknowledged": dict(self._acknowledged),
            "told": self.told.state(),
            "ledger": self.ledger.state(),
            "scoreboard": scoreboard,
            "aggregation": aggregation,
        }

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from a `state` of a server of the same configuration; `run` does what is left."""

        def part(name: str) -> dict[str, Tensor]:
            own = f"{name}/"
            return {n.removeprefix(own): t for n, t in tensors.items() if n.startswith(own)}

        # in the order of our own, which aggregations may go by
        for mine, found in ((self.parameters, part("parameters")), (self.buffers, part("buffers"))):
            mine.update({name: found[name].to(mine[name].device) for name in mine})
        aggregation_state.bring_back(self._aggregation, part("aggregation"), values["aggregation"])
        self.scoreboard.restore(part("scoreboard"), values["scoreboard"])
        self.ledger.restore(values["ledger"])
        self.told.restore(values["told"])
        self.rounds, self._failed_in_a_row = values["rounds"], values["failed_in_a_row"]
        self._acknowledged = {int(k): each for k, each in values["acknowledged"].items()}

    def run(self, grid: Grid, after_round: Callable[[], None] | None = None) -> None:
        """Run every round that is left.

        Args:
            grid: Where the clients are.
            after_round: Called once a round is over, all of it, if given.

        Raises:
            RunFailedError: `max_failed_rounds` rounds in a row changed nothing.
        """
        with span("query"):
            roster = Roster(grid, self._scenario.num_clients, self._warn)
        board = self.scoreboard
        if not self.rounds:
            with span("baseline"):
                board.baseline = board.of_experiences(self._test(board.topics())[0])
        for server_round in range(self.rounds + 1, self._schedule.num_rounds + 1):
            roster.gather()
            with span("round", round=server_round):
                accuracy = self._round(grid, roster, server_round)
            finishing = self._schedule.finishing(server_round)
            present = set(self._schedule.present(server_round).tolist()) if finishing else set()
            for experience, clients in finishing:
                here = {k: n for k, n in roster.of(clients).items() if k in present}
                with span("experience", experience=experience):
                    self._end_experience(grid, here, server_round, experience, clients, accuracy)
            self.rounds = server_round
            if after_round is not None:
                after_round()

    def _round(self, grid: Grid, roster: Roster, server_round: int) -> Accuracies:
        """Take one round; return the new model's accuracy by topic, NaN where not tested."""
        started = time.perf_counter()
        # Step 1: the cohort, a pure function of (seed, round) and of what was told before.
        with span("cohort"):
            cohort = self._cohort(server_round, roster)
            dropped = self._dropped(cohort, server_round)
            client_of = {node_id: client_id for client_id, node_id in roster.of(cohort).items()}

        # Step 2: the aggregation writes its instructions; each client gets a copy of its own.
        with span("configure"):
            messages = self._addressed(
                self._aggregation.configure_train,
                CohortGrid(grid, list(client_of)),
                client_of,
                server_round,
                dropped,
            )
            down_bytes = _wire_bytes(messages)

        # Step 3: the clients train.
        sent = time.perf_counter()
        with span("train"):
            replies = grid.send_and_receive(messages)
            if not isinstance(replies, Replies):
                replies = list(replies)
        train_s = time.perf_counter() - sent

        # Step 4: only sound replies go on, in the order of client ids; some are lost on purpose.
        with span("screen"):
            screened = (
                ScreenedStack(replies, cohort, dropped)
                if isinstance(replies, Replies)
                else screen(
                    replies,
                    client_of,
                    self.parameters,
                    self.buffers,
                    lambda client_id: self._most_examples(client_id, server_round),
                    dropped,
                )
            )
        told = screened.told()
        self.told.book(cohort, told.losses)

        # Step 5: the new global model, and which clients may commit their state.
        with span("aggregate"):
            aggregated, failure = self._aggregate(screened, server_round)
        if failure is None:
            self._acknowledged.update(dict.fromkeys(screened.accepted, server_round))

        # Step 6: measure and tell.
        evaluation = time.perf_counter()
        with span("evaluate"):
            server, accuracy = self._evaluate(server_round)
        evaluate_s = time.perf_counter() - evaluation
        self.ledger.up_bytes += screened.up_bytes
        self.ledger.down_bytes += down_bytes
        self.ledger.train_s += train_s
        self.ledger.steps += told.steps
        self.ledger.replayed += told.replayed
        for outcome in OUTCOMES:
            self.ledger.turns[outcome] += len(getattr(screened, outcome))
        self.ledger.state_bytes.update(told.state_bytes)
        self.ledger.round_s.append(time.perf_counter() - started)
        self._emit(
            {
                "event": "round",
                "round": server_round,
                "experience": self._schedule.stage(server_round),
                "server": server,
                "clients": told.clients,
                "idle": screened.idle,
                "dropped": screened.dropped,
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
        self._count_failure(failure, server_round, self._is_injected(screened))
        return accuracy

    def _cohort(self, server_round: int, roster: Roster) -> list[int]:
        plan, schedule = self._plan, self._schedule
        candidates = candidates_at(
            server_round,
            schedule,
            self._sizes,
            plan.run_seed,
            plan.fraction_train,
            roster.reachable,
        )
        return [] if candidates is None else plan.cohort.choose(candidates, self.told)

    def _dropped(self, cohort: Sequence[int], server_round: int) -> set[int]:
        faults = self._plan.faults
        if not faults.drop_out:
            return set()
        return {k for k in cohort if faults.lost(self._plan.run_seed, k, server_round)}

    def _addressed(
        self,
        configure: Callable[[int, ArrayRecord, ConfigRecord, Grid], Iterable[Message]],
        grid: Grid,
        client_of: Mapping[int, int],
        server_round: int,
        dropped: Collection[int] = (),
    ) -> Sequence[Message]:
        """Return the aggregation's messages, each made its client's own, in client-id order.

        Those whose reply is going to be `dropped` are named to executors that reduce replies.
        """
        if not client_of:
            return []
        config = ConfigRecord({records.SERVER_ROUND: server_round})
        arrays = records.to_arrays(self.parameters)
        with borrowed_global_rng(seed(self._plan.run_seed, "configure", server_round)):
            configured = configure(server_round, arrays, config, grid)
        if isinstance(configured, Instructions):
            acknowledged = [self._acknowledged.get(k, 0) for k in client_of.values()]
            unread = frozenset(n for n, k in client_of.items() if k in dropped)
            return configured.addressed(self.buffers, server_round, acknowledged, unread)
        buffers = records.to_arrays(self.buffers)
        messages = sorted(configured, key=lambda each: client_of[each.metadata.dst_node_id])
        for message in messages:
            client_id = client_of[message.metadata.dst_node_id]
            message.content = records.addressed(message.content, buffers, server_round)
            records.acknowledge(message, self._acknowledged.get(client_id, 0))
        return messages

    def _most_examples(self, client_id: int, server_round: int) -> int:
        if self._scenario.elsewhere:
            return sys.maxsize
        if self._schedule.at_sites:
            return int(self._sizes[client_id].max())
        index = self._schedule.experience(client_id, server_round)
        return 0 if index is None else len(self._scenario.experience(client_id, index))

    def _aggregate(
        self, screened: Screened, server_round: int
    ) -> tuple[dict[str, Any], str | None]:
        """Set the new global model; return the aggregation's metrics and why it failed, if so."""
        accepted = screened.accepted
        if not accepted:
            wrong = {**screened.quarantined, **screened.failed}
            if wrong:
                client_id = min(wrong)
                return {}, f"no valid reply; client {client_id}: {wrong[client_id]}"
            if screened.diverged:
                return {}, "every client that trained diverged"
            if screened.dropped:
                return {}, "no reply is left"
            return {}, None  # everyone sampled was idle: nothing to learn is not a failure
        if self._bound is not None and (reason := self._bound(len(accepted))):
            return {}, reason
        try:
            with borrowed_global_rng(seed(self._plan.run_seed, "aggregate", server_round)):
                arrays, aggregated = self._aggregation.aggregate_train(
                    server_round, screened.replies
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
        self.buffers = screened.mean_buffers()
        return dict(aggregated or {}), None

    def _is_injected(self, screened: Screened) -> bool:
        """Whether a round with too few replies had enough without those that were lost."""
        got, lost = len(screened.accepted), len(screened.dropped)
        if not got:
            wrong = screened.diverged or screened.quarantined or screened.failed
            return lost > 0 and not wrong
        return self._bound is not None and bool(self._bound(got)) and not self._bound(got + lost)

    def _count_failure(self, failure: str | None, server_round: int, injected: bool) -> None:
        if failure is None:
            self._failed_in_a_row = 0
            return
        if injected:
            self._warn(f"round {server_round} changed nothing, because of faults: {failure}")
            return
        self._failed_in_a_row += 1
        self._warn(f"round {server_round} failed, the global model stays: {failure}")
        if self._failed_in_a_row >= self._plan.max_failed_rounds:
            raise RunFailedError(
                f"{self._failed_in_a_row} rounds in a row failed, the last one: {failure}"
            )

    def _emit(self, event: Mapping[str, Any]) -> None:
        with span("track"):
            self._track(event)

    def _warn(self, message: str) -> None:
        self._emit({"event": "warning", "message": message})

    def _test(self, topics: Iterable[int]) -> tuple[Accuracies, Accuracies]:
        return self.scoreboard.test(self.parameters, self.buffers, topics)

    def _evaluate(self, server_round: int) -> tuple[dict[str, Any], Accuracies]:
        """Test the global model where this round asks for it.

        Returns:
            The event's section, empty without a test, and the accuracy by topic, NaN likewise.
        """
        board = self.scoreboard
        ends = bool(self._schedule.finishing(server_round))
        asked = ends or server_round % self._plan.evaluate_every == 0
        begun = board.topics(server_round) if asked else []
        if not begun:
            return {}, np.full(len(self._scenario.topics), np.nan)
        accuracy, loss = self._test(board.topics() if ends else begun)
        section = {
            "accuracy": board.of_seen(accuracy, server_round),
            "loss": board.of_seen(loss, server_round),
            "per_experience": jsonable(board.of_experiences(accuracy)),
        }
        return section, accuracy

    def _end_experience(
        self,
        grid: Grid,
        nodes: Mapping[int, int],
        server_round: int,
        experience: int,
        clients: Sequence[int],
        accuracy: Accuracies,
    ) -> None:
        """Have those who finish an experience test the global model; tell, once all have.

        Args:
            grid: Where the clients are.
            nodes: Node ids of those of `clients` that can be asked.
            server_round: 1-based.
            experience: What ends.
            clients: For whom.
            accuracy: (M,) of the global model, by topic.
        """
        if self._plan.fraction_evaluate > 0 and nodes:
            self.scoreboard.read_clients(experience, self._ask_clients(grid, nodes, server_round))
        if self.scoreboard.finish(experience, clients, accuracy):
            self._emit(
                {
                    "event": "experience",
                    "experience": experience,
                    "round": server_round,
                    **self.scoreboard.row(experience),
                }
            )

    def _ask_clients(
        self, grid: Grid, nodes: Mapping[int, int], server_round: int
    ) -> dict[int, Message]:
        size = cohort_size(len(nodes), self._plan.fraction_evaluate)
        chosen = sample_clients(
            self._plan.run_seed, "evaluate", server_round, np.array(list(nodes)), size
        )
        client_of = {nodes[client_id]: client_id for client_id in chosen}
        messages = self._addressed(
            self._aggregation.configure_evaluate,
            CohortGrid(grid, list(client_of)),
            client_of,
            server_round,
        )
        self.ledger.down_bytes += _wire_bytes(messages)
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


def make_server_app(server: Server, after_round: Callable[[], None] | None = None) -> ServerApp:
    """Return the Flower app that runs `server`; see `Server.run`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        server.run(grid, after_round)

    return app


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over the tensors' float32 little-endian bytes, names sorted."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(array.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _wire_bytes(messages: Sequence[Message]) -> int:
    if isinstance(messages, Instructions):
        return messages.wire_bytes
    return sum(records.wire_bytes(message.content) for message in messages)


def _named(reasons: Mapping[int, str]) -> list[dict[str, Any]]:
    return [{"client": client_id, "reason": reasons[client_id]} for client_id in sorted(reasons)]
