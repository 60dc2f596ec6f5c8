"""Heterogeneity: numbers that hand arithmetic, their definitions and their bounds agree with."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn import heterogeneity
from fedlearn.heterogeneity import (
    changes,
    client_labels,
    experience_labels,
    gini,
    js_divergence,
    measure,
    pair_labels,
)
from fedlearn.types import Shares


def shares_of(*clients):
    """Build shares and the labels of their store from the labels of each client's experiences."""
    flat = [label for stream in clients for labels in stream for label in labels]
    rows = iter(torch.arange(len(flat)).flip(0).tolist())
    nested = [
        [torch.tensor([next(rows) for _ in ls], dtype=torch.int64) for ls in s] for s in clients
    ]
    return Shares.of(nested), torch.tensor(flat, dtype=torch.int64).flip(0)


streams = st.integers(1, 4).flatmap(
    lambda length: st.lists(
        st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=length, max_size=length),
        min_size=1,
        max_size=5,
    )
)


# --- counting -----------------------------------------------------------------------------------


def test_labels_are_counted_by_pair_by_client_and_by_experience():
    shares, labels = shares_of([[0, 0, 1], [2]], [[], [1, 2, 2]])
    pairs = [[[2, 1, 0], [0, 0, 1]], [[0, 0, 0], [0, 1, 2]]]
    assert pair_labels(shares, labels, 3).tolist() == pairs
    assert client_labels(shares, labels, 3).tolist() == [[2, 1, 1], [0, 1, 2]]
    assert experience_labels(shares, labels, 3).tolist() == [[2, 1, 0], [0, 1, 3]]


@given(streams)
def test_the_margins_of_the_counts_agree(clients):
    shares, labels = shares_of(*clients)
    pairs = pair_labels(shares, labels, 5)
    assert torch.equal(pairs.sum(1), client_labels(shares, labels, 5))
    assert torch.equal(pairs.sum(0), experience_labels(shares, labels, 5))
    assert torch.equal(pairs.sum(2), shares.sizes())


# --- Jensen-Shannon divergence ------------------------------------------------------------------


def test_the_divergence_is_what_hand_arithmetic_gives():
    # the mixture is (3/4, 1/4), of 2 - 3/4 log2(3) bits; the two have 0 bits and 1
    expected = 2 - 0.75 * math.log2(3) - 0.5
    assert js_divergence(torch.tensor([7, 0]), torch.tensor([3, 3])).item() == pytest.approx(
        expected
    )
    # one class of two in common: the mixture is (1/4, 1/2, 1/4), of 1.5 bits; both have 1
    both = torch.tensor([[1, 1, 0], [0, 2, 2]])
    assert js_divergence(both[0], both[1]).item() == pytest.approx(0.5)


def test_no_class_in_common_is_1_and_the_same_shares_are_0():
    p = torch.tensor([[1, 2, 0, 0], [3, 6, 0, 0], [0.1, 0.2, 0.0, 0.0]])
    q = torch.tensor([0, 0, 5, 1])
    assert js_divergence(p, q).tolist() == pytest.approx([1, 1, 1])
    assert js_divergence(p, p[0]).tolist() == pytest.approx([0, 0, 0], abs=1e-9)


counts = st.lists(st.integers(0, 1000), min_size=6, max_size=6).filter(any)


@given(counts, counts)
def test_the_divergence_is_symmetric_bounded_and_a_mean_of_two_relative_entropies(one, other):
    p, q = (torch.tensor(each, dtype=torch.float64) / sum(each) for each in (one, other))
    found = js_divergence(p, q)
    assert found == js_divergence(q, p)
    assert 0 <= found <= 1
    mixture = (p + q) / 2
    relative = [torch.special.xlogy(each, each / mixture).nansum() / math.log(2) for each in (p, q)]
    assert found.item() == pytest.approx(sum(relative).item() / 2, abs=1e-9)


# --- between clients ----------------------------------------------------------------------------


def test_clients_that_hold_the_same_do_not_differ():
    shares, labels = shares_of([[0, 1, 1]], [[1, 0, 1]], [[0, 1, 1] * 2])
    found = measure(shares, labels, 4)
    assert found.between_clients == pytest.approx(0, abs=1e-12)
    assert found.from_all == pytest.approx(0, abs=1e-12)


def test_clients_without_a_class_in_common_differ_by_1():
    found = measure(*shares_of([[0, 0]], [[1]], [[2, 3]]), 4)
    assert found.between_clients == pytest.approx(1)
    assert found.classes == (pytest.approx(4 / 3), 1, 2)


def test_clients_without_samples_have_no_labels_to_compare():
    shares, labels = shares_of([[0], [0]], [[], []], [[1], [0]])
    found = measure(shares, labels, 2)
    held = torch.tensor([[2, 0], [1, 1]])
    assert found.between_clients == pytest.approx(js_divergence(held[0], held[1]).item())
    total = torch.tensor([3, 1])
    assert found.from_all == pytest.approx(js_divergence(held, total).mean().item())
    assert (found.smallest, found.largest, found.empty) == (0, 2, pytest.approx(1 / 3))
    assert found.classes == (1.0, 0, 2)


@given(streams)
@settings(max_examples=50)
def test_the_mean_over_pairs_is_that_over_all_pairs(clients):
    shares, labels = shares_of(*clients)
    held = [row for row in client_labels(shares, labels, 5) if row.any()]
    pairs = [js_divergence(p, q).item() for p, q in itertools.combinations(held, 2)]
    found = measure(shares, labels, 5).between_clients
    assert found == (pytest.approx(sum(pairs) / len(pairs), abs=1e-9) if pairs else None)


def test_of_too_many_pairs_a_sample_is_close_and_always_the_same(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    clients = [[torch.randint(6, (8,), generator=draw).tolist()] for _ in range(150)]
    shares, labels = shares_of(*clients)
    exact = measure(shares, labels, 6).between_clients
    monkeypatch.setattr(heterogeneity, "MOST_PAIRS", 5000)
    drawn = measure(shares, labels, 6).between_clients
    assert drawn != exact
    assert drawn == pytest.approx(exact, abs=0.01)
    assert measure(shares, labels, 6).between_clients == drawn


# --- over time ----------------------------------------------------------------------------------


def test_new_classes_every_time_are_1_and_the_same_ones_0():
    shares, labels = shares_of([[0], [1, 1], [2]], [[3, 4], [4, 3], [3, 4, 4, 3]])
    assert changes(shares, labels, 5).tolist() == pytest.approx([1, 0])
    assert measure(shares, labels, 5).over_time == pytest.approx(0.5)


def test_experiences_without_samples_are_passed_over():
    shares, labels = shares_of([[0], [], [0], [1]], [[], [0], [], []])
    assert changes(shares, labels, 2).tolist() == pytest.approx(
        [0.5]
    )  # 0 and 1; the other has none


@given(streams)
@settings(max_examples=50)
def test_changes_are_the_divergences_of_consecutive_experiences(clients):
    shares, labels = shares_of(*clients)
    expected = []
    for stream in pair_labels(shares, labels, 5):
        held = [row for row in stream if row.any()]
        steps = [js_divergence(p, q).item() for p, q in itertools.pairwise(held)]
        expected += [sum(steps) / len(steps)] if steps else []
    assert changes(shares, labels, 5).tolist() == pytest.approx(expected, abs=1e-9)


def test_one_experience_has_nothing_to_change():
    assert measure(*shares_of([[0, 1]], [[1]]), 2).over_time is None


# --- sizes --------------------------------------------------------------------------------------


def test_gini_is_what_hand_arithmetic_gives():
    assert gini(torch.tensor([5, 5, 5])) == pytest.approx(0)
    assert gini(torch.tensor([0, 0, 0, 8])) == pytest.approx(3 / 4)
    assert gini(torch.tensor([3, 1])) == pytest.approx(1 / 4)
    assert gini(torch.tensor([0, 0])) == 0


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
def test_gini_is_half_the_relative_mean_difference(sizes):
    x = torch.tensor(sizes, dtype=torch.float64)
    difference = (x[:, None] - x[None]).abs().mean()
    assert gini(torch.tensor(sizes)) == pytest.approx(
        (difference / (2 * x.mean())).item(), abs=1e-9
    )


def test_of_a_regression_only_sizes_are_said():
    shares, _ = shares_of([[0, 0, 0], [0]], [[0, 0], [0, 0]])
    found = measure(shares, None, 3)
    assert (found.between_clients, found.from_all, found.over_time, found.classes) == (None,) * 4
    assert (found.gini, found.smallest, found.largest, found.empty) == (0, 4, 4, 0)


def test_ten_thousand_clients_in_twenty_experiences_take_no_dense_table():
    num_pairs, size, num_classes = 10_000 * 20, 60_000, 1000
    draw = torch.Generator().manual_seed(0)
    sizes = torch.randint(num_pairs, (size,), generator=draw).bincount(minlength=num_pairs)
    ends = sizes.cumsum(0).view(10_000, 20)
    labels = torch.randint(num_classes, (size,), generator=draw)
    begins = ends - sizes.view(ends.shape)
    shares = Shares(torch.randperm(size, generator=draw), begins.int(), ends.int())
    assert 0.9 < changes(shares, labels, num_classes).mean() <= 1
