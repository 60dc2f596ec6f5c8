"""Cohort samplers: each one's law, and that a cohort depends on seed, round and past only."""

import dataclasses
import inspect
import itertools
import json
from collections import Counter
from math import inf
from pathlib import Path

import numpy as np
import pytest
import yaml
from federation import federate, make_scenario
from hydra.utils import get_object
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.cli import main
from fedlearn.cohort import cohort_size
from fedlearn.cohorts.availability import DayNight, Trace
from fedlearn.cohorts.by_loss import ByLoss
from fedlearn.cohorts.round_robin import RoundRobin
from fedlearn.cohorts.sampler import (
    Candidates,
    CohortSampler,
    Told,
    candidates_at,
    draw_by_samples,
    sample_clients,
)
from fedlearn.cohorts.uniform import Uniform
from fedlearn.cohorts.weighted import Weighted
from fedlearn.commands.dry_run import describe, estimate
from fedlearn.config.choices import conf_dir
from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from fedlearn.schedule import Schedule

SIZES = [1, 2, 3, 6]
ROUNDS = 8000
SAMPLERS = [Uniform(), Weighted(), RoundRobin(), ByLoss(), ByLoss(4), DayNight(6, 0.4)]


def at(server_round=1, ids=(0, 1, 2, 3), samples=None, size=2, run_seed=0):
    ids = np.array(list(ids))
    samples = np.array([5] * len(ids) if samples is None else samples)
    return Candidates(run_seed, server_round, ids, samples, size)


def write(path: Path, content) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def assert_frequencies(found, expected, number):
    """Check counts of independent events against their probabilities, at 5 standard deviations."""
    for key, probability in expected.items():
        spread = 5 * np.sqrt(number * probability * (1 - probability)) + 1e-9
        assert abs(found.get(key, 0) - number * probability) <= spread, key


# --- what all have in common --------------------------------------------------------------------


def test_a_cohort_is_a_rounded_share_of_the_clients_and_at_least_one():
    assert [cohort_size(10, fraction) for fraction in (0.01, 0.25, 0.36, 1.0)] == [1, 2, 4, 10]


@given(
    st.sampled_from(SAMPLERS),
    st.integers(0, 1000),
    st.integers(1, 50),
    st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True),
    st.data(),
)
def test_a_cohort_is_a_pure_sorted_sample_of_those_who_are_there(
    sampler, run_seed, server_round, ids, data
):
    samples = data.draw(st.lists(st.integers(0, 9), min_size=len(ids), max_size=len(ids)))
    size = data.draw(st.integers(1, len(ids)))
    candidates = at(server_round, sorted(ids), samples, size, run_seed)
    told = Told({k: float(k % 3) for k in ids[1:]}, dict.fromkeys(ids[::2], 1))
    before = dataclasses.asdict(told)
    cohort = sampler.choose(candidates, told)
    assert cohort == sampler.choose(candidates, told)
    assert cohort == sorted(set(cohort))
    assert set(cohort) <= set(ids)
    assert dataclasses.asdict(told) == before
    with_samples = sum(count > 0 for count in samples)
    if isinstance(sampler, Uniform | RoundRobin):
        assert len(cohort) == size
    elif sampler in (Weighted(), ByLoss()):
        assert len(cohort) == min(size, with_samples)
    else:
        assert len(cohort) <= size


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_cohorts_change_with_the_round_and_the_seed(sampler):
    ids = list(range(50))
    draws = {
        tuple(sampler.choose(at(server_round, ids, None, 10, run_seed), Told()))
        for run_seed in range(4)
        for server_round in range(1, 6)
    }
    # round robin is told of no earlier round here, so that all rounds are the first of its pass
    assert len(draws) == (4 if isinstance(sampler, RoundRobin) else 20)


def test_whom_to_choose_from_are_those_who_are_there_with_what_they_hold_now():
    schedule = Schedule(
        np.array([[1, 3], [1, 3], [2, 5]]),
        np.array([[2, 4], [2, 4], [4, 6]]),
        np.array([[1, 1], [2, 4], [7, 7]]),
    )
    sizes = np.array([[10, 11], [20, 21], [30, 31]])

    def there(server_round, reachable=(0, 1, 2), fraction=1.0):
        found = candidates_at(server_round, schedule, sizes, 5, fraction, np.array(reachable))
        if found is None:
            return None
        assert (found.run_seed, found.server_round) == (5, server_round)
        return found.client_ids.tolist(), found.samples.tolist(), found.size

    assert there(1) == ([0, 1], [10, 20], 2)
    assert there(2) == ([0, 2], [10, 30], 2)  # client 1 is away
    assert there(3) == ([0, 2], [11, 30], 2)
    assert there(4, fraction=0.3) == ([0, 1, 2], [11, 21, 30], 1)
    assert there(4, reachable=[1]) == ([1], [21], 1)
    assert there(5) == ([2], [31], 1)
    assert there(6, reachable=[0, 1]) is None


# --- uniform ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_seed", "server_round", "number", "size", "cohort", "testers"),
    [
        (0, 1, 10, 5, [0, 1, 6, 7, 8], [1, 3, 4, 6, 9]),
        (0, 2, 10, 5, [1, 5, 7, 8, 9], [3, 4, 5, 6, 9]),
        (7, 3, 20, 5, [3, 8, 9, 11, 17], [0, 5, 7, 9, 14]),
        (123, 50, 7, 3, [1, 4, 5], [1, 4, 6]),
    ],
)
def test_uniform_draws_are_those_of_every_version(
    run_seed, server_round, number, size, cohort, testers
):
    ids = np.arange(number)
    assert Uniform().choose(at(server_round, ids, None, size, run_seed), Told()) == cohort
    assert sample_clients(run_seed, "evaluate", server_round, ids, size) == testers


def test_uniformly_every_client_is_sampled_about_equally_often():
    ids = list(range(20))
    counts = Counter(
        k for t in range(1, 1001) for k in Uniform().choose(at(t, ids, None, 5), Told())
    )
    assert sum(counts.values()) == 5000
    assert_frequencies(counts, dict.fromkeys(ids, 0.25), 1000)


# --- weighted -----------------------------------------------------------------------------------


def orders(sizes, length):
    """Yield every order of draws without replacement, with its probability."""
    for order in itertools.permutations(range(len(sizes)), length):
        probability, left = 1.0, sum(sizes)
        for k in order:
            probability *= sizes[k] / left
            left -= sizes[k]
        yield order, probability


def test_draws_by_samples_are_one_after_the_other_each_in_proportion():
    generator = np.random.default_rng(0)
    found = Counter(tuple(draw_by_samples(at(samples=SIZES), 2, generator)) for _ in range(ROUNDS))
    expected = dict(orders(SIZES, 2))
    assert sum(expected.values()) == pytest.approx(1)
    assert len(expected) == 12
    assert_frequencies(found, expected, ROUNDS)


def test_a_weighted_cohort_has_that_law_over_the_rounds():
    found = Counter(
        tuple(Weighted().choose(at(t, samples=SIZES), Told())) for t in range(1, ROUNDS + 1)
    )
    expected = Counter()
    for order, probability in orders(SIZES, 2):
        expected[tuple(sorted(order))] += probability
    assert_frequencies(found, expected, ROUNDS)


def test_who_has_no_samples_is_not_drawn_and_a_full_cohort_is_everybody_else():
    for t in range(1, 200):
        assert 1 not in Weighted().choose(at(t, samples=[3, 0, 1, 9]), Told())
    assert Weighted().choose(at(samples=[3, 0, 1, 9], size=4), Told()) == [0, 2, 3]
    assert Weighted().choose(at(samples=[0, 0, 0, 0]), Told()) == []


# --- round robin --------------------------------------------------------------------------------


def rounds_of(sampler, there, size, number, run_seed=0):
    """Return the cohorts of rounds 1..number; `there` gives those present in a round."""
    told, cohorts = Told(), []
    for t in range(1, number + 1):
        ids = there(t)
        cohorts.append(sampler.choose(at(t, ids, None, min(size, len(ids)), run_seed), told))
        told.book(cohorts[-1], {})
    return cohorts


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_by_turns_everybody_is_in_once_before_anybody_twice(number, size, run_seed):
    size, counts = min(size, number), Counter(range(number))
    for cohort in rounds_of(RoundRobin(), lambda t: list(range(number)), size, 25, run_seed):
        assert len(set(cohort)) == size
        counts.update(cohort)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_each_pass_has_an_order_of_its_own_drawn_from_the_seed():
    def passes(run_seed):
        cohorts = rounds_of(RoundRobin(), lambda t: list(range(6)), 1, 60, run_seed)
        flat = [cohort[0] for cohort in cohorts]
        return [tuple(flat[start : start + 6]) for start in range(0, 60, 6)]

    assert all(sorted(each) == list(range(6)) for each in passes(0))
    assert len(set(passes(0))) == 10
    assert passes(0) == passes(0) != passes(1)
    firsts = Counter(order[0] for run_seed in range(100) for order in passes(run_seed))
    assert_frequencies(firsts, dict.fromkeys(range(6), 1 / 6), 1000)


def test_who_comes_back_joins_the_present_pass_and_does_not_catch_up():
    cohorts = rounds_of(RoundRobin(), lambda t: [0, 1, 2] if t <= 9 else [0, 1, 2, 3], 1, 30)
    first, *late = [cohort[0] for cohort in cohorts[9:]]
    assert first == 3  # who is there and was not in the third pass keeps it open
    for start in range(0, 20, 4):
        assert sorted(late[start : start + 4]) == [0, 1, 2, 3]


def test_who_is_away_for_the_rest_of_a_pass_is_not_waited_for():
    order = [cohort[0] for cohort in rounds_of(RoundRobin(), lambda t: [0, 1, 2], 1, 3)]
    last = order[-1]
    others = [k for k in range(3) if k != last]
    cohorts = rounds_of(RoundRobin(), lambda t: [0, 1, 2] if t < 3 else others, 1, 6)
    assert sorted(cohort[0] for cohort in cohorts[2:4]) == others
    assert sorted(cohort[0] for cohort in cohorts[4:6]) == others


# --- by loss ------------------------------------------------------------------------------------


def expected_by_loss(sizes, number, size, losses):
    """Return each client's probability: the candidates' law, then the largest losses of them."""
    expected = Counter()
    for order, probability in orders(sizes, number):
        ties = list(itertools.permutations(order))
        for tie in ties:
            chosen = sorted(tie, key=lambda k: -losses.get(k, inf))[:size]
            expected.update(dict.fromkeys(chosen, probability / len(ties)))
    return expected


@pytest.mark.parametrize(
    ("number", "size", "losses"),
    [
        (3, 1, {0: 4.0, 1: 3.0, 2: 2.0, 3: 1.0}),
        (3, 2, {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0}),
        (2, 1, {}),
        (3, 2, {1: 9.0, 3: 0.5}),
    ],
    ids=["distinct", "ties", "nobody was seen", "some were seen"],
)
def test_of_the_candidates_those_with_the_largest_losses_train(number, size, losses):
    found = Counter(
        k
        for t in range(1, ROUNDS + 1)
        for k in ByLoss(number).choose(at(t, samples=SIZES, size=size), Told(losses))
    )
    assert_frequencies(found, expected_by_loss(SIZES, number, size, losses), ROUNDS)


def test_with_everybody_a_candidate_it_is_greedy_and_the_unseen_come_first():
    told = Told({0: 0.1, 1: 2.0, 3: 1.0})
    assert ByLoss(4).choose(at(samples=SIZES, size=1), told) == [2]
    assert ByLoss(4).choose(at(samples=SIZES, size=2), told) == [1, 2]
    assert ByLoss(4).choose(at(samples=SIZES, size=3), told) == [1, 2, 3]


def test_the_default_is_twice_as_many_candidates_as_train():
    told = Told(dict(enumerate([3.0, 1.0, 4.0, 2.0])))
    for t in range(1, 100):
        one, two = at(t, samples=SIZES, size=1), at(t, samples=SIZES, size=2)
        assert ByLoss().choose(one, told) == ByLoss(2).choose(one, told)
        assert ByLoss().choose(two, told) == [0, 2]


# --- availability -------------------------------------------------------------------------------


def test_a_trace_says_who_can_be_reached_in_a_round(tmp_path):
    spans = {"0": [[1, 3], [6, 6]], "1": [[3, 5]], "2": [], "3": [[2, 4], [1, 3]], "99": [[1, 9]]}
    trace = Trace(write(tmp_path / "trace.json", spans))
    trace.check(4, 4, 7)
    reached = [trace.choose(at(t, size=4), Told()) for t in range(1, 8)]
    assert reached == [[0, 3], [0, 3], [0, 1, 3], [1, 3], [1], [0], []]
    assert trace.choose(at(3, ids=[1, 2], size=2), Told()) == [1]


def test_among_those_who_can_be_reached_the_draw_is_uniform(tmp_path):
    spans = {str(k): [[1, 5000]] if k != 2 else [[1, 1]] for k in range(5)}
    trace = Trace(write(tmp_path / "trace.json", spans))
    counts = Counter(
        k for t in range(2, 2002) for k in trace.choose(at(t, ids=range(5), size=2), Told())
    )
    assert_frequencies(counts, {0: 0.5, 1: 0.5, 2: 0.0, 3: 0.5, 4: 0.5}, 2000)


BAD_TRACES = [
    ("{", "cannot be read: "),
    (b"\xff\xfe", "cannot be read: "),
    ("[" * 100_000, "cannot be read: "),
    ('{"0": [], "0": []}', "cannot be read: client 0 comes twice"),
    ([[1, 2]], "must be an object of client ids"),
    ({"a": []}, "'a' is no client id: they are 0, 1, 2, ..."),
    ({"-1": []}, "'-1' is no client id"),
    ({"01": []}, "'01' is no client id"),
    ({"²": []}, "'²' is no client id"),
    ({"0": [[1, 2]], "1": [1, 2]}, "client 1: 1 is no span of rounds [from, to], 1 <= from <= to"),
    ({"0": [[1, 2, 3]]}, "client 0: [1, 2, 3] is no span"),
    ({"0": [[2, 1]]}, "client 0: [2, 1] is no span"),
    ({"0": [[0, 1]]}, "client 0: [0, 1] is no span"),
    ({"0": [[1, 2.0]]}, "client 0: [1, 2.0] is no span"),
    ({"0": [[True, 2]]}, "client 0: [true, 2] is no span"),
    ({"0": [[1, 2**63]]}, "is no span"),
    ({"0": {"1": 2}}, 'client 0: {"1": 2} is no span'),
    ({"0": None}, "client 0: null is no span"),
]


@pytest.mark.parametrize(("content", "problem"), BAD_TRACES, ids=lambda value: str(value)[:30])
def test_a_malformed_trace_is_refused_with_its_place(content, problem, tmp_path):
    path = tmp_path / "trace.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    with pytest.raises(ValueError, match=r"^cohort\.path=") as caught:
        Trace(str(path))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trace_must_know_every_client_and_reach_somebody(tmp_path):
    trace = Trace(write(tmp_path / "trace.json", {"0": [[9, 12]], "2": [[1, 99]]}))
    with pytest.raises(ValueError, match=r"trace.json: has no client 1; num_clients=3 needs 0..2"):
        trace.check(3, 1, 20)
    trace.check(1, 1, 9)
    with pytest.raises(ValueError, match=r"nobody can be reached in rounds 1..8"):
        trace.check(1, 1, 8)
    with pytest.raises(ValueError, match=r"cohort.path=nowhere: cannot be read"):
        Trace("nowhere")


def test_by_day_each_client_is_on_for_its_share_of_each_period_in_one_stretch():
    ids = list(range(400))
    days = DayNight(period=10, share_on=0.3)
    on = np.zeros((40, len(ids)), dtype=bool)
    for t in range(1, 41):
        on[t - 1, days.choose(at(t, ids, None, len(ids)), Told())] = True
    assert (on.reshape(4, 10, -1).sum(1) == 3).all()
    assert (on[10:] == on[:-10]).all()
    switched = (on != np.roll(on, 1, axis=0)).sum(0)
    assert (switched == 2 * 4).all()
    phases = Counter(on[:10].argmax(0).tolist())
    assert len(phases) == 8  # who is on at the period's end begins it too
    spread = 5 * np.sqrt(400 * 0.3 * 0.7)
    assert (abs(on.sum(1) - 120) < spread).all()


def test_by_day_a_client_is_on_when_it_is_whoever_else_is_there():
    days = DayNight()
    for t in range(1, 49):
        everybody = days.choose(at(t, range(30), None, 30), Told())
        assert days.choose(at(t, [3, 7], None, 2), Told()) == [k for k in (3, 7) if k in everybody]
        assert days.choose(at(t, range(30), None, 5), Told()) == sorted(
            set(days.choose(at(t, range(30), None, 5), Told())) & set(everybody)
        )


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: ByLoss(0), r"cohort.candidates=0: must be at least 1"),
        (lambda: ByLoss(4).check(10, 5, 1), r"cohort.candidates=4: must be in 5..10, "),
        (lambda: ByLoss(11).check(10, 5, 1), r"cohort.candidates=11: must be in 5..10, "),
        (lambda: DayNight(period=1), r"cohort.period=1: must be at least 2"),
        (lambda: DayNight(share_on=0), r"cohort.share_on=0: must be in \(0, 1\]"),
        (lambda: DayNight(share_on=1.1), r"cohort.share_on=1.1: must be in \(0, 1\]"),
    ],
)
def test_bounds_are_checked(make, problem):
    with pytest.raises(ValueError, match=f"^{problem}"):
        make()
    ByLoss(5).check(10, 5, 1)
    ByLoss().check(10, 10, 1)


@pytest.mark.parametrize("path", sorted(conf_dir().glob("cohort/*.yaml")), ids=lambda p: p.stem)
def test_a_choices_keys_are_its_parameters_and_its_values_their_defaults(path):
    node = yaml.safe_load(path.read_text())
    target = get_object(node.pop("_target_"))
    assert issubclass(target, CohortSampler)
    parameters = inspect.signature(target).parameters
    assert set(node) == set(parameters)
    for key, value in node.items():
        default = parameters[key].default
        assert value == ("???" if default is inspect.Parameter.empty else default)


# --- in a federation ----------------------------------------------------------------------------


def cohorts_of(events):
    """Return who was asked in each round, whatever came of it, and the losses told."""
    for event in events:
        if event["event"] == "round":
            losses = {int(key): told["loss"] for key, told in event["clients"].items()}
            named = [each["client"] for each in event["failed"] + event["quarantined"]]
            yield sorted([*losses, *event["idle"], *event["dropped"], *named]), losses


def _silent(message, reply, context):
    raise RuntimeError("no answer")


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_the_next_cohort_follows_from_what_the_events_of_earlier_rounds_tell(sampler):
    scenario = make_scenario(num_clients=7, empty={(3, 0), (5, 1)})
    schedule = Schedule.in_step(7, 2, 6)
    _, events, _ = federate(
        scenario, cohort=sampler, fraction_train=0.4, schedule=schedule, faults={2: _silent}
    )
    told, sizes = Told(), scenario.shares.sizes().numpy()
    for server_round, (cohort, losses) in enumerate(cohorts_of(events), 1):
        kept = json.loads(json.dumps(dataclasses.asdict(told)))
        by_client = ({int(k): v for k, v in kept[key].items()} for key in ("losses", "passes"))
        restored = Told(*by_client, kept["latest_pass"])
        candidates = candidates_at(server_round, schedule, sizes, 0, 0.4)
        assert sampler.choose(candidates, restored) == cohort
        told.book(cohort, losses)
    assert server_round == 12


def test_only_clients_that_are_there_are_asked_and_a_round_of_nobody_is_no_failure(tmp_path):
    away = np.array([[1, 3], [3, 7], [7, 7], [7, 7]])
    in_step = Schedule.in_step(4, 2, 3)
    schedule = Schedule(in_step.begins, in_step.ends, away)
    spans = {"0": [[1, 6]], "1": [[1, 6]], "2": [[2, 3]], "3": []}
    trace = Trace(write(tmp_path / "trace.json", spans))
    server, events, _ = federate(schedule=schedule, cohort=trace, max_failed_rounds=1)
    assert [cohort for cohort, _ in cohorts_of(events)] == [[1], [1, 2], [0, 2], [0], [0], [0]]
    spans = {"0": [[1, 1], [4, 4]], "1": [], "2": [], "3": []}
    trace = Trace(write(tmp_path / "trace.json", spans))
    server, events, _ = federate(rounds_per_experience=2, cohort=trace, max_failed_rounds=1)
    assert [cohort for cohort, _ in cohorts_of(events)] == [[0], [], [], [0]]
    assert server.ledger.turns["accepted"] == 2
    assert not [event for event in events if event["event"] == "warning"]


SMALL = [
    "tracker=none",
    "continual=naive",
    "num_clients=6",
    "fraction_train=0.5",
    "rounds_per_experience=3",
    "scenario.num_experiences=2",
    "local.epochs=1",
]


@pytest.mark.parametrize(
    "overrides",
    [
        ["cohort=weighted", "seed=1"],
        ["cohort=round_robin", "clock=churn"],
        ["cohort=day_night", "cohort.period=5", "fraction_train=1"],
        ["cohort=by_loss", "cohort.candidates=6", "faults.drop_out=0.3", "faults.straggle=0.7"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_a_dry_run_foretells_what_can_be_known(overrides, runs, capsys):
    arguments = [*SMALL, *overrides]
    experiment = build(prepare(compose(arguments)))
    foretold, text = estimate(experiment), describe(experiment)
    assert main(["run", *arguments]) == 0
    (path,) = runs.glob("**/summary.json")
    summary = json.loads(path.read_text())
    known = "by_loss" not in overrides[0]
    assert foretold.exact == known
    assert ("about" in text.split("turns")[1].split("\n")[0]) == (not known)
    assert ("losses, which cohort=by_loss goes by" in text) == (not known)
    if known:
        turns = summary["turns"]
        assert foretold.turns == turns["accepted"]
        assert foretold.steps == summary["work"]["steps"]
        assert foretold.down_bytes == summary["comm"]["down_bytes"]
        assert foretold.up_bytes == summary["comm"]["up_bytes"]
