import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import labelled

from scenarios.dataset import Dataset
from scenarios.partitions import (
    Dirichlet,
    FromFile,
    Iid,
    LogNormal,
    Natural,
    Partition,
    Pathological,
    Quantity,
)

SEEDS = st.integers(0, 2**32)
PARTITIONS = st.one_of(
    st.builds(Iid, min_samples=st.just(0)),
    st.builds(Dirichlet, st.floats(1e-3, 1e3), min_samples=st.just(0)),
    st.builds(Pathological, st.integers(1, 3), min_samples=st.just(0)),
    st.builds(Quantity, st.floats(0, 3), min_samples=st.just(0)),
    st.builds(LogNormal, st.floats(0, 1), min_samples=st.just(0)),
)


def balanced(num_samples: int, num_classes: int) -> Tensor:
    return torch.arange(num_samples) % num_classes


def histograms(parts: list[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """(num_clients, num_classes): how many samples of each class each client holds."""
    return torch.stack([labels[rows].bincount(minlength=num_classes) for rows in parts])


def distance_from_global(parts: list[Tensor], labels: Tensor, num_classes: int) -> float:
    """Mean total variation between the clients' label distributions and the global one."""
    counts = histograms([rows for rows in parts if len(rows)], labels, num_classes).double()
    local = counts / counts.sum(dim=1, keepdim=True)
    overall = labels.bincount(minlength=num_classes) / len(labels)
    return float((local - overall).abs().sum(dim=1).mean() / 2)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Partition, Tensor, int, int]:
    """A partition, labels (n,), num_clients and num_classes that it can split; classes may lack."""
    partition = draw(PARTITIONS)
    least_classes, least_clients = 1, 1
    if isinstance(partition, Pathological):
        least_classes = partition.classes_per_client
    num_classes = draw(st.integers(least_classes, 7))
    if isinstance(partition, Pathological):
        least_clients = -(-num_classes // partition.classes_per_client)
    num_clients = draw(st.integers(least_clients, 40))
    label = st.integers(0, num_classes - 1)
    labels = draw(st.lists(label, min_size=num_clients, max_size=200))
    return partition, torch.tensor(labels), num_clients, num_classes


@given(cases(), SEEDS)
def test_every_partition_is_disjoint_and_complete(
    case: tuple[Partition, Tensor, int, int], seed: int
) -> None:
    partition, y, num_clients, num_classes = case
    parts = partition.split(labelled(y, num_classes), num_clients, seed)
    assert len(parts) == num_clients
    assert torch.cat(parts).sort().values.equal(torch.arange(len(y)))
    assert all(rows.dtype == torch.int64 and rows.equal(rows.sort().values) for rows in parts)


@given(PARTITIONS, SEEDS, SEEDS)
@settings(max_examples=30)
def test_a_partition_is_a_function_of_the_seed_and_depends_on_it(
    partition: Partition, seed: int, other: int
) -> None:
    assume(seed != other)
    y = balanced(300, 5)
    first, again, elsewhere = (partition.split(labelled(y, 5), 6, s) for s in (seed, seed, other))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, elsewhere, strict=True))


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(), Pathological(), Quantity(), LogNormal()])
def test_a_partition_leaves_the_global_generators_alone(partition: Partition) -> None:
    before = torch.get_rng_state()
    partition.split(labelled(balanced(200, 5), 5), 5, 0)
    assert torch.get_rng_state().equal(before)


@given(st.integers(1, 60), st.integers(0, 100), SEEDS)
def test_iid_sizes_differ_by_at_most_one(num_clients: int, surplus: int, seed: int) -> None:
    parts = Iid().split(labelled(balanced(num_clients + surplus, 3), 3), num_clients, seed)
    sizes = [len(rows) for rows in parts]
    assert max(sizes) - min(sizes) <= 1


def test_iid_clients_share_the_global_label_distribution() -> None:
    y = balanced(5000, 5)
    assert distance_from_global(Iid().split(labelled(y, 5), 5, 0), y, 5) < 0.05


@given(st.integers(2, 30), st.integers(1, 8), SEEDS)
@settings(max_examples=50)
def test_dirichlet_approaches_the_global_distribution_as_alpha_grows(
    num_clients: int, num_classes: int, seed: int
) -> None:
    y = balanced(num_classes * 10 * num_clients, num_classes)
    counts = histograms(
        Dirichlet(1e9).split(labelled(y, num_classes), num_clients, seed), y, num_classes
    )
    assert ((counts - 10).abs() <= 1).all()


@given(SEEDS)
@settings(max_examples=20)
def test_dirichlet_moves_away_from_the_global_distribution_as_alpha_shrinks(seed: int) -> None:
    y = balanced(5000, 10)
    distances = [
        distance_from_global(
            Dirichlet(alpha, min_samples=0).split(labelled(y, 10), 10, seed), y, 10
        )
        for alpha in (100.0, 1.0, 0.01)
    ]
    assert distances[0] < 0.1 < distances[1] < 0.6 < distances[2]


@given(SEEDS)
@settings(max_examples=20)
def test_dirichlet_with_a_tiny_alpha_gives_each_class_to_one_client(seed: int) -> None:
    y = balanced(1000, 10)
    counts = histograms(Dirichlet(1e-5, min_samples=0).split(labelled(y, 10), 8, seed), y, 10)
    assert ((counts > 0).sum(dim=0) == 1).sum() >= 9


def test_dirichlet_proportions_have_the_mean_and_variance_of_the_distribution() -> None:
    num_clients, num_classes, alpha = 5, 4000, 0.7
    y = balanced(num_classes * 200, num_classes)
    parts = Dirichlet(alpha, min_samples=0).split(labelled(y, num_classes), num_clients, 0)
    shares = histograms(parts, y, num_classes).double() / 200
    mean = 1 / num_clients
    variance = mean * (1 - mean) / (num_clients * alpha + 1)
    assert shares.mean(dim=1).sub(mean).abs().max() < 0.02
    assert shares.var(dim=1).sub(variance).abs().max() < 0.1 * variance


def test_dirichlet_favours_no_client_where_shares_are_below_one_sample() -> None:
    y = balanced(40 * 500, 500)  # 40 samples of a class over 100 clients
    sizes = torch.tensor([len(rows) for rows in Dirichlet(1e9).split(labelled(y, 500), 100, 0)])
    assert sizes.min() > 140
    assert sizes.max() < 260


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), SEEDS)
def test_pathological_gives_each_client_exactly_k_classes_and_forgets_none(
    num_clients: int, num_classes: int, k: int, seed: int
) -> None:
    assume(k <= num_classes <= num_clients * k)
    y = balanced(num_classes * num_clients, num_classes)
    counts = histograms(
        Pathological(k).split(labelled(y, num_classes), num_clients, seed), y, num_classes
    )
    assert ((counts > 0).sum(dim=1) == k).all()
    holders = (counts > 0).sum(dim=0)
    assert holders.min() >= 1
    assert holders.max() - holders.min() <= 1
    for shards in counts.T:  # the shards of one class
        held = shards[shards > 0]
        assert held.max() - held.min() <= 1


@given(st.integers(1, 50), st.floats(0, 3), st.integers(0, 5), st.integers(0, 500), SEEDS)
def test_quantity_sizes_follow_the_power_law(
    num_clients: int, exponent: float, min_samples: int, rest: int, seed: int
) -> None:
    num_samples = num_clients * max(min_samples, 1) + rest
    parts = Quantity(exponent, min_samples=min_samples).split(
        labelled(balanced(num_samples, 3), 3), num_clients, seed
    )
    sizes = torch.tensor([len(rows) for rows in parts]).sort(descending=True).values
    weights = torch.arange(1, num_clients + 1, dtype=torch.float64) ** -exponent
    expected = min_samples + weights / weights.sum() * (num_samples - num_clients * min_samples)
    assert sizes.min() >= min_samples
    assert ((sizes - expected).abs() <= 1 + 1e-9).all()


@pytest.mark.parametrize("partition", [Quantity(1.0), LogNormal(1.0)])
def test_a_skew_of_quantities_leaves_labels_alike(partition: Partition) -> None:
    y = balanced(20_000, 5)
    assert distance_from_global(partition.split(labelled(y, 5), 5, 0), y, 5) < 0.05


def sizes_of(partition: Partition, num_samples: int, num_clients: int, seed: int = 0) -> Tensor:
    dataset = labelled(balanced(num_samples, 3), 3)
    return torch.tensor([len(rows) for rows in partition.split(dataset, num_clients, seed)])


def test_log_normal_sizes_are_log_normal() -> None:
    logs = sizes_of(LogNormal(0.7), 3_000_000, 3000).double().log()
    assert abs(float(logs.std()) - 0.7) < 0.03
    standard = (logs - logs.mean()) / logs.std()
    assert abs(float((standard**3).mean())) < 0.15  # as skewed and as heavy-tailed as a normal
    assert abs(float((standard**4).mean()) - 3) < 0.4


@given(st.integers(1, 50), st.floats(0, 60), st.integers(0, 5), st.integers(0, 500), SEEDS)
def test_log_normal_gives_everybody_the_least_and_shares_out_the_rest(
    num_clients: int, sigma: float, min_samples: int, rest: int, seed: int
) -> None:
    total = num_clients * max(min_samples, 1) + rest
    sizes = sizes_of(LogNormal(sigma, min_samples=min_samples), total, num_clients, seed)
    assert sizes.sum() == total
    assert sizes.min() >= min_samples


def test_log_normal_without_a_deviation_is_equal_and_with_a_large_one_is_not() -> None:
    assert sizes_of(LogNormal(0), 1000, 10).tolist() == [100] * 10
    assert sizes_of(LogNormal(1e300), 1000, 10).sort().values.tolist() == [1] * 9 + [991]
    shares = [
        float(sizes_of(LogNormal(sigma), 100_000, 100).max()) / 100_000 for sigma in (0.5, 1, 2)
    ]
    assert 0.01 < shares[0] < shares[1] < shares[2]


def tagged(values: list[int]) -> Dataset:
    """A dataset whose training samples have these writers."""
    dataset = labelled(balanced(len(values), 2), 2)
    return replace(dataset, tags={"writer": (torch.tensor(values), torch.tensor([0, 1]))})


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200), st.integers(1, 30), SEEDS)
def test_natural_clients_hold_whole_writers_as_many_as_each_other(
    writers: list[int], num_clients: int, seed: int
) -> None:
    assume(num_clients <= len(set(writers)))
    parts = Natural().split(tagged(writers), num_clients, seed)
    assert torch.cat(parts).sort().values.equal(torch.arange(len(writers)))
    assert all(rows.equal(rows.sort().values) for rows in parts)
    held = [{writers[row] for row in rows.tolist()} for rows in parts]
    assert sum(map(len, held)) == len(set(writers))  # no writer with two clients
    assert max(map(len, held)) - min(map(len, held)) <= 1
    again = Natural().split(tagged(writers), num_clients, seed)
    assert all(one.equal(other) for one, other in zip(parts, again, strict=True))


def test_which_writers_meet_at_a_client_is_drawn() -> None:
    dataset = tagged(list(range(40)))
    pairs = [Natural().split(dataset, 20, seed) for seed in range(20)]
    assert len({tuple(tuple(rows.tolist()) for rows in parts) for parts in pairs}) == 20
    assert any(abs(int(rows[0]) - int(rows[1])) > 10 for rows in pairs[0])  # not neighbours only


@pytest.mark.parametrize(
    ("partition", "num_clients", "message"),
    [
        (Natural("doctor"), 2, "partition.by=doctor: dataset toy has no such tag; tags: writer$"),
        (Natural(), 5, "num_clients=5: more than the 4 values of partition.by=writer$"),
        (Natural(), 0, "num_clients=0: must be at least 1$"),
    ],
)
def test_a_tag_that_does_not_do_is_refused_in_one_line(
    partition: Partition, num_clients: int, message: str
) -> None:
    with pytest.raises(ValueError, match="^" + message):
        partition.split(tagged([0, 1, 2, 7, 7]), num_clients, 0)


def from_file(folder: Path, content: object, num_clients: int = 2, size: int = 5) -> list[Tensor]:
    path = folder / "rows.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return FromFile(str(path)).split(labelled(balanced(size, 2), 2), num_clients, 0)


def test_a_file_says_who_holds_what(tmp_path: Path) -> None:
    for content in ([[4, 0], [1, 3, 2]], {"clients": [[4, 0], [1, 3, 2]]}):
        assert [rows.tolist() for rows in from_file(tmp_path, content)] == [[0, 4], [1, 2, 3]]
    rest = from_file(tmp_path, {"clients": [[3], []], "unused": [0, 4, 2, 1]})
    assert [rows.tolist() for rows in rest] == [[3], []]
    assert all(rows.dtype == torch.int64 for rows in rest)


@given(st.integers(1, 6), st.integers(1, 40), SEEDS)
def test_a_partition_that_was_written_down_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, num_clients: int, rest: int, seed: int
) -> None:
    dataset = labelled(balanced(num_clients + rest, 2), 2)
    parts = Dirichlet(min_samples=0).split(dataset, num_clients, seed)
    path = tmp_path_factory.getbasetemp() / "written.json"
    path.write_text(json.dumps([rows.tolist() for rows in parts]))
    again = FromFile(str(path)).split(dataset, num_clients, seed)
    assert all(one.equal(other) for one, other in zip(parts, again, strict=True))


LISTS = "must be a list of lists of whole numbers$"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0, 1", r"partition.path=.*rows.json: cannot be read: .*line 1 column"),
        ([[0, 1], [2, 3]], ".*rows.json: row 4 is in no list$"),
        ({"clients": [[0, 1], [2]], "unused": [3]}, ".*rows.json: row 4 is in no list$"),
        ([[0, 1, 2], [2, 3, 4]], ".*rows.json: row 2 comes twice$"),
        ([[0, 1, 1], [2, 3, 4]], ".*rows.json: row 1 comes twice$"),
        ({"clients": [[0, 1], [2]], "unused": [3, 4, 0]}, ".*rows.json: row 0 comes twice$"),
        ([[0, 1], [2, 3, 5]], r".*rows.json: row 5: must be in 0\.\.4$"),
        ([[-1, 1], [2, 3, 4]], r".*rows.json: row -1: must be in 0\.\.4$"),
        ({"clients": [[0], [1]], "unused": [2, 3, 4, 9]}, r".*row 9: must be in 0\.\.4$"),
        ([[0, 1, 2, 3, 4]], "num_clients=2: partition.path=.*rows.json has 1 clients$"),
        ([], "num_clients=2: partition.path=.*rows.json has 0 clients$"),
        ([[0, 1], [2, 3, 4.0]], LISTS),
        ([[0, 1], [2, 3, "4"]], LISTS),
        ([[0, True], [2, 3, 4]], LISTS),
        ([[0, 1], [2, 3, 2**70]], LISTS),
        ([0, 1, 2, 3, 4], LISTS),
        ([[0, 1], None], LISTS),
        (42, LISTS),
        ("null", LISTS),
        ('"ab"', LISTS),
        ({}, LISTS),
        ({"clients": 5}, LISTS),
        ({"clients": "ab"}, LISTS),
        ({"clients": [[0, 1], [2, 3, 4]], "unused": None}, LISTS),
        ({"unused": [0, 1, 2, 3, 4]}, LISTS),
    ],
)
def test_a_file_that_does_not_do_is_refused_in_one_line(
    tmp_path: Path, content: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message if message == LISTS else "^" + message) as caught:
        from_file(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert "rows.json" in str(caught.value)


def test_a_file_that_is_not_there_or_is_no_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("nowhere", "No such file"), (".", "Is a directory"), ("bytes", "utf-8")):
        path = tmp_path / name
        with pytest.raises(ValueError, match=f"^partition.path={path}: cannot be read: .*{reason}"):
            FromFile(str(path)).split(labelled(balanced(5, 2), 2), 2, 0)


def test_a_regression_is_split_by_everything_but_labels(tmp_path: Path) -> None:
    toy = tagged([0, 1, 2, 3])
    targets = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    real = replace(
        toy,
        train=replace(toy.train, y=targets),
        test=replace(toy.test, y=targets[:2]),
        num_classes=1,
    )
    path = tmp_path / "rows.json"
    path.write_text("[[0, 2], [1, 3]]")
    for partition in (Iid(), Quantity(), LogNormal(), Natural(), FromFile(str(path))):
        parts = partition.split(real, 2, 0)
        assert torch.cat(parts).sort().values.tolist() == [0, 1, 2, 3]


def test_which_client_is_the_largest_is_drawn() -> None:
    splits = [Quantity(2.0).split(labelled(balanced(300, 3), 3), 5, seed) for seed in range(20)]
    largest = {max(range(5), key=lambda client_id: len(parts[client_id])) for parts in splits}
    assert len(largest) > 2


@pytest.mark.parametrize(
    "partition", [Iid(), Dirichlet(100.0), Pathological(1), Quantity(0.5), LogNormal(0.1)]
)
def test_the_samples_of_a_class_are_dealt_at_random(partition: Partition) -> None:
    for rows in partition.split(labelled(torch.zeros(2000, dtype=torch.int64), 1), 2, 0):
        assert 900 < rows.double().mean() < 1100


def test_an_empty_client_is_avoided_by_drawing_again() -> None:
    y, seeds = balanced(200, 10), range(20)
    lax, strict = Dirichlet(0.1, min_samples=0), Dirichlet(0.1)
    assert any(min(map(len, lax.split(labelled(y, 10), 10, seed))) == 0 for seed in seeds)
    assert all(min(map(len, strict.split(labelled(y, 10), 10, seed))) > 0 for seed in seeds)


def test_ten_thousand_clients() -> None:
    y = balanced(60_000, 10)
    for partition in (Iid(), Dirichlet(min_samples=0), Pathological(), Quantity(), LogNormal()):
        parts = partition.split(labelled(y, 10), 10_000, 0)
        assert len(parts) == 10_000
        assert torch.cat(parts).sort().values.equal(torch.arange(60_000))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dirichlet(0), "partition.alpha=0: must be greater than 0"),
        (lambda: Dirichlet(float("nan")), "partition.alpha=nan: must be greater than 0"),
        (lambda: Dirichlet(float("inf")), "partition.alpha=inf: must be greater than 0 and finite"),
        (lambda: Pathological(0), "partition.classes_per_client=0: must be at least 1"),
        (lambda: Quantity(-1), "partition.exponent=-1: must be at least 0"),
        (lambda: LogNormal(-1), "partition.sigma=-1: must be at least 0 and finite"),
        (lambda: LogNormal(float("inf")), "partition.sigma=inf: must be at least 0 and finite"),
        (lambda: LogNormal(float("nan")), "partition.sigma=nan: must be at least 0 and finite"),
        (lambda: LogNormal(min_samples=-1), "partition.min_samples=-1: must be at least 0"),
        (lambda: Iid(min_samples=-1), "partition.min_samples=-1: must be at least 0"),
    ],
)
def test_a_parameter_out_of_range_is_refused_before_any_data(make, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("partition", "num_clients", "message"),
    [
        (Iid(), 101, "num_clients=101: more than the 100 training samples"),
        (Iid(min_samples=0), 101, "num_clients=101: more than the 100 training samples"),
        (Iid(), 0, "num_clients=0: must be at least 1"),
        (LogNormal(), 101, "num_clients=101: more than the 100 training samples"),
        (LogNormal(min_samples=30), 4, "partition.min_samples=30: 4 clients would need 120"),
        (Iid(min_samples=30), 4, "partition.min_samples=30: 4 clients would need 120 samples"),
        (Pathological(11), 20, "partition.classes_per_client=11: more than the dataset's 10"),
        (
            Pathological(3),
            3,
            "partition.classes_per_client=3: 3 clients would cover at most 9 of the 10 classes; "
            "set it to at least 4, or num_clients to at least 4",
        ),
        (
            Dirichlet(1e-6),
            11,
            "partition.min_samples=1: .* of 11 clients hold fewer in each of 100 draws; raise "
            "partition.alpha, lower num_clients, or set partition.min_samples=0",
        ),
    ],
)
def test_an_impossible_partition_is_refused_in_one_line(
    partition: Partition, num_clients: int, message: str
) -> None:
    with pytest.raises(ValueError, match="^" + message) as caught:
        partition.split(labelled(balanced(100, 10), 10), num_clients, 0)
    assert "\n" not in str(caught.value)


def test_equal_parameters_are_equal_whatever_their_number_type() -> None:
    assert (Dirichlet(1), Quantity(2)) == (Dirichlet(1.0), Quantity(2.0))
    assert repr(Dirichlet(1)) == repr(Dirichlet(1.0))
    assert repr(LogNormal(1)) == repr(LogNormal(1.0))
