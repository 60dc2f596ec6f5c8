"""Turns that diverge cost themselves only; and what the engine tells of every turn's health."""

import math

import pytest
import torch
from federation import PlainSgd, federate, make_scenario, norm_model, tiny_model
from torch import nn

from fedlearn import records
from fedlearn.client_state import ClientState
from fedlearn.grids import RunFailedError
from fedlearn.lr_schedules import Cosine
from fedlearn.server import digest_of
from fedlearn.types import DivergedError, Report
from strategies.aggregation.fedavg import FedAvg

LOST, AT = 2, 2  # the client, and the round


class LosesItsLoss(PlainSgd):
    """Plain SGD whose rate is absurd for one client in one round."""

    def __init__(self, clients=(LOST,), rounds=(AT,)):
        super().__init__()
        self.clients, self.rounds = clients, rounds

    def train_turn(self, model, experience, stream, turn, state):
        wild = turn.client_id in self.clients and turn.server_round in self.rounds
        self.lr = math.inf if wild else 0.1
        return super().train_turn(model, experience, stream, turn, state)


def _idle_then(message, reply, context):
    if records.read_instruction(message).server_round == AT:
        return records.idle_reply(message)
    return reply


def _rounds(events):
    return [event for event in events if event["event"] == "round"]


def test_the_others_are_averaged_as_if_it_had_been_idle_also_in_later_rounds():
    diverged, events, _ = federate(continual=LosesItsLoss(), rounds_per_experience=3)
    idle, _, _ = federate(faults={LOST: _idle_then}, rounds_per_experience=3)
    assert diverged.digest == idle.digest != federate(rounds_per_experience=3)[0].digest
    round_ = _rounds(events)[AT - 1]
    assert sorted(round_["clients"]) == ["0", "1", "3"]
    assert [each["client"] for each in round_["diverged"]] == [LOST]
    assert "nan" in round_["diverged"][0]["reason"] or "inf" in round_["diverged"][0]["reason"]
    assert round_["quarantined"] == round_["failed"] == round_["idle"] == []
    assert all(each["diverged"] == [] for each in _rounds(events) if each is not round_)
    assert not [event for event in events if event["event"] == "warning"]


def test_its_state_goes_back_and_the_next_turn_goes_on_from_there():
    seen = []

    class Watched(LosesItsLoss):
        def train_turn(self, model, experience, stream, turn, state):
            if turn.client_id == LOST:
                seen.append((turn.server_round, int(state.values.get("turns", 0))))
            return super().train_turn(model, experience, stream, turn, state)

    _, _, grid = federate(continual=Watched(), rounds_per_experience=4)
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (6, 4), (7, 5), (8, 6)]
    state, _ = ClientState(grid.context(LOST + 1).state).committed()
    assert state.values["turns"] == 6
    assert state.values["consolidated"] == [0]


def test_a_first_turn_of_an_experience_that_diverges_is_consolidated_when_it_succeeds():
    _, _, grid = federate(continual=LosesItsLoss(rounds=(3,)), rounds_per_experience=2)
    kept = ClientState(grid.context(LOST + 1).state)
    kept.settle(4)
    assert kept.committed()[0].values["consolidated"] == [0]


def test_a_round_in_which_everyone_who_trained_diverged_has_failed():
    lost = LosesItsLoss(clients=range(4), rounds=(2, 3))
    server, events, _ = federate(continual=lost, rounds_per_experience=3)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert warnings == [
        f"round {number} failed, the global model stays: every client that trained diverged"
        for number in (2, 3)
    ]
    assert server.ledger.turns == {
        "accepted": 16,
        "idle": 0,
        "dropped": 0,
        "diverged": 8,
        "quarantined": 0,
        "failed": 0,
    }
    with pytest.raises(RunFailedError, match="2 rounds in a row failed"):
        federate(
            make_scenario(empty={(0, 0)}),
            continual=lost,
            rounds_per_experience=3,
            max_failed_rounds=2,
        )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda model, report: setattr(report, "loss", math.nan), "the loss is nan"),
        (lambda model, report: model[0].weight.data.fill_(math.inf), "0.weight holds NaN"),
        (lambda model, report: model[1].running_var.fill_(math.nan), "1.running_var holds NaN"),
    ],
    ids=["loss", "parameter", "buffer"],
)
def test_what_is_not_a_number_at_the_end_of_a_turn_has_diverged(spoil, reason):
    class Spoilt(PlainSgd):
        def train_turn(self, model, experience, stream, turn, state):
            report = super().train_turn(model, experience, stream, turn, state)
            if turn.client_id == LOST:
                spoil(model, report)
            return report

    _, events, _ = federate(continual=Spoilt(), build_model=norm_model)
    for event in _rounds(events):
        assert [each["client"] for each in event["diverged"]] == [LOST]
        assert reason in event["diverged"][0]["reason"]


def test_large_finite_weights_are_no_divergence():
    class Large(PlainSgd):
        def train_turn(self, model, experience, stream, turn, state):
            report = super().train_turn(model, experience, stream, turn, state)
            with torch.no_grad():
                model[0].weight.fill_(3e38)  # their sum overflows
            return report

    _, events, _ = federate(continual=Large(), rounds_per_experience=1)
    assert _rounds(events)[0]["diverged"] == []


def test_a_reason_stays_one_short_line_whoever_wrote_it():
    class Talkative(PlainSgd):
        def train_turn(self, model, experience, stream, turn, state):
            if turn.client_id == LOST:
                raise DivergedError("lost\nand " + "so " * 1000)
            return super().train_turn(model, experience, stream, turn, state)

    _, events, _ = federate(continual=Talkative())
    reason = _rounds(events)[0]["diverged"][0]["reason"]
    assert reason.startswith("lost and so")
    assert len(reason) <= 200


def test_what_clients_keep_is_booked_as_of_their_last_turn():
    class Keeping(PlainSgd):
        """Keeps as many numbers as its id plus the round's."""

        def train_turn(self, model, experience, stream, turn, state):
            report = super().train_turn(model, experience, stream, turn, state)
            report.state.tensors = {"x": torch.zeros(turn.client_id + turn.server_round)}
            return report

    server, events, _ = federate(continual=Keeping())
    told = [
        [event["clients"][str(client_id)]["state_bytes"] for client_id in range(4)]
        for event in _rounds(events)
    ]
    assert told == [[4 * (k + r) for k in range(4)] for r in range(1, 5)]
    assert server.ledger.summary(1.0)["storage"] == {
        "client_state_bytes_max": 4 * 7,
        "client_state_bytes_mean": 4 * 5.5,
    }
    assert _rounds(events)[0]["aggregated"]["state-bytes"] == pytest.approx(4 * 2.5)


def test_what_a_strategy_reports_is_in_the_events_and_in_the_servers_mean():
    class Telling(PlainSgd):
        def train_turn(self, model, experience, stream, turn, state):
            report = super().train_turn(model, experience, stream, turn, state)
            return Report(
                report.state, report.loss, report.steps, 0, {"grad-norm": float(turn.client_id)}
            )

    _, events, _ = federate(continual=Telling())
    for event in _rounds(events):
        assert [event["clients"][str(k)]["grad_norm"] for k in range(4)] == [0, 1, 2, 3]
        assert event["aggregated"]["grad-norm"] == 1.5


class Recording(PlainSgd):
    """Takes down the turns it is given."""

    def __init__(self):
        super().__init__()
        self.turns = []

    def train_turn(self, model, experience, stream, turn, state):
        self.turns.append((turn, len(experience)))
        return super().train_turn(model, experience, stream, turn, state)


def test_the_clock_of_a_turn_of_steps_never_goes_back_over_an_epoch():
    """Experiences of 3 batches, 5 steps a turn: 2 epochs each; an empty one counts nothing."""
    continual = Recording()
    scenario = make_scenario(num_experiences=4, empty={(1, 1)})
    federate(scenario, continual=continual, rounds_per_experience=2, steps=5)
    for client_id, epochs in ((0, [0, 2, 4, 6, 8, 10, 12, 14]), (1, [0, 2, 4, 6, 8, 10])):
        turns = [turn for turn, _ in continual.turns if turn.client_id == client_id]
        assert [turn.first_epoch for turn in turns] == epochs
        assert {turn.steps for turn in turns} == {5}


def test_a_turns_rate_follows_the_schedule_whoever_was_sampled():
    continual = Recording()
    federate(continual=continual, rounds_per_experience=3, fraction_train=0.5, lr_schedule=Cosine())
    assert len(continual.turns) == 12
    for turn, _ in continual.turns:
        assert turn.lr_factor == Cosine().factor(turn.server_round - 1, 6)


class Drifting(FedAvg):
    """Moves every array a little, as an optimiser with momentum on the server would."""

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        moved = {name: tensor + 1e-3 for name, tensor in records.to_tensors(arrays).items()}
        return records.to_arrays(moved), metrics


def _half_frozen() -> nn.Sequential:
    model = tiny_model()
    model[0].requires_grad_(False)
    return model


def test_frozen_parameters_stay_bit_for_bit_whatever_the_aggregation_does():
    class Careful(PlainSgd):
        def train_turn(self, model, experience, stream, turn, state):
            return Report(state, 0.0, 1)

    aggregation = Drifting(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
    server, _, _ = federate(aggregation=aggregation, continual=Careful(), build_model=_half_frozen)
    fresh = dict(tiny_model().named_parameters())
    for name, tensor in server.parameters.items():
        assert torch.equal(tensor, fresh[name]) == name.startswith("0.")
    assert server.digest != digest_of({name: each.detach() for name, each in fresh.items()})
