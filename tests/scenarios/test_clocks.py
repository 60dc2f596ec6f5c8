"""Clocks: orders and schedules against definitions by brute force."""

import numpy as np
import pytest
import torch
from federation import make_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.local_work import LocalWork
from fedlearn.lr_schedules import Cosine, LrSchedule, Step
from fedlearn.schedule import Schedule
from fedlearn.turns import NEVER, Turns
from scenarios.clocks import Clock

BLOBS = make_scenario(1)  # turns of whole epochs follow from the clock, whatever is learnt
SEEDS = st.integers(0, 2**32)
SIZES = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 7))  # K, T, rounds
SHARES = st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1))
CLOCKS = st.builds(
    Clock,
    order=st.sampled_from(["same", "shuffled"]),
    delay=st.integers(0, 9),
    spread=st.one_of(st.just(0.0), st.floats(0, 0.99)),
    joining=SHARES,
    leaving=SHARES,
    pausing=SHARES,
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any clock's schedule, or one with pauses between experiences and nobody there at first."""
    sizes = draw(SIZES)
    if draw(st.booleans()):
        return draw(CLOCKS).schedule(*sizes, draw(SEEDS))
    shape = (sizes[0], sizes[1])
    rng = np.random.default_rng(draw(SEEDS))
    lengths, pauses = rng.integers(1, 5, shape), rng.integers(0, 3, shape)
    ends = (lengths + pauses).cumsum(1)
    return Schedule(ends - lengths + 1, ends, rng.integers(1, 9, (sizes[0], 2)))


def rounds_of(schedule: Schedule) -> range:
    return range(1, schedule.num_rounds + 1)


def turns_of_all(work: LocalWork, schedule: Schedule, server_round: int) -> Turns:
    """The turns of everybody who is in an experience."""
    found = schedule.experiences(np.arange(len(schedule.begins)), server_round)
    who = np.flatnonzero(found >= 0)
    never = np.full(len(who), NEVER)
    return work.turns(BLOBS, schedule, who, found[who], never, server_round, {})


def by_hand(schedule: Schedule, client_id: int, server_round: int) -> int | None:
    """The experience that a client is in, looked for one by one."""
    spans = zip(schedule.begins[client_id], schedule.ends[client_id], strict=True)
    found = [index for index, (begin, end) in enumerate(spans) if begin <= server_round <= end]
    assert len(found) <= 1
    return found[0] if found else None


@given(schedules())
def test_a_client_is_where_its_begins_and_ends_say(schedule: Schedule) -> None:
    clients, length = schedule.begins.shape
    assert schedule.num_experiences == length
    assert schedule.num_rounds == schedule.ends.max()
    for server_round in rounds_of(schedule):
        for client_id in range(clients):
            now = by_hand(schedule, client_id, server_round)
            assert schedule.experience(client_id, server_round) == now
            past = [
                [r for r in range(1, server_round) if by_hand(schedule, client_id, r) == index]
                for index in range(length)
            ]
            before = schedule.rounds_before(client_id, server_round)
            assert before.tolist() == [len(rounds) for rounds in past]


@given(
    schedules(),
    st.integers(1, 3),
    st.sampled_from([Cosine(), Cosine("experience"), Step("experience", every=2)]),
)
def test_a_turn_stands_where_its_clients_rounds_counted_one_by_one_have_it(
    schedule: Schedule, epochs: int, rates: LrSchedule
) -> None:
    work = LocalWork(run_seed=0, epochs=epochs, batch_size=1, lr_schedule=rates)
    for server_round in rounds_of(schedule):
        turns = turns_of_all(work, schedule, server_round)
        for at, client_id in enumerate(turns.client_ids.tolist()):
            met = [by_hand(schedule, client_id, r) for r in rounds_of(schedule)]
            now = met[server_round - 1]
            over, rounds = met[: server_round - 1].count(now), met.count(now)
            turn = turns.turn(at)
            assert turns.experiences[at] == now
            assert turn.progress == over / rounds
            trained = [each for each in met[: server_round - 1] if each is not None]
            assert turn.first_epoch == len(trained) * epochs
            if rates.over == "run":
                over, rounds = server_round - 1, len(met)
            assert turn.lr_factor == rates.factor(over, rounds)


@given(schedules())
def test_who_is_present_is_in_an_experience_and_not_away(schedule: Schedule) -> None:
    for server_round in rounds_of(schedule):
        expected = []
        for client_id in range(len(schedule.begins)):
            away = False
            if schedule.away is not None:
                first, until = schedule.away[client_id]
                away = server_round in range(first, until)
            if by_hand(schedule, client_id, server_round) is not None and not away:
                expected.append(client_id)
        assert schedule.present(server_round).tolist() == expected
        everybody = np.arange(len(schedule.begins))
        found = schedule.experiences(everybody, server_round).tolist()
        each = [by_hand(schedule, client_id, server_round) for client_id in everybody]
        assert found == [-1 if index is None else index for index in each]


@given(schedules())
def test_what_is_entered_and_finished_and_the_stage_follow_from_that(schedule: Schedule) -> None:
    clients, length = schedule.begins.shape
    finished: list[tuple[int, int]] = []
    done = [0] * length
    for server_round in rounds_of(schedule):
        behind = [index for index in range(length) if done[index] == clients]
        assert schedule.stage(server_round) == min(len(behind), length - 1)
        entered = schedule.entered(server_round)
        for client_id in range(clients):
            met = {by_hand(schedule, client_id, r) for r in range(1, server_round + 1)} - {None}
            assert entered[client_id] == len(met)
        ending = schedule.finishing(server_round)
        assert [index for index, _ in ending] == sorted({index for index, _ in ending})
        for index, who in ending:
            assert list(who) == sorted(who)
            for client_id in who:
                assert by_hand(schedule, client_id, server_round) == index
                finished.append((client_id, index))
                done[index] += 1
    assert sorted(finished) == [(k, t) for k in range(clients) for t in range(length)]


@given(CLOCKS, SIZES, SEEDS)
def test_a_clocks_experiences_follow_each_other_without_gaps(
    clock: Clock, sizes: tuple[int, int, int], seed: int
) -> None:
    num_clients, num_experiences, rounds = sizes
    schedule = clock.schedule(*sizes, seed)
    begins, ends = schedule.begins, schedule.ends
    assert begins.shape == ends.shape == (num_clients, num_experiences)
    assert (begins[:, 1:] == ends[:, :-1] + 1).all()
    assert begins.min() == 1  # somebody begins in the first round
    assert begins[:, 0].max() <= 1 + clock.delay
    lengths = ends - begins + 1
    assert lengths.min() >= 1
    assert (abs(lengths - rounds) <= rounds * clock.spread + 1e-6).all()
    again = clock.schedule(*sizes, seed)
    assert (again.begins == begins).all()
    assert (again.ends == ends).all()


@given(SIZES, SEEDS)
def test_in_step_is_the_arithmetic_of_one_clock(sizes: tuple[int, int, int], seed: int) -> None:
    num_clients, num_experiences, rounds = sizes
    plain = Schedule.in_step(*sizes)
    for schedule in (plain, Clock().schedule(*sizes, seed), Clock("shuffled").schedule(*sizes, 0)):
        assert schedule.num_rounds == num_experiences * rounds
        assert schedule.away is None
        for server_round in rounds_of(schedule):
            index, over = divmod(server_round - 1, rounds)
            assert schedule.present(server_round).tolist() == list(range(num_clients))
            assert schedule.stage(server_round) == index
            assert schedule.entered(server_round).tolist() == [index + 1] * num_clients
            ending = [(index, list(range(num_clients)))] if over == rounds - 1 else []
            assert schedule.finishing(server_round) == ending
            for client_id in range(num_clients):
                assert schedule.experience(client_id, server_round) == index
                before = schedule.rounds_before(client_id, server_round)
                assert before.sum() == server_round - 1
                assert before[index] == over


@given(SIZES, SEEDS, st.booleans())
def test_every_order_is_a_permutation_and_same_is_the_streams_own(
    sizes: tuple[int, int, int], seed: int, own: bool
) -> None:
    orders = torch.arange(sizes[1]).expand(sizes[0], -1)
    if own:  # each client has topics of its own
        orders = orders + 10 * torch.arange(sizes[0])[:, None]
    assert Clock().orders(orders, seed) is orders
    shuffled = Clock("shuffled").orders(orders, seed)
    assert shuffled.dtype == torch.int64
    assert shuffled.sort(1).values.equal(orders)
    assert shuffled.equal(Clock("shuffled").orders(orders, seed))
    more = torch.cat([orders, orders[:1]])
    assert Clock("shuffled").orders(more, seed)[:-1].equal(shuffled)  # whoever else is there


def test_orders_are_drawn_uniformly_and_from_the_seed() -> None:
    orders = torch.arange(3).expand(6000, -1)
    shuffled = Clock("shuffled").orders(orders, 0)
    counts = torch.unique(shuffled, dim=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 860  # of 1000
    assert counts.max() < 1140
    assert not shuffled.equal(Clock("shuffled").orders(orders, 1))


@pytest.mark.parametrize(
    ("rounds", "spread", "least", "most"),
    [(10, 0.5, 5, 15), (10, 0.7, 3, 17), (100, 0.29, 71, 129), (1, 0.9, 1, 1), (3, 0.4, 2, 4)],
)
def test_lengths_are_uniform_between_their_bounds(
    rounds: int, spread: float, least: int, most: int
) -> None:
    schedule = Clock(spread=spread).schedule(4000, 5, rounds, 0)
    counts = np.bincount((schedule.ends - schedule.begins + 1).ravel())
    expected = 20_000 / (most - least + 1)
    assert not counts[:least].any()
    assert len(counts) == most + 1
    assert (abs(counts[least:] - expected) < 5 * expected**0.5 + 1e-9).all()


def test_delays_are_uniform_and_shift_a_whole_stream() -> None:
    schedule = Clock(delay=4).schedule(5000, 3, 6, 0)
    counts = np.bincount(schedule.begins[:, 0])
    assert counts[0] == 0
    assert len(counts) == 6
    assert (abs(counts[1:] - 1000) < 140).all()
    in_step = Schedule.in_step(5000, 3, 6)
    shift = schedule.begins[:, :1] - 1
    assert (schedule.begins == in_step.begins + shift).all()
    assert (schedule.ends == in_step.ends + shift).all()


def test_joiners_come_later_leavers_go_for_good_and_pauses_end() -> None:
    sizes, last = (9000, 2, 5), 10
    joins = Clock(joining=1.0).schedule(*sizes, 0).away
    leaves = Clock(leaving=1.0).schedule(*sizes, 0).away
    pauses = Clock(pausing=1.0).schedule(*sizes, 0).away
    assert joins is not None
    assert leaves is not None
    assert pauses is not None
    assert (joins[:, 0] == 1).all()
    assert (leaves[:, 1] == last + 1).all()
    for turns in (joins[:, 1], leaves[:, 0]):  # the second round to the last, each as likely
        counts = np.bincount(turns, minlength=last + 1)
        assert not counts[:2].any()
        assert len(counts) == last + 1
        assert (abs(counts[2:] - 1000) < 140).all()
    assert pauses[:, 0].min() == 1
    assert pauses[:, 1].max() == last + 1
    assert (pauses[:, 0] < pauses[:, 1]).all()
    away = (pauses[:, 1] - pauses[:, 0]).mean()
    assert 4.1 < away < 4.5  # one more than the mean distance of two draws of 10, 3.3


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), SEEDS)
@settings(max_examples=25)
def test_the_shares_of_those_who_come_and_go_are_as_asked(
    joining: float, leaving: float, pausing: float, seed: int
) -> None:
    clock = Clock(joining=joining, leaving=leaving, pausing=pausing)
    schedule = clock.schedule(4000, 2, 6, seed)
    if schedule.away is None:
        assert joining == leaving == pausing == 0
        return
    first, until = schedule.away.T
    missing = first < np.minimum(until, 13)
    expected = 1 - (1 - joining) * (1 - leaving) * (1 - pausing)
    assert abs(missing.mean() - expected) < 0.05
    joined = (first == 1) & (until <= 12) & missing
    assert joined.mean() > joining - 0.05


def test_a_clock_leaves_the_global_generators_alone() -> None:
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    clock = Clock("shuffled", 3, 0.5, 0.3, 0.3, 0.3)
    clock.orders(torch.arange(4).expand(5, -1), 0)
    clock.schedule(5, 4, 6, 0)
    assert torch.get_rng_state().equal(before)
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": "random"}, "clock.order=random: must be one of same, shuffled$"),
        ({"delay": -1}, "clock.delay=-1: must be at least 0$"),
        ({"spread": 1.0}, r"clock.spread=1.0: must be in \[0, 1\)$"),
        ({"spread": -0.5}, r"clock.spread=-0.5: must be in \[0, 1\)$"),
        ({"spread": float("nan")}, r"clock.spread=nan: must be in \[0, 1\)$"),
        ({"joining": 1.5}, r"clock.joining=1.5: must be in \[0, 1\]$"),
        ({"leaving": -0.1}, r"clock.leaving=-0.1: must be in \[0, 1\]$"),
        ({"pausing": float("nan")}, r"clock.pausing=nan: must be in \[0, 1\]$"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(arguments, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        Clock(**arguments)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 0, 3), "num_experiences=0: must be at least 1"),
        ((2, 3, 0), "rounds_per_experience=0: must be at least 1"),
    ],
)
def test_there_is_no_time_without_rounds(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        Clock().schedule(*sizes, 0)


def test_equal_clocks_are_equal_whatever_their_number_type() -> None:
    assert repr(Clock(spread=0, joining=1, leaving=0, pausing=1)) == repr(
        Clock(spread=0.0, joining=1.0, leaving=0.0, pausing=1.0)
    )


def test_ten_thousand_clients() -> None:
    schedule = Clock("shuffled", 10, 0.5, 0.1, 0.1, 0.1).schedule(10_000, 20, 10, 0)
    assert sum(len(who) for r in rounds_of(schedule) for _, who in schedule.finishing(r)) == 200_000
