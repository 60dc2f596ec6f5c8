"""Whole runs under other clocks: what is measured when, who takes part, and what stays the same."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from federation import CLASSES, PlainSgd, federate, make_scenario, tiny_model
from numpy.testing import assert_allclose, assert_array_equal

from fedlearn import records
from fedlearn.client_state import ClientState
from fedlearn.lr_schedules import Cosine
from fedlearn.runtimes.inprocess import InProcessGrid
from fedlearn.schedule import Schedule
from fedlearn.types import Shares, Topic
from scenarios.clocks import Clock
from strategies.aggregation.fedavg import FedAvg

CLIENTS, EXPERIENCES, ROUNDS = 5, 4, 3
CLOCKS = {
    "in_step": Clock(),
    "shuffled": Clock("shuffled"),
    "staggered": Clock(delay=5),
    "uneven": Clock(spread=0.7),
    "churn": Clock(joining=0.3, leaving=0.3, pausing=0.6),
    "all": Clock("shuffled", 5, 0.7, 0.2, 0.3, 0.4),
}


class Recorded(FedAvg):
    """Federated averaging that remembers the global model of every round that made one."""

    def __init__(self):
        super().__init__(min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1)
        self.made = {}

    def aggregate_train(self, server_round, replies):
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.made[server_round] = records.to_tensors(arrays)
        return arrays, metrics

    def model_after(self, server_round):
        """The global model at the end of a round, 0 for the initial one."""
        model = tiny_model()
        made = [each for each in self.made if each <= server_round]
        if made:
            model.load_state_dict(self.made[max(made)])
        return model.eval()


class Diary(PlainSgd):
    """Plain SGD that writes down every turn."""

    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.turns = []

    def train_turn(self, model, experience, stream, turn, state):
        self.turns.append((experience, turn))
        return super().train_turn(model, experience, stream, turn, state)


class Asked(InProcessGrid):
    """Remembers who was asked what, by round."""

    def __init__(self, executor):
        super().__init__(executor)
        self.asked = []

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.message_type != "query":
                instruction = records.read_instruction(message)
                self.asked.append(
                    (
                        instruction.server_round,
                        message.metadata.message_type,
                        message.metadata.dst_node_id - 1,
                    )
                )
        return super().push_messages(messages)


def blurred(scenario):
    """The same scenario, whose test samples are hard to tell apart, so that accuracies differ."""
    noise = torch.randn(scenario.test.x.shape, generator=torch.Generator().manual_seed(1))
    return replace(scenario, test=replace(scenario.test, x=scenario.test.x + 2 * noise))


def ordered(scenario, orders):
    """The same scenario with each client's experiences in an order of its own."""

    def moved(shares):
        return Shares.of(
            [[shares[k, topic] for topic in topics] for k, topics in enumerate(orders.tolist())]
        )

    return replace(
        scenario,
        orders=orders,
        shares=moved(scenario.shares),
        held_out=moved(scenario.held_out),
    )


def under(clock, seed=0, rounds=ROUNDS):
    """A scenario and a schedule under a clock."""
    scenario = blurred(make_scenario(CLIENTS, EXPERIENCES))
    orders = clock.orders(scenario.orders, seed)
    schedule = clock.schedule(scenario.num_clients, scenario.num_experiences, rounds, seed)
    return ordered(scenario, orders), schedule


def accuracy_of(model, experience):
    x, y = experience.gather()
    return float((model(x).argmax(1) == y).double().mean())


def rounds_in(events):
    return [event for event in events if event["event"] == "round"]


@pytest.mark.parametrize("name", CLOCKS)
def test_the_scoreboard_is_the_mean_over_clients_at_the_end_of_their_own_experiences(name):
    scenario, schedule = under(CLOCKS[name])
    aggregation = Recorded()
    server, events, _ = federate(
        scenario, aggregation, schedule=schedule, continual=PlainSgd(lr=0.5)
    )
    tests, orders = scenario.test_stream(), scenario.orders.tolist()
    board = server.scoreboard
    clients, experiences = range(CLIENTS), range(EXPERIENCES)

    expected = np.zeros((EXPERIENCES, EXPERIENCES))
    for i in experiences:
        for client_id in clients:
            model = aggregation.model_after(int(schedule.ends[client_id, i]))
            for j in experiences:
                expected[i, j] += accuracy_of(model, tests[orders[client_id][j]]) / CLIENTS
    assert_allclose(board.accuracy, expected, atol=1e-12)
    assert len(np.unique(expected)) > 4  # it matters who is tested when, and on what

    initial = aggregation.model_after(0)
    start = [[accuracy_of(initial, tests[topic]) for topic in topics] for topics in orders]
    assert_allclose(board.baseline, np.mean(start, axis=0), atol=1e-12)

    for client_id in clients:
        for i in experiences:
            end = int(schedule.ends[client_id, i])
            told = board.client_accuracy.get(client_id, np.full((EXPERIENCES,) * 2, np.nan))[i]
            if client_id not in schedule.present(end):
                assert np.isnan(told).all()  # nobody to ask
                continue
            model = aggregation.model_after(end)
            own = [
                accuracy_of(model, scenario.held_out_experience(client_id, j)) for j in experiences
            ]
            assert_allclose(told, own, atol=1e-12)
    json.dumps(events, allow_nan=False)


@pytest.mark.parametrize("name", CLOCKS)
def test_a_round_tells_the_mean_over_clients_of_what_each_has_entered(name):
    scenario, schedule = under(CLOCKS[name], seed=1)
    aggregation = Recorded()
    _, events, _ = federate(scenario, aggregation, schedule=schedule)
    tests, orders = scenario.test_stream(), scenario.orders.tolist()
    told = rounds_in(events)
    assert [event["round"] for event in told] == list(range(1, schedule.num_rounds + 1))
    for event in told:
        server_round = event["round"]
        model = aggregation.model_after(server_round)
        by_topic = [accuracy_of(model, each) for each in tests]
        means = []
        for client_id, topics in enumerate(orders):
            entered = int((schedule.begins[client_id] <= server_round).sum())
            if entered:
                means.append(np.mean([by_topic[topic] for topic in topics[:entered]]))
        assert event["server"]["accuracy"] == pytest.approx(np.mean(means), abs=1e-12)
        assert event["experience"] == schedule.stage(server_round)
        for j, shown in enumerate(event["server"]["per_experience"]):
            if shown is not None:  # tested in all of the clients' orders
                mean = np.mean([by_topic[topics[j]] for topics in orders])
                assert shown == pytest.approx(mean, abs=1e-12)


def test_in_step_the_scoreboard_is_the_accuracy_to_the_last_bit():
    scenario = blurred(
        make_scenario(7, 2)
    )  # the mean of seven equal numbers need not be that number
    aggregation = Recorded()
    server, events, _ = federate(scenario, aggregation, continual=PlainSgd(lr=0.05))
    for i, end in enumerate((2, 4)):
        model = aggregation.model_after(end)
        exact = [accuracy_of(model, each) for each in scenario.test_stream()]
        assert server.scoreboard.accuracy[i].tolist() == exact
        assert rounds_in(events)[end - 1]["server"]["per_experience"] == exact
    assert len(set(server.scoreboard.accuracy.ravel()) - {0.0, 1.0}) > 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["staggered", "uneven", "all"])
def test_an_experience_is_told_once_when_the_last_client_finishes_it(name, seed):
    scenario, schedule = under(CLOCKS[name], seed)
    _, events, _ = federate(scenario, schedule=schedule)
    told = [event for event in events if event["event"] == "experience"]
    assert [event["experience"] for event in told] == list(range(EXPERIENCES))
    assert [event["round"] for event in told] == schedule.ends.max(0).tolist()
    for at, event in enumerate(events):
        if event["event"] == "experience":
            assert events[at - 1]["event"] in ("round", "experience")
            assert None not in event["accuracy"]
            before = [each for each in events[:at] if each["event"] == "round"]
            assert len(before) == event["round"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("fraction", [1.0, 0.4])
@pytest.mark.parametrize("name", ["churn", "all"])
def test_who_is_away_is_asked_nothing(name, fraction, seed):
    scenario, schedule = under(CLOCKS[name], seed)
    _, events, grid = federate(
        scenario,
        schedule=schedule,
        fraction_train=fraction,
        grid_type=Asked,
        max_failed_rounds=1,
        run_seed=seed,
    )
    assert len(rounds_in(events)) == schedule.num_rounds
    assert not [event for event in events if event["event"] == "warning"]
    for event in rounds_in(events):
        server_round = event["round"]
        present = schedule.present(server_round).tolist()
        asked = {kind: set() for kind in ("train", "evaluate")}
        for at, kind, client_id in grid.asked:
            if at == server_round:
                asked[kind].add(client_id)
        size = max(1, round(fraction * len(present))) if present else 0
        assert asked["train"] <= set(present)
        assert len(asked["train"]) == size
        assert {int(client_id) for client_id in event["clients"]} == asked["train"]
        ending = {k for _, who in schedule.finishing(server_round) for k in who}
        assert asked["evaluate"] == ending & set(present)
    assert any(len(schedule.present(r)) < CLIENTS for r in range(1, schedule.num_rounds + 1))


def test_rounds_where_nobody_is_there_change_nothing_and_fail_nothing():
    in_step = Schedule.in_step(3, 2, 4)
    away = np.array([[2, 4], [1, 5], [2, 9]])  # nobody in rounds 2 and 3; client 2 never again
    aggregation = Recorded()
    server, events, _ = federate(
        make_scenario(3, 2),
        aggregation,
        schedule=replace(in_step, away=away),
        max_failed_rounds=1,
    )
    told = {event["round"]: event for event in rounds_in(events)}
    assert sorted(aggregation.made) == [1, 4, 5, 6, 7, 8]
    assert [sorted(told[r]["clients"]) for r in (1, 2, 3, 4, 5, 8)] == [
        ["0", "2"],
        [],
        [],
        ["0"],
        ["0", "1"],
        ["0", "1"],
    ]
    for server_round in (2, 3):
        event = told[server_round]
        assert event["server"] == told[1]["server"]
        assert (event["idle"], event["failed"], event["aggregated"]) == ([], [], {})
        assert event["comm"] == {"up_bytes": 0, "down_bytes": 0}
    assert np.isfinite(server.scoreboard.accuracy).all()
    # At the end of experience 0, in round 4, only client 0 could be asked; clients 0 and 1 later.
    heard = server.scoreboard.client_accuracy
    assert sorted(heard) == [0, 1]
    assert np.isnan(heard[1][0]).all()
    assert np.isfinite(heard[1][1]).all()


def test_a_run_may_begin_before_anybody_is_there():
    schedule = Schedule.in_step(2, 2, 2)
    later = Schedule(schedule.begins + 3, schedule.ends + 3)
    now, _, _ = federate(make_scenario(2, 2), schedule=schedule)
    then, events, _ = federate(make_scenario(2, 2), schedule=later, max_failed_rounds=1)
    assert then.digest == now.digest
    assert_array_equal(then.scoreboard.accuracy, now.scoreboard.accuracy)
    assert [bool(event["server"]) for event in rounds_in(events)] == [False] * 3 + [True] * 4
    json.dumps(events, allow_nan=False)


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("pauses", [[0, 0, 0], [4, 0, 0], [2, 1, 3]])
def test_a_single_client_learns_the_same_at_another_time(pauses, steps):
    in_step = Schedule.in_step(1, 3, 2)
    shift = np.cumsum(pauses)
    later = Schedule(in_step.begins + shift, in_step.ends + shift)
    runs = [
        federate(make_scenario(1, 3), schedule=schedule, steps=steps, max_failed_rounds=1)
        for schedule in (in_step, later)
    ]
    (now, _, grid), (then, _, later_grid) = runs
    assert now.digest == then.digest
    assert_array_equal(now.scoreboard.accuracy, then.scoreboard.accuracy)
    assert_array_equal(now.scoreboard.client_accuracy[0], then.scoreboard.client_accuracy[0])
    states = [ClientState(each.context(1).state).committed()[0] for each in (grid, later_grid)]
    assert states[0].values == states[1].values
    assert states[0].tensors["anchor"].equal(states[1].tensors["anchor"])


@pytest.mark.parametrize("steps", [None, 5])
def test_a_delayed_client_draws_what_it_would_have_drawn(steps):
    plain, late = Diary(), Diary()
    in_step = Schedule.in_step(3, 2, 2)
    delays = np.array([[0], [3], [1]])
    federate(make_scenario(3, 2), schedule=in_step, continual=plain, steps=steps, epochs=2)
    federate(
        make_scenario(3, 2),
        schedule=Schedule(in_step.begins + delays, in_step.ends + delays),
        continual=late,
        steps=steps,
        epochs=2,
    )

    def drawn(diary):
        return sorted(
            (turn.client_id, experience.index, turn.first_epoch, turn.seed("batches"))
            for experience, turn in diary.turns
        )

    assert drawn(plain) == drawn(late)
    assert len({each[2] for each in drawn(plain) if each[0] == 0}) == 4  # no draw twice


def test_a_client_that_was_away_finds_its_draws_where_the_clock_has_them():
    diary, whole = Diary(), Diary()
    schedule = Schedule.in_step(2, 3, 2)
    away = np.array([[1, 1], [2, 5]])
    _, _, grid = federate(
        make_scenario(2, 3), schedule=replace(schedule, away=away), continual=diary
    )
    federate(make_scenario(2, 3), schedule=schedule, continual=whole)
    mine, all_of_mine = (
        {t.server_round: (t.first_epoch, t.progress) for _, t in each.turns if t.client_id == 1}
        for each in (diary, whole)
    )
    assert mine == {r: all_of_mine[r] for r in (1, 5, 6)}
    state, last = ClientState(grid.context(2).state).committed()
    assert last == 2
    assert state.values["consolidated"] == [0]  # it missed experience 1 wholly


@pytest.mark.parametrize("order", [[2, 0, 3, 1], [3, 2, 1, 0], [0, 1, 2, 3]])
def test_an_order_of_its_own_is_the_same_stream_reordered_by_hand(order):
    scenario = blurred(make_scenario(1, 4))
    own = ordered(scenario, torch.tensor([order]))
    assert [each.classes for each in own.stream(0)] == [scenario.classes[t] for t in order]
    by_hand = replace(
        own,
        topics=tuple(scenario.topics[topic] for topic in order),
        orders=torch.arange(4).expand(1, -1),
    )
    (first, events, _), (second, again, _) = federate(own), federate(by_hand)
    assert first.digest == second.digest
    assert_array_equal(first.scoreboard.accuracy, second.scoreboard.accuracy)
    assert_array_equal(first.scoreboard.baseline, second.scoreboard.baseline)
    assert_array_equal(first.scoreboard.client_accuracy[0], second.scoreboard.client_accuracy[0])
    servers = [[event["server"] for event in rounds_in(each)] for each in (events, again)]
    assert servers[0] == servers[1]
    assert (first.digest == federate(scenario)[0].digest) == (order == [0, 1, 2, 3])


def test_topics_that_nobody_meets_change_nothing():
    scenario = make_scenario(3, 2)
    rest = torch.arange(len(scenario.test.y))
    wider = replace(
        scenario,
        topics=(Topic((0,), rest), *scenario.topics, Topic(tuple(range(CLASSES)), rest)),
        orders=scenario.orders + 1,
    )
    plain, more = federate(scenario)[0], federate(wider)[0]
    assert plain.digest == more.digest
    assert_array_equal(plain.scoreboard.accuracy, more.scoreboard.accuracy)


@pytest.mark.parametrize("name", ["staggered", "uneven", "all"])
def test_rates_over_an_experience_follow_each_clients_own(name):
    scenario, schedule = under(CLOCKS[name], seed=2, rounds=4)
    diary, rates = Diary(), Cosine(over="experience", warmup=1)
    if int((schedule.ends - schedule.begins).min()) < 1:  # as `check_warmup` would refuse it
        rates = Cosine(over="experience")
    federate(scenario, schedule=schedule, continual=diary, lr_schedule=rates)
    assert diary.turns
    seen = set()
    for experience, turn in diary.turns:
        begin = int(schedule.begins[turn.client_id, experience.index])
        end = int(schedule.ends[turn.client_id, experience.index])
        assert begin <= turn.server_round <= end
        over, rounds = turn.server_round - begin, end - begin + 1
        assert turn.lr_factor == rates.factor(over, rounds)
        assert turn.progress == over / rounds
        seen.add(turn.lr_factor)
    assert len(seen) > 3
    alike = {
        (turn.server_round, turn.lr_factor) for _, turn in diary.turns if turn.server_round == 3
    }
    assert len(alike) > 1  # clients do not go by each other's clocks


def test_rates_over_the_run_are_the_same_for_all():
    scenario, schedule = under(CLOCKS["all"], seed=2)
    diary, rates = Diary(), Cosine()
    federate(scenario, schedule=schedule, continual=diary, lr_schedule=rates)
    for _, turn in diary.turns:
        assert turn.lr_factor == rates.factor(turn.server_round - 1, schedule.num_rounds)


@pytest.mark.parametrize("name", CLOCKS)
def test_equal_seeds_give_equal_runs_under_every_clock(name):
    scenario, schedule = under(CLOCKS[name])
    first, again, other = (
        federate(scenario, schedule=schedule, run_seed=seed, fraction_train=0.5)[0]
        for seed in (0, 0, 1)
    )
    assert first.digest == again.digest != other.digest
    assert_array_equal(first.scoreboard.accuracy, again.scoreboard.accuracy)
    assert all(math.isfinite(value) for value in first.scoreboard.accuracy.ravel())
