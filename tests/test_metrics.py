"""Every metric against matrices computed by hand, and the identities that tie them together."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedlearn import metrics

NAN = math.nan
CHECK = np.array([[90.0, NAN, NAN], [20.0, 80.0, NAN], [10.0, 30.0, 70.0]])
FULL = np.array([[0.9, 0.2, 0.1], [0.95, 0.8, 0.3], [0.5, 0.85, 0.7]])

fractions = st.floats(0, 1)
matrices = st.integers(2, 6).flatmap(
    lambda length: hnp.arrays(np.float64, (length, length), elements=fractions)
)


def test_check_matrix_of_the_field_by_hand():
    assert metrics.forgetting(CHECK) == 65.0  # ((90 - 10) + (80 - 30)) / 2, not 43.3
    assert metrics.backward_transfer(CHECK) == -65.0
    assert metrics.average_accuracy(CHECK) == pytest.approx(110 / 3)
    assert metrics.average_incremental_accuracy(CHECK) == pytest.approx((90 + 50 + 110 / 3) / 3)
    assert metrics.learning_accuracy(CHECK) == 80.0
    np.testing.assert_allclose(metrics.forgetting_per_experience(CHECK), [80, 50])


def test_matrix_with_backward_gain_by_hand():
    # Experience 0 peaks after experience 1; experience 1 is best at the end.
    assert metrics.forgetting(FULL) == pytest.approx(((0.95 - 0.5) + (0.8 - 0.85)) / 2)
    assert metrics.backward_transfer(FULL) == pytest.approx(((0.5 - 0.9) + (0.85 - 0.8)) / 2)
    baseline = [0.15, 0.1, 0.12]
    expected = ((0.2 - 0.1) + (0.3 - 0.12)) / 2
    assert metrics.forward_transfer(FULL, baseline) == pytest.approx(expected)
    assert metrics.intransigence(FULL, [0.95, 0.9, 0.9]) == pytest.approx((0.05 + 0.1 + 0.2) / 3)


def test_pooled_incremental_accuracy_by_hand():
    by_hand = (0.9 + (0.95 * 10 + 0.8 * 30) / 40 + (0.5 * 10 + 0.85 * 30 + 0.7 * 60) / 100) / 3
    assert metrics.average_incremental_accuracy_pooled(FULL, [10, 30, 60]) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="sizes"):
        metrics.average_incremental_accuracy_pooled(FULL, [10, 0, 60])


def test_forgetting_ignores_models_that_had_not_learned_the_experience():
    lucky = np.array([[0.9, 0.99], [0.9, 0.5]])
    assert metrics.forgetting(lucky) == 0.0
    three = np.array([[0.9, 0.99, 0.0], [0.9, 0.5, 0.0], [0.9, 0.5, 0.8]])
    assert metrics.forgetting(three) == 0.0


@given(matrices)
def test_bounds_and_the_relation_of_forgetting_to_backward_transfer(a):
    baseline = np.zeros(len(a))
    assert 0 <= metrics.average_accuracy(a) <= 1
    assert 0 <= metrics.average_incremental_accuracy(a) <= 1
    assert 0 <= metrics.learning_accuracy(a) <= 1
    assert -1 <= metrics.forgetting(a) <= 1
    assert -1 <= metrics.backward_transfer(a) <= 1
    assert 0 <= metrics.forward_transfer(a, baseline) <= 1
    assert metrics.forgetting(a) >= -metrics.backward_transfer(a) - 1e-12
    if len(a) == 2:  # the maximum is then over a[0, 0] alone
        assert metrics.forgetting(a) == pytest.approx(-metrics.backward_transfer(a))


@given(matrices)
def test_equal_test_sets_make_both_incremental_averages_equal(a):
    pooled = metrics.average_incremental_accuracy_pooled(a, np.full(len(a), 7))
    assert pooled == pytest.approx(metrics.average_incremental_accuracy(a))


@given(matrices, fractions)
def test_metrics_are_linear_in_the_accuracies(a, scale):
    for metric in (metrics.forgetting, metrics.backward_transfer, metrics.average_accuracy):
        assert metric(a * scale) == pytest.approx(metric(a) * scale)


@given(matrices)
def test_the_upper_triangle_matters_to_forward_transfer_only(a):
    lower = np.where(np.tri(len(a), dtype=bool), a, NAN)
    full = metrics.continual_summary(a, np.zeros(len(a)))
    part = metrics.continual_summary(lower, np.zeros(len(a)))
    assert part.pop("fwt") is None
    assert full.pop("fwt") is not None
    assert full == part


def test_what_was_not_measured_is_never_skipped_nor_zero():
    a = FULL.copy()
    a[2, 1] = NAN
    assert math.isnan(metrics.average_accuracy(a))
    assert math.isnan(metrics.forgetting(a))
    a = FULL.copy()
    a[1, 0] = NAN  # one of the values that the maximum is over
    assert math.isnan(metrics.forgetting(a))
    assert metrics.backward_transfer(a) == metrics.backward_transfer(FULL)


def test_summary_has_the_six_keys_and_is_json():
    summary = metrics.continual_summary(FULL, [0.15, 0.1, 0.12])
    assert list(summary) == [
        "average_accuracy",
        "average_incremental_accuracy",
        "forgetting",
        "bwt",
        "fwt",
        "learning_accuracy",
    ]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["bwt"] == metrics.backward_transfer(FULL)


def test_one_experience_has_nothing_to_forget_or_transfer():
    summary = metrics.continual_summary([[0.7]], [0.1])
    assert summary["average_accuracy"] == summary["learning_accuracy"] == 0.7
    assert summary["forgetting"] is summary["bwt"] is summary["fwt"] is None
    json.dumps(summary, allow_nan=False)


@given(matrices, st.data())
def test_summary_of_an_unfinished_run_is_that_of_the_experiences_learned(a, data):
    learned = data.draw(st.integers(1, len(a)))
    baseline = np.linspace(0, 0.5, len(a))
    unfinished = a.copy()
    unfinished[learned:] = NAN
    assert metrics.continual_summary(unfinished, baseline) == metrics.continual_summary(
        a[:learned, :learned], baseline[:learned]
    )


def test_a_run_that_measured_nothing_has_an_empty_summary():
    summary = metrics.continual_summary(np.full((3, 3), NAN), np.full(3, NAN))
    assert set(summary.values()) == {None}


@pytest.mark.parametrize("a", [[[1.0, 2.0]], [1.0], np.zeros((0, 0)), np.zeros((2, 2, 2))])
def test_a_matrix_that_is_not_square_is_refused(a):
    with pytest.raises(ValueError, match="must be"):
        metrics.average_accuracy(a)


def test_a_baseline_of_another_length_is_refused():
    with pytest.raises(ValueError, match="baseline"):
        metrics.forward_transfer(FULL, [0.1])
    with pytest.raises(ValueError, match="joint"):
        metrics.intransigence(FULL, [0.1])


def test_client_summary_by_hand():
    summary = metrics.client_summary([0.5, 1.0, 0.0, 0.5], [10, 10, 20, 60])
    assert summary["mean"] == 0.5
    assert summary["weighted"] == pytest.approx((5 + 10 + 0 + 30) / 100)
    assert summary["std"] == pytest.approx(math.sqrt((0 + 0.25 + 0.25 + 0) / 4))
    assert summary["worst10"] == 0.0  # a tenth of four clients is one client
    assert summary["jain"] == pytest.approx(2.0**2 / (4 * 1.5))


def test_there_is_no_jain_index_below_zero():
    summary = metrics.client_summary([-0.5, 1.0], [1, 1])
    assert summary["mean"] == 0.25
    assert "jain" not in summary


def test_worst_tenth_of_twenty_one_clients_is_three_of_them():
    accuracy = np.arange(21) / 20
    assert metrics.client_summary(accuracy, np.ones(21))["worst10"] == pytest.approx(0.05)


clients = st.lists(st.tuples(fractions, st.integers(1, 100)), min_size=1, max_size=25)


@given(clients, st.randoms(use_true_random=False))
def test_client_summary_ignores_the_order_of_clients(pairs, random):
    shuffled = list(pairs)
    random.shuffle(shuffled)
    assert metrics.client_summary(*zip(*pairs, strict=True)) == metrics.client_summary(
        *zip(*shuffled, strict=True)
    )


@given(clients)
def test_client_summary_bounds(pairs):
    accuracy, weights = zip(*pairs, strict=True)
    summary = metrics.client_summary(accuracy, weights)
    slack = 1e-12
    assert min(accuracy) - slack <= summary["worst10"] <= summary["mean"] + slack
    assert min(accuracy) - slack <= summary["weighted"] <= max(accuracy) + slack
    assert 1 / len(accuracy) - slack <= summary["jain"] <= 1 + slack
    assert 0 <= summary["std"] <= 0.5 + slack


@given(clients, st.integers(1, 5))
def test_clients_without_test_samples_change_nothing(pairs, extra):
    accuracy, weights = zip(*pairs, strict=True)
    with_idle = metrics.client_summary((*accuracy, *[NAN] * extra), (*weights, *[0] * extra))
    assert with_idle == metrics.client_summary(accuracy, weights)


def test_equal_clients_are_perfectly_fair_even_at_zero():
    for accuracy in (0.0, 1e-200, 0.3):
        summary = metrics.client_summary([accuracy] * 4, [1, 2, 3, 4])
        assert summary["jain"] == pytest.approx(1.0)
        assert summary["std"] == pytest.approx(0.0)


def test_client_summary_refuses_what_it_cannot_average():
    with pytest.raises(ValueError, match="no client"):
        metrics.client_summary([NAN], [1])
    with pytest.raises(ValueError, match="weights"):
        metrics.client_summary([0.5, 0.5], [0, 0])
    with pytest.raises(ValueError, match="weights"):
        metrics.client_summary([0.5, 0.5], [-1, 2])
    with pytest.raises(ValueError, match="weights"):
        metrics.client_summary([0.5, 0.5], [1])


def test_knowledge_retention_by_hand():
    assert metrics.temporal_knowledge_retention([0.4, 0.9], [0.8, 0.9]) == pytest.approx(0.75)
    assert metrics.spatial_knowledge_retention([0.4, 0.9], [0.5, 0.6]) == pytest.approx(1.15)


def test_knowledge_retention_leaves_out_clients_without_a_denominator():
    retention = metrics.temporal_knowledge_retention([0.4, 0.9, 0.5, NAN], [0.8, 0.0, NAN, 0.5])
    assert retention == pytest.approx(0.5)
    assert math.isnan(metrics.spatial_knowledge_retention([0.4], [0.0]))
