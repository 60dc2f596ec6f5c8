"""Injected faults: how often, and that a lost reply leaves no trace but in the books."""

import itertools
import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from federation import PlainSgd, federate, make_scenario, norm_model, tiny_model
from flwr.app import MetricRecord

from fedlearn.cli import main
from fedlearn.client_state import ClientState
from fedlearn.cohorts.sampler import CohortSampler
from fedlearn.cohorts.uniform import Uniform
from fedlearn.commands.dry_run import describe, estimate
from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from fedlearn.faults import Faults
from fedlearn.grids import RunFailedError
from fedlearn.server import digest_of

LOSSY = Faults(drop_out=0.5)


def rounds(events):
    return [event for event in events if event["event"] == "round"]


def warnings(events):
    return [event["message"] for event in events if event["event"] == "warning"]


# --- the draws ----------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_a_reply_is_lost_with_the_probability_asked_for(probability):
    faults, number = Faults(drop_out=probability), 40 * 100
    lost = np.array([[faults.lost(0, k, t) for k in range(40)] for t in range(1, 101)])
    spread = 5 * math.sqrt(number * probability * (1 - probability))
    assert abs(lost.sum() - number * probability) <= spread
    if 0 < probability < 1:  # neither by client nor by round
        assert 0 < lost.sum(0).min() <= lost.sum(0).max() < 100
        assert not lost.all(1).any()


def test_a_straggler_has_time_for_a_share_drawn_uniformly_and_others_for_all():
    faults = Faults(straggle=0.25, straggle_work=0.2)
    work = np.array([faults.work(3, k, t) for k in range(40) for t in range(1, 101)])
    shares = np.sort(work[work < 1])
    assert abs(len(shares) - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75)
    assert shares[0] > 0.2
    uniform = np.linspace(0.2, 1, len(shares))
    assert abs(shares - uniform).max() < 0.8 * 1.95 / math.sqrt(len(shares))  # Kolmogorov, 0.1 %


def test_draws_depend_on_seed_client_and_round_and_the_two_faults_are_independent():
    both = Faults(drop_out=0.5, straggle=0.5, straggle_work=0.1)

    def draws(run_seed, clients):
        return [
            (both.lost(run_seed, k, t), both.work(run_seed, k, t) < 1)
            for k in clients
            for t in range(1, 200)
        ]

    assert draws(0, [0, 1]) == draws(0, [0]) + draws(0, [1])
    assert draws(0, [0]) != draws(1, [0])
    assert draws(0, [0]) != draws(0, [1])
    joint = np.array(draws(0, range(10)))
    assert abs(np.corrcoef(joint.T)[0, 1]) < 5 / math.sqrt(len(joint))


def test_by_default_nothing_goes_wrong():
    assert not any(Faults().lost(0, k, 1) for k in range(100))
    assert {Faults().work(0, k, 1) for k in range(100)} == {1.0}


# --- lost replies -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spared(CohortSampler):
    """The cohort but for those whose reply would be lost."""

    faults: Faults

    def choose(self, candidates, told):
        return [
            k
            for k in Uniform().choose(candidates, told)
            if not self.faults.lost(candidates.run_seed, k, candidates.server_round)
        ]


@pytest.mark.parametrize("build_model", [tiny_model, norm_model])
@pytest.mark.parametrize("run_seed", range(3))
def test_the_model_is_that_of_a_run_in_which_the_client_was_never_sampled(run_seed, build_model):
    asked = {
        "build_model": build_model,
        "fraction_train": 0.7,
        "rounds_per_experience": 5,
        "run_seed": run_seed,
    }
    lossy, events, grid = federate(make_scenario(6), injected=LOSSY, **asked)
    spared, fewer, other = federate(make_scenario(6), cohort=Spared(LOSSY), **asked)
    assert lossy.digest == spared.digest != federate(make_scenario(6), **asked)[0].digest
    assert [event["clients"] for event in rounds(events)] == [
        event["clients"] for event in rounds(fewer)
    ]
    for client_id in range(6):  # and so is what each client keeps, once the last round is settled
        states = []
        for each, server in ((grid, lossy), (other, spared)):
            kept = ClientState(each.context(client_id + 1).state)
            kept.settle(server._acknowledged.get(client_id, 0))
            states.append(kept.committed())
        (state, experience), (expected, same) = states
        assert experience == same
        assert state.values == expected.values
        assert state.tensors.keys() == expected.tensors.keys()
        assert all(
            torch.equal(state.tensors[name], expected.tensors[name]) for name in state.tensors
        )


def test_the_next_turn_starts_from_exactly_the_state_that_the_lost_one_started_from():
    turns = {}

    class Watched(PlainSgd):
        def train_turn(self, model, experience, stream, turn, state):
            anchor = state.tensors.get("anchor")
            kept = None if anchor is None else anchor.clone()
            seen = turns.setdefault(turn.client_id, [])
            seen.append((turn.server_round, kept, dict(state.values), turn.previous))
            return super().train_turn(model, experience, stream, turn, state)

    federate(continual=Watched(), injected=LOSSY, rounds_per_experience=6)
    rolled_back = 0
    for client_id, seen in turns.items():
        assert [number for number, *_ in seen] == list(range(1, 13))
        for before, after in itertools.pairwise(seen):
            counted = after[2].get("turns", 0) - before[2].get("turns", 0)
            assert counted == (not LOSSY.lost(0, client_id, before[0]))
            if counted:
                continue
            rolled_back += 1
            assert before[2] == after[2]
            assert (before[1] is None) == (after[1] is None)
            assert before[1] is None or torch.equal(before[1], after[1])
            if before[3] is not None:  # still to be consolidated
                assert after[3].index == before[3].index
    assert rolled_back > 10


def test_lost_replies_are_booked_and_their_bytes_never_arrived():
    server, events, _ = federate(injected=LOSSY, rounds_per_experience=4)
    everything, _, _ = federate(rounds_per_experience=4)
    lost = 0
    for event in rounds(events):
        expected = [k for k in range(4) if LOSSY.lost(0, k, event["round"])]
        assert event["dropped"] == expected
        assert sorted(event["clients"]) == [str(k) for k in range(4) if k not in expected]
        assert event["failed"] == event["quarantined"] == event["diverged"] == event["idle"] == []
        lost += len(expected)
    assert lost > 5
    turns = server.ledger.summary(1.0)["turns"]
    assert turns["dropped"] == lost
    assert turns["accepted"] == 32 - lost
    assert server.ledger.down_bytes == everything.ledger.down_bytes
    assert server.ledger.up_bytes * 32 == everything.ledger.up_bytes * (32 - lost)


def test_a_lost_loss_is_not_told():
    server, events, _ = federate(injected=LOSSY, rounds_per_experience=4)
    last = {
        int(k): told["loss"] for event in rounds(events) for k, told in event["clients"].items()
    }
    assert server.told.losses == last
    assert set(server.told.passes) == {0, 1, 2, 3}


def test_rounds_that_lose_every_reply_change_nothing_and_are_no_failures():
    server, events, _ = federate(injected=Faults(drop_out=1.0), max_failed_rounds=1)
    assert server.rounds == 4
    assert server.digest == digest_of(dict(tiny_model().named_parameters()))
    assert server.ledger.turns["dropped"] == 16
    assert server.ledger.up_bytes == server.ledger.steps == 0
    told = "round 3 changed nothing, because of faults: no reply is left"
    assert warnings(events).count(told) == 1
    assert len(warnings(events)) == 4


def test_a_round_below_the_bound_because_of_lost_replies_is_no_failure_and_commits_nobody():
    def needs_four(number):
        return "needs four" if number < 4 else None

    seen = []

    class Watched(PlainSgd):
        def train_turn(self, model, experience, stream, turn, state):
            seen.append((turn.server_round, turn.client_id, int(state.values.get("turns", 0))))
            return super().train_turn(model, experience, stream, turn, state)

    faults = Faults(drop_out=0.3)
    complete = [t for t in range(1, 13) if not any(faults.lost(0, k, t) for k in range(4))]
    assert 0 < len(complete) < 11
    _, events, _ = federate(
        continual=Watched(),
        injected=faults,
        bound=needs_four,
        max_failed_rounds=1,
        rounds_per_experience=6,
    )
    assert len(warnings(events)) == 12 - len(complete)
    assert all(told.endswith("because of faults: needs four") for told in warnings(events))
    for server_round, _, turns in seen:
        assert turns == sum(each < server_round for each in complete)


def test_what_would_have_failed_without_faults_is_still_a_failure():
    def never(number):
        return "needs more"

    with pytest.raises(RunFailedError, match="needs more"):
        federate(injected=LOSSY, bound=never, max_failed_rounds=2, rounds_per_experience=20)

    def spoilt(message, reply, context):
        reply.content["metrics"] = MetricRecord({**reply.content["metrics"], "num-examples": -1})
        return reply

    run_seed = next(
        each for each in range(9) if 0 < sum(LOSSY.lost(each, k, 1) for k in range(4)) < 4
    )
    with pytest.raises(RunFailedError, match="no valid reply"):  # some are lost, the others spoilt
        federate(
            make_scenario(num_experiences=1),
            run_seed=run_seed,
            injected=LOSSY,
            faults=dict.fromkeys(range(4), spoilt),
            max_failed_rounds=1,
            rounds_per_experience=1,
        )


def test_a_lost_round_neither_adds_to_the_failures_nor_ends_them():
    """Failed rounds with lost ones between them are still in a row."""
    faults = Faults(drop_out=0.9)
    lost = [t for t in range(1, 41) if faults.lost(0, 0, t)]
    failing = [t for t in range(1, 41) if t not in lost]
    assert failing[1] > failing[0] + 1

    def raises(message, reply, context):
        raise RuntimeError("no answer")

    with pytest.raises(RunFailedError) as caught:
        federate(
            make_scenario(1),
            injected=faults,
            faults={0: raises},
            max_failed_rounds=2,
            rounds_per_experience=20,
        )
    assert "2 rounds in a row failed" in str(caught.value)


# --- stragglers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 7])
def test_a_straggler_takes_its_share_of_the_steps_and_counts_like_the_others(steps):
    faults = Faults(straggle=0.6, straggle_work=0.1)
    asked = {"epochs": 4, "steps": steps, "rounds_per_experience": 4}
    server, events, _ = federate(injected=faults, **asked)
    whole = 7 if steps else 4 * 3  # 12 samples in batches of 4
    taken = []
    for event in rounds(events):
        for key, told in event["clients"].items():
            assert told["steps"] == math.ceil(whole * faults.work(0, int(key), event["round"]))
            assert told["num_examples"] == 12
            taken.append(told["steps"])
    assert 1 <= min(taken) < max(taken) == whole
    assert len(taken) == 32
    assert server.ledger.steps == sum(taken)
    assert server.digest != federate(**asked)[0].digest


def test_stragglers_with_time_for_everything_change_nothing():
    faults = Faults(straggle=1.0, straggle_work=1.0)
    assert federate(injected=faults)[0].digest == federate()[0].digest


# --- as the user asks for them ------------------------------------------------------------------

SMALL = [
    "tracker=none",
    "num_clients=4",
    "rounds_per_experience=3",
    "scenario.num_experiences=2",
    "seed=2",
]


@pytest.mark.parametrize(
    "overrides",
    [["continual=naive"], ["continual=cumulative"], ["continual=replay", "engine=functional"]],
    ids=" ".join,
)
def test_a_run_has_the_faults_asked_for_and_a_dry_run_foretells_them(overrides, runs):
    asked = ["faults.drop_out=0.3", "faults.straggle=0.8", "faults.straggle_work=0.2"]
    assert main(["run", *SMALL, *overrides, "name=whole"]) == 0
    assert main(["run", *SMALL, *overrides, *asked, "name=faulty"]) == 0
    events, summaries = {}, {}
    for name in ("whole", "faulty"):
        (path,) = runs.glob(f"*/*_{name}")
        lines = (path / "metrics.jsonl").read_text().splitlines()
        events[name] = rounds([json.loads(line) for line in lines])
        summaries[name] = json.loads((path / "summary.json").read_text())

    faults = Faults(0.3, 0.8, 0.2)
    parts = 0
    for whole, faulty in zip(events["whole"], events["faulty"], strict=True):
        number = whole["round"]
        assert faulty["dropped"] == [k for k in range(4) if faults.lost(2, k, number)]
        for key, told in faulty["clients"].items():
            work, most = faults.work(2, int(key), number), whole["clients"][key]["steps"]
            assert told["steps"] == math.ceil(work * most)
            parts += told["steps"] < most
    assert parts > 5
    assert summaries["faulty"]["digest"] != summaries["whole"]["digest"]

    experiment = build(prepare(compose([*SMALL, *overrides, *asked])))
    foretold, turns = estimate(experiment), summaries["faulty"]["turns"]
    assert foretold.lost == turns["dropped"] > 0
    assert foretold.turns - foretold.lost == turns["accepted"]
    assert foretold.up_bytes == summaries["faulty"]["comm"]["up_bytes"]
    assert foretold.down_bytes == summaries["faulty"]["comm"]["down_bytes"]
    assert f"; {foretold.lost} replies are lost" in describe(experiment)
