"""One client's turn: the Flower ClientApp."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import cast

import numpy as np
import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fedlearn import records
from fedlearn.client_state import ClientState
from fedlearn.evaluation import Evaluator
from fedlearn.local_work import LocalWork
from fedlearn.schedule import Schedule
from fedlearn.screening import is_finite
from fedlearn.spans import span
from fedlearn.turns import NEVER, Integers, Turns
from fedlearn.types import ContinualStrategy, DivergedError, Plain, Report, Scenario


class Client:
    """Everything that the clients of one process share; who a client is comes with its context.

    There is one model object a process. Each turn gives it the received weights and leaves the
    trained ones in the reply; nothing of one client stays for the next but in its own state.

    Attributes:
        scenario: What clients learn.
        schedule: The task clock.
        continual: How they learn it.
        evaluator: Scores a model on their held-out samples.
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
        self.scenario = scenario
        self.schedule = schedule
        self.continual = continual
        self._build_model = build_model
        self.evaluator = evaluator
        self._work = work

    @cached_property
    def model(self) -> nn.Module:
        """The one model object of the process."""
        return self._build_model()

    def on(self, device: torch.device, scenario: Scenario) -> "Client":
        """Return the same for one device of several.

        Args:
            device: Where its model is.
            scenario: The part of the scenario whose training samples are there.
        """

        def build_model() -> nn.Module:
            return self._build_model().to(device)

        return Client(
            scenario, self.schedule, self.continual, build_model, self.evaluator, self._work
        )

    def train(self, message: Message, context: Context) -> Message:
        """Take one turn: restore, train, stage the new state, reply.

        A turn that diverges stages nothing, so that the next one starts where this one did.
        """
        client_id = client_id_of(context)
        with span("restore"):
            instruction = records.read_instruction(message)
            kept = ClientState(context.state)
            kept.settle(instruction.acknowledged)
            now = self.schedule.experience(client_id, instruction.server_round)
            if now is None or not len(self.scenario.shares[client_id, now]):
                return records.idle_reply(message)
            state, last = kept.committed()
        turns = self.turns(
            np.array([client_id]),
            np.array([now]),
            np.array([NEVER if last is None else last]),
            instruction.server_round,
            instruction.config,
        )
        experience, turn = turns.experience(0), turns.turn(0)
        with span("load"):
            records.load(self.model, instruction.parameters, instruction.buffers)
            self.model.train()
        stream = turns.stream(0)
        try:
            with span("train_turn"):
                report = self.continual.train_turn(self.model, experience, stream, turn, state)
            with span("check"):
                check_finite(report, self.model)
        except DivergedError as error:
            return records.diverged_reply(message, str(error))
        with span("stage"):
            kept.stage(report.state, instruction.server_round, now)
        with span("reply"):
            return records.train_reply(
                message,
                self.model,
                num_examples=len(experience),
                loss=report.loss,
                steps=report.steps,
                replayed=report.replayed,
                state_bytes=report.state.num_bytes,
                metrics=report.metrics,
            )

    def turns(
        self,
        client_ids: Integers,
        experiences: Integers,
        last: Integers,
        server_round: int,
        config: Mapping[str, Plain],
    ) -> Turns:
        """Return the turns of clients in a round; see `fedlearn.local_work.LocalWork.turns`."""
        return self._work.turns(
            self.scenario, self.schedule, client_ids, experiences, last, server_round, config
        )

    def evaluate(self, message: Message, context: Context) -> Message:
        """Reply with the model's accuracy on what this client set aside, by experience."""
        (reply,) = self.evaluate_cohort([message], np.array([client_id_of(context)]))
        return reply

    def evaluate_cohort(self, messages: Sequence[Message], client_ids: Integers) -> list[Message]:
        """Reply for clients that were sent the same model.

        Args:
            messages: At least one.
            client_ids: (n,) to whom each was sent.
        """
        instruction = records.read_instruction(messages[0])
        records.load(self.model, instruction.parameters, instruction.buffers)
        correct, totals = self.evaluator.tally(self.model, self.scenario, client_ids)
        accuracy = correct / np.where(totals, totals, np.nan)
        return [
            Message(
                RecordDict(
                    {
                        records.METRICS: MetricRecord(
                            {
                                records.NUM_EXAMPLES: int(totals[at].sum()),
                                records.CORRECT: float(correct[at].sum()),
                                records.ACCURACY: accuracy[at].tolist(),
                            }
                        )
                    }
                ),
                reply_to=message,
            )
            for at, message in enumerate(messages)
        ]

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

    @app.train()
    def train(message: Message, context: Context) -> Message:
        with span("turn", client=client_id_of(context)):
            return client.train(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        with span("evaluate", client=client_id_of(context)):
            return client.evaluate(message, context)

    app.query()(client.query)
    return app
