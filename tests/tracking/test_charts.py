"""Charts: which event becomes which curve."""

import numpy as np
import pytest
from example_run import example_run

from fedlearn.tracking.charts import Charts, flatten


def rows(clients, **options):
    events, _ = example_run(clients=clients, **options)
    charts = Charts(clients)
    turned = [
        charts.round_row(e) if e["event"] == "round" else charts.experience_row(e)
        for e in events
        if e["event"] in ("round", "experience")
    ]
    return events, turned


def test_a_round_with_few_clients_has_a_curve_for_each():
    events, turned = rows(clients=2)
    told = events[1]
    assert turned[0] == {
        "round": 1,
        "experience": 0,
        "server/accuracy": told["server"]["accuracy"],
        "server/loss": told["server"]["loss"],
        "server/experience_0/accuracy": told["server"]["per_experience"][0],
        "client/0/loss": 0.0,
        "client/1/loss": 0.1,
        "client/0/num_examples": 10,
        "client/1/num_examples": 11,
        "client/0/steps": 4,
        "client/1/steps": 4,
        "client/0/replayed": 2,
        "client/1/replayed": 2,
        "client/0/state_bytes": 320,
        "client/1/state_bytes": 320,
        "comm/up_bytes": 2000,
        "comm/down_bytes": 4000,
        "comm/cumulative_up_bytes": 2000,
        "comm/cumulative_down_bytes": 4000,
        "time/round_s": 0.2,
        "time/train_s": 0.15,
        "time/evaluate_s": 0.01,
        "cohort/idle": 0,
        "cohort/dropped": 0,
        "cohort/diverged": 0,
        "cohort/quarantined": 0,
        "cohort/failed": 0,
        "aggregated/train_loss": 0.5,
    }


def test_an_experience_has_the_continual_metrics_and_the_clients_accuracies():
    events, turned = rows(clients=2)
    told = [e for e in events if e["event"] == "experience"][1]
    row = turned[events.index(told) - 1]
    assert row["round"] == 4
    assert row["experience"] == 1
    for name in ("average_accuracy", "forgetting", "bwt", "fwt"):
        assert row[f"cl/{name}"] == told["cl"][name]
    assert row["client_accuracy/jain"] == told["client"]["jain"]
    assert row["client/1/accuracy"] == pytest.approx(np.mean(told["client_accuracy"]["1"][:2]))


def test_the_first_experience_has_nothing_to_forget_so_no_point_on_that_curve():
    events, turned = rows(clients=2, rounds=1)
    assert events[2]["event"] == "experience"
    assert "cl/forgetting" not in turned[1]
    assert None not in turned[1].values()


def test_twenty_clients_have_curves_and_twenty_one_a_spread():
    _, few = rows(clients=20)
    assert "client/19/loss" in few[0]
    assert "client/mean/loss" not in few[0]
    _, many = rows(clients=21)
    assert "client/0/loss" not in many[0]
    losses = 0.1 * np.arange(21)
    assert many[0]["client/mean/loss"] == pytest.approx(losses.mean())
    assert many[0]["client/p10/loss"] == pytest.approx(np.percentile(losses, 10))
    assert many[0]["client/p90/loss"] == pytest.approx(np.percentile(losses, 90))
    assert many[0]["client/worst/loss"] == pytest.approx(2.0)
    assert "client/worst/steps" not in many[0]


def test_the_worst_accuracy_is_the_lowest():
    events, turned = rows(clients=30, rounds=1)
    told = events[2]["client_accuracy"].values()
    assert turned[1]["client/worst/accuracy"] == pytest.approx(min(row[0] for row in told))


def test_bytes_add_up_also_after_a_resume():
    events, turned = rows(clients=2)
    totals = [row["comm/cumulative_up_bytes"] for row in turned if "comm/up_bytes" in row]
    assert totals == [2000 * number for number in range(1, 7)]
    resumed = Charts(2)
    resumed.count([e for e in events if e.get("round", 0) <= 4])
    row = resumed.round_row(next(e for e in events if e.get("round") == 5))
    assert row["comm/cumulative_up_bytes"] == 10_000


def test_a_round_that_was_not_evaluated_has_no_accuracy_and_what_is_null_no_point():
    events, _ = example_run(evaluate_every=2)
    assert events[1]["server"] == {}
    told = {**events[1], "clients": {"0": {"loss": None, "steps": 3}}, "aggregated": {"a": [1]}}
    row = Charts(2).round_row(told)
    assert "server/accuracy" not in row
    assert "client/0/loss" not in row
    assert row["client/0/steps"] == 3
    assert "aggregated/a" not in row


def test_whatever_clients_report_has_a_curve():
    events, _ = example_run(clients=2)
    told = {
        **events[1],
        "clients": {"0": {"loss": 1.0}, "1": {"loss": 2.0, "grad_norm": 0.5}},
        "diverged": [{"client": 2, "reason": "the loss is nan"}],
    }
    row = Charts(3).round_row(told)
    assert row["client/1/grad_norm"] == 0.5
    assert "client/0/grad_norm" not in row
    assert row["cohort/diverged"] == 1


@pytest.mark.parametrize("clients", [2, 21])
def test_what_machines_tell_of_themselves_has_curves_of_its_own(clients):
    told, _ = example_run(clients=clients)
    event = told[1]
    for place, each in enumerate(event["clients"].values()):
        each |= {"node_seconds": 0.1 * place, "node_load": 0.5}
    event["aggregated"] = {"train_loss": 0.5, "node-load": 0.5}
    row = Charts(clients).round_row(event)
    if clients == 2:
        assert [row["node/0/seconds"], row["node/1/seconds"]] == [0.0, 0.1]
        assert row["node/1/load"] == 0.5
    else:
        assert row["node/mean/seconds"] == pytest.approx(1.0)
        assert row["node/p90/seconds"] == pytest.approx(1.8)
        assert row["node/mean/load"] == 0.5
    assert not [key for key in row if "node" in key and not key.startswith("node/")]
    assert row["aggregated/train_loss"] == 0.5


def test_flatten_joins_names_and_leaves_lists_out():
    nested = {"cl": {"bwt": -0.1}, "seed": 1, "accuracy_matrix": [[1]], "x": {"y": {"z": None}}}
    assert flatten(nested, "final/") == {"final/cl/bwt": -0.1, "final/seed": 1, "final/x/y/z": None}
