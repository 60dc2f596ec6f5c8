"""One client's turn: the Flower ClientApp."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import cast

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedlearn import records
from fedlearn.client_state import ClientState
from fedlearn.evaluation import Evaluator
from fedlearn.faults import Faults
from fedlearn.lr_schedules import Constant, LrSchedule, factor_at
from fedlearn.schedule import Schedule
from fedlearn.screening import is_finite
from fedlearn.types import ContinualStrategy, DivergedError, Report, Scenario, Turn


@dataclass(frozen=True)
class LocalWork:
    """How much a client trains in one turn.

    Attributes:
        run_seed: The run's seed.
        epochs: Local epochs a turn, at least 1.
        batch_size: Samples a step, at least 1.
        steps: Optimiser steps a turn, at least 1, in place of whole epochs; None for `epochs`.
        lr_schedule: What the learning rate is multiplied by, round by round.
        faults: Who has time for a part of a turn only.
    """

    run_seed: int
    epochs: int
    batch_size: int
    steps: int | None = None
    lr_schedule: LrSchedule = Constant()  # noqa: RUF009 - frozen
    faults: Faults = Faults()  # noqa: RUF009 - frozen


class Client:
    """Everything that the clients of one process share; who a client is comes with its context.

    There is one model object a process. Each turn gives it the received weights and leaves the
    trained ones in the reply; nothing of one client stays for the next but in its own state.
    """

    def __init__(
        self,
        scenario: Scenario,
        schedule: Schedule,
        continual: ContinualStrategy,
        build_model: Callable[[], nn.Module],
        evaluator: Evaluator,
        work: LocalWork,
    ) -> None:
        self._scenario = scenario
        self._schedule = schedule
        self._continual = continual
        self._build_model = build_model
        self._evaluator = evaluator
        self._work = work

    @cached_property
    def _model(self) -> nn.Module:
        return self._build_model()

    def train(self, message: Message, context: Context) -> Message:
        """Take one turn: restore, train, stage the new state, reply.

        A turn that diverges stages nothing, so that the next one starts where this one did.
        """
        client_id = client_id_of(context)
        instruction = records.read_instruction(message)
        kept = ClientState(context.state)
        kept.settle(instruction.acknowledged)
        now = self._schedule.experience(client_id, instruction.server_round)
        if now is None:
            return records.idle_reply(message)
        experience = self._scenario.experience(client_id, now)
        if not len(experience):
            return records.idle_reply(message)
        state, last = kept.committed()
        stream = partial(self._scenario.experience, client_id)
        turn = Turn(
            run_seed=self._work.run_seed,
            client_id=client_id,
            server_round=instruction.server_round,
            first_epoch=self._first_epoch(client_id, instruction.server_round),
            epochs=self._work.epochs,
            batch_size=self._work.batch_size,
            previous=stream(last) if last is not None and last != now else None,
            config=instruction.config,
            steps=self._work.steps,
            lr_factor=factor_at(
                self._work.lr_schedule, self._schedule, client_id, instruction.server_round
            ),
            progress=self._schedule.progress(client_id, instruction.server_round),
            work=self._work.faults.work(self._work.run_seed, client_id, instruction.server_round),
        )
        records.load(self._model, instruction.parameters, instruction.buffers)
        self._model.train()
        try:
            report = self._continual.train_turn(self._model, experience, stream, turn, state)
            check_finite(report, self._model)
        except DivergedError as error:
            return records.diverged_reply(message, str(error))
        kept.stage(report.state, instruction.server_round, now)
        return records.train_reply(
            message,
            self._model,
            num_examples=len(experience),
            loss=report.loss,
            steps=report.steps,
            replayed=report.replayed,
            state_bytes=report.state.num_bytes,
            metrics=report.metrics,
        )

    def _first_epoch(self, client_id: int, server_round: int) -> int:
        """Return how many local epochs come before a round's, as if every turn had been taken."""
        rounds, steps = self._schedule.rounds_before(client_id, server_round), self._work.steps
        if steps is None:
            return int(rounds.sum()) * self._work.epochs
        epochs = 0
        for index, count in enumerate(rounds.tolist()):
            batches = math.ceil(
                len(self._scenario.experience(client_id, index)) / self._work.batch_size
            )
            epochs += count * math.ceil(steps / batches) if batches else 0
        return epochs

    def evaluate(self, message: Message, context: Context) -> Message:
        """Reply with the model's accuracy on what this client set aside, by experience."""
        instruction = records.read_instruction(message)
        records.load(self._model, instruction.parameters, instruction.buffers)
        scores = [
            self._evaluator.score(self._model, experience)
            for experience in self._scenario.held_out_stream(client_id_of(context))
        ]
        total = sum(score.total for score in scores)
        correct = sum(score.correct for score in scores)
        metrics = MetricRecord(
            {
                records.NUM_EXAMPLES: total,
                records.CORRECT: correct,
                records.ACCURACY: [score.accuracy for score in scores],
            }
        )
        return Message(RecordDict({records.METRICS: metrics}), reply_to=message)

    def query(self, message: Message, context: Context) -> Message:
        """Reply with who this client is."""
        metrics = MetricRecord({records.PARTITION_ID: client_id_of(context)})
        return Message(RecordDict({records.METRICS: metrics}), reply_to=message)


def check_finite(report: Report, model: nn.Module) -> None:
    """Check that a turn ended with numbers.

    Raises:
        DivergedError: The loss or a weight is not finite.
    """
    if not math.isfinite(report.loss):
        raise DivergedError(f"the loss is {report.loss}")
    tensors = {**records.parameters_of(model), **records.buffers_of(model)}
    floats = [tensor for tensor in tensors.values() if tensor.is_floating_point()]
    # One pass, one wait for the device: a sum is finite only if all its terms are. Large finite
    # terms can overflow it, so a sum that is not finite is looked at again, tensor by tensor.
    if floats and not torch.stack([tensor.sum() for tensor in floats]).isfinite().all():
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                raise DivergedError(f"{name} holds NaN or infinity")


def client_id_of(context: Context) -> int:
    """Return the client id that Flower keeps in the node's configuration."""
    return cast(int, context.node_config[records.PARTITION_ID])


def make_client_app(client: Client) -> ClientApp:
    """Return the Flower app that answers train, evaluate and query messages."""
    app = ClientApp()
    app.train()(client.train)
    app.evaluate()(client.evaluate)
    app.query()(client.query)
    return app
