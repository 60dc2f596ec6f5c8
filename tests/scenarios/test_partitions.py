import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scenarios.partitions import Dirichlet, Iid, Partition, Pathological, Quantity

SEEDS = st.integers(0, 2**32)
PARTITIONS = st.one_of(
    st.builds(Iid, min_samples=st.just(0)),
    st.builds(Dirichlet, st.floats(1e-3, 1e3), min_samples=st.just(0)),
    st.builds(Pathological, st.integers(1, 3), min_samples=st.just(0)),
    st.builds(Quantity, st.floats(0, 3), min_samples=st.just(0)),
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
    parts = partition.split(y, num_clients, num_classes, seed)
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
    first, again, elsewhere = (partition.split(y, 6, 5, s) for s in (seed, seed, other))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not all(a.equal(b) for a, b in zip(first, elsewhere, strict=True))


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(), Pathological(), Quantity()])
def test_a_partition_leaves_the_global_generators_alone(partition: Partition) -> None:
    before = torch.get_rng_state()
    partition.split(balanced(200, 5), 5, 5, 0)
    assert torch.get_rng_state().equal(before)


@given(st.integers(1, 60), st.integers(0, 100), SEEDS)
def test_iid_sizes_differ_by_at_most_one(num_clients: int, surplus: int, seed: int) -> None:
    parts = Iid().split(balanced(num_clients + surplus, 3), num_clients, 3, seed)
    sizes = [len(rows) for rows in parts]
    assert max(sizes) - min(sizes) <= 1


def test_iid_clients_share_the_global_label_distribution() -> None:
    y = balanced(5000, 5)
    assert distance_from_global(Iid().split(y, 5, 5, 0), y, 5) < 0.05


@given(st.integers(2, 30), st.integers(1, 8), SEEDS)
@settings(max_examples=50)
def test_dirichlet_approaches_the_global_distribution_as_alpha_grows(
    num_clients: int, num_classes: int, seed: int
) -> None:
    y = balanced(num_classes * 10 * num_clients, num_classes)
    counts = histograms(Dirichlet(1e9).split(y, num_clients, num_classes, seed), y, num_classes)
    assert ((counts - 10).abs() <= 1).all()


@given(SEEDS)
@settings(max_examples=20)
def test_dirichlet_moves_away_from_the_global_distribution_as_alpha_shrinks(seed: int) -> None:
    y = balanced(5000, 10)
    distances = [
        distance_from_global(Dirichlet(alpha, min_samples=0).split(y, 10, 10, seed), y, 10)
        for alpha in (100.0, 1.0, 0.01)
    ]
    assert distances[0] < 0.1 < distances[1] < 0.6 < distances[2]


@given(SEEDS)
@settings(max_examples=20)
def test_dirichlet_with_a_tiny_alpha_gives_each_class_to_one_client(seed: int) -> None:
    y = balanced(1000, 10)
    counts = histograms(Dirichlet(1e-5, min_samples=0).split(y, 8, 10, seed), y, 10)
    assert ((counts > 0).sum(dim=0) == 1).sum() >= 9


def test_dirichlet_proportions_have_the_mean_and_variance_of_the_distribution() -> None:
    num_clients, num_classes, alpha = 5, 4000, 0.7
    y = balanced(num_classes * 200, num_classes)
    parts = Dirichlet(alpha, min_samples=0).split(y, num_clients, num_classes, 0)
    shares = histograms(parts, y, num_classes).double() / 200
    mean = 1 / num_clients
    variance = mean * (1 - mean) / (num_clients * alpha + 1)
    assert shares.mean(dim=1).sub(mean).abs().max() < 0.02
    assert shares.var(dim=1).sub(variance).abs().max() < 0.1 * variance


def test_dirichlet_favours_no_client_where_shares_are_below_one_sample() -> None:
    y = balanced(40 * 500, 500)  # 40 samples of a class over 100 clients
    sizes = torch.tensor([len(rows) for rows in Dirichlet(1e9).split(y, 100, 500, 0)])
    assert sizes.min() > 140
    assert sizes.max() < 260


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), SEEDS)
def test_pathological_gives_each_client_exactly_k_classes_and_forgets_none(
    num_clients: int, num_classes: int, k: int, seed: int
) -> None:
    assume(k <= num_classes <= num_clients * k)
    y = balanced(num_classes * num_clients, num_classes)
    counts = histograms(Pathological(k).split(y, num_clients, num_classes, seed), y, num_classes)
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
        balanced(num_samples, 3), num_clients, 3, seed
    )
    sizes = torch.tensor([len(rows) for rows in parts]).sort(descending=True).values
    weights = torch.arange(1, num_clients + 1, dtype=torch.float64) ** -exponent
    expected = min_samples + weights / weights.sum() * (num_samples - num_clients * min_samples)
    assert sizes.min() >= min_samples
    assert ((sizes - expected).abs() <= 1 + 1e-9).all()


def test_quantity_leaves_labels_alike() -> None:
    y = balanced(20_000, 5)
    assert distance_from_global(Quantity(1.0).split(y, 5, 5, 0), y, 5) < 0.05


def test_which_client_is_the_largest_is_drawn() -> None:
    splits = [Quantity(2.0).split(balanced(300, 3), 5, 3, seed) for seed in range(20)]
    largest = {max(range(5), key=lambda client_id: len(parts[client_id])) for parts in splits}
    assert len(largest) > 2


@pytest.mark.parametrize("partition", [Iid(), Dirichlet(100.0), Pathological(1), Quantity(0.5)])
def test_the_samples_of_a_class_are_dealt_at_random(partition: Partition) -> None:
    for rows in partition.split(torch.zeros(2000, dtype=torch.int64), 2, 1, 0):
        assert 900 < rows.double().mean() < 1100


def test_an_empty_client_is_avoided_by_drawing_again() -> None:
    y, seeds = balanced(200, 10), range(20)
    lax, strict = Dirichlet(0.1, min_samples=0), Dirichlet(0.1)
    assert any(min(map(len, lax.split(y, 10, 10, seed))) == 0 for seed in seeds)
    assert all(min(map(len, strict.split(y, 10, 10, seed))) > 0 for seed in seeds)


def test_ten_thousand_clients() -> None:
    y = balanced(60_000, 10)
    for partition in (Iid(), Dirichlet(min_samples=0), Pathological(), Quantity()):
        parts = partition.split(y, 10_000, 10, 0)
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
        partition.split(balanced(100, 10), num_clients, 10, 0)
    assert "\n" not in str(caught.value)


def test_equal_parameters_are_equal_whatever_their_number_type() -> None:
    assert (Dirichlet(1), Quantity(2)) == (Dirichlet(1.0), Quantity(2.0))
    assert repr(Dirichlet(1)) == repr(Dirichlet(1.0))
