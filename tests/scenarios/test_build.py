import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.types import Scenario, Shares
from scenarios.build import build_scenario
from scenarios.dataset import Dataset
from scenarios.datasets.diabetes import diabetes
from scenarios.datasets.synthetic import synthetic
from scenarios.partitions import Dirichlet, Iid, Partition, Pathological, Quantity
from scenarios.streams import (
    ClassIncremental,
    Permuted,
    Rotated,
    SharedHead,
    Stream,
    TaskIncremental,
)

DATA = synthetic(num_classes=6, input_shape=(1, 4, 4), samples_per_class=30)
STREAMS: list[Stream] = [ClassIncremental(4), TaskIncremental(3), Permuted(3), Rotated(3)]
PARTITIONS: list[Partition] = [
    Iid(),
    Dirichlet(0.3, min_samples=0),
    Pathological(2),
    Quantity(1.0),
]


def build(
    stream: Stream = STREAMS[0],
    partition: Partition = PARTITIONS[0],
    num_clients: int = 5,
    held_out: float = 0.1,
    seed: int = 0,
    dataset: Dataset = DATA,
) -> Scenario:
    return build_scenario("toy", dataset, stream, partition, num_clients, held_out, seed)


def pairs(scenario: Scenario) -> list[tuple[int, int]]:
    experiences = range(scenario.num_experiences)
    return [(k, t) for k in range(scenario.num_clients) for t in experiences]


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("partition", PARTITIONS)
@given(num_clients=st.integers(3, 30), held_out=st.floats(0, 0.5), seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_every_pair_holds_its_clients_rows_of_its_classes(
    stream: Stream, partition: Partition, num_clients: int, held_out: float, seed: int
) -> None:
    scenario = build(stream, partition, num_clients, held_out, seed)
    owned = partition.split(DATA.train.y, num_clients, 6, seed)
    for client_id, t in pairs(scenario):
        trained, aside = scenario.shares[client_id, t], scenario.held_out[client_id, t]
        mine = owned[client_id]
        labels = torch.tensor(scenario.classes[t])
        expected = mine[torch.isin(DATA.train.y[mine], labels)]
        assert torch.cat([trained, aside]).sort().values.equal(expected)
        assert len(aside) == round(held_out * len(expected))
        assert len(trained) > 0 or len(expected) == 0
        assert trained.equal(trained.sort().values)


@pytest.mark.parametrize("stream", [ClassIncremental(4), TaskIncremental(4)])
def test_new_classes_use_each_sample_exactly_once(stream: Stream) -> None:
    scenario = build(stream, Dirichlet(0.5), held_out=0.2)
    every = torch.cat([scenario.shares.rows, scenario.held_out.rows])
    assert every.sort().values.equal(torch.arange(len(DATA.train)))
    assert torch.cat(scenario.test_rows).sort().values.equal(torch.arange(len(DATA.test)))
    for t, rows in enumerate(scenario.test_rows):
        assert set(DATA.test.y[rows].tolist()) == set(scenario.classes[t])


@pytest.mark.parametrize("stream", [Permuted(4), Rotated(4)])
def test_new_domains_share_a_clients_rows_held_out_ones_included(stream: Stream) -> None:
    scenario = build(stream, Dirichlet(0.5), held_out=0.2)
    for client_id in range(scenario.num_clients):
        for t in range(1, 4):
            for kept in (scenario.shares, scenario.held_out):
                assert kept[client_id, t].equal(kept[client_id, 0])
    assert all(rows.equal(torch.arange(len(DATA.test))) for rows in scenario.test_rows)
    assert all(classes == tuple(range(6)) for classes in scenario.classes)


@pytest.mark.parametrize("num_experiences", [2, 3, 4])  # 6 classes: 3 + 3, 2 + 2 + 2, 2 + 2 + 1 + 1
def test_a_shared_head_labels_classes_by_their_place(num_experiences: int) -> None:
    order = (5, 0, 3, 1, 4, 2)
    apart = build(ClassIncremental(num_experiences, class_order=order), Dirichlet(0.5))
    shared = build(SharedHead(num_experiences, class_order=order), Dirichlet(0.5))
    assert shared.kind == "domain"
    assert shared.num_classes == -(-6 // num_experiences)
    assert shared.train.x is apart.train.x
    for pair in pairs(shared):
        assert shared.shares[pair].equal(apart.shares[pair])
        assert shared.held_out[pair].equal(apart.held_out[pair])
    for t, classes in enumerate(apart.classes):
        assert shared.classes[t] == tuple(range(len(classes)))
        _, original = apart.test_stream()[t].gather()
        _, placed = shared.test_stream()[t].gather()
        assert placed.tolist() == [classes.index(label) for label in original.tolist()]
    assert [experience.task_label for experience in shared.stream(0)] == [0] * num_experiences
    assert shared.manifest()["hash"] != apart.manifest()["hash"]


def test_held_out_rows_are_drawn_at_random() -> None:
    first, second = build(Permuted(1), held_out=0.5), build(Permuted(1), held_out=0.5, seed=1)
    rows = first.held_out.rows
    assert not rows.equal(second.held_out.rows)
    counts = DATA.train.y[rows].bincount(minlength=6)
    assert counts.min() > 5  # of 15 expected, so not a block of classes
    assert 60 < rows.double().mean() < 120  # of 0..179, so neither end is preferred


def test_experiences_are_views_of_the_stores_and_of_the_shares() -> None:
    scenario = build(Permuted(3))
    assert scenario.train is DATA.train
    assert scenario.test is DATA.test
    storage = scenario.shares.rows.untyped_storage().data_ptr()
    for client_id, t in pairs(scenario):
        experience = scenario.experience(client_id, t)
        assert experience.samples is DATA.train
        assert experience.rows.untyped_storage().data_ptr() == storage


@pytest.mark.parametrize("stream", STREAMS)
def test_gathering_rows_together_equals_gathering_them_one_by_one(stream: Stream) -> None:
    scenario = build(stream)
    for experience in (*scenario.stream(1), *scenario.held_out_stream(1), *scenario.test_stream()):
        x, y = experience.gather()
        single = [experience.gather(row[None]) for row in experience.rows]
        assert x.shape == (len(experience), 1, 4, 4)
        assert x.equal(torch.cat([x[:0], *(inputs for inputs, _ in single)]))
        assert y.equal(torch.cat([y[:0], *(labels for _, labels in single)]))
        assert y.equal(experience.samples.y[experience.rows])


@pytest.mark.parametrize("partition", [Iid(), Quantity(1.0)])
def test_a_regression_is_shared_out_without_labels(partition: Partition) -> None:
    dataset = diabetes()
    scenario = build(Permuted(3), partition, dataset=dataset)
    assert (scenario.num_classes, scenario.score, scenario.kind) == (1, "R²", "domain")
    assert scenario.manifest()["regression"] is True
    held = torch.cat([scenario.shares[k, 1] for k in range(5)])
    aside = torch.cat([scenario.held_out[k, 1] for k in range(5)])
    assert torch.cat([held, aside]).sort().values.tolist() == list(range(len(dataset.train)))
    assert [len(rows) for rows in scenario.test_rows] == [len(dataset.test)] * 3


@pytest.mark.parametrize(
    ("stream", "partition", "complaint"),
    [
        (ClassIncremental(1), Iid(), "scenario ClassIncremental goes by labels"),
        (SharedHead(1), Iid(), "scenario SharedHead goes by labels"),
        (Permuted(2), Dirichlet(0.5), "partition Dirichlet goes by labels"),
        (Permuted(2), Pathological(1), "partition Pathological goes by labels"),
    ],
)
def test_what_goes_by_labels_needs_labels(
    stream: Stream, partition: Partition, complaint: str
) -> None:
    with pytest.raises(ValueError, match=f"{complaint}, and dataset diabetes is a regression"):
        build(stream, partition, dataset=diabetes())


def test_kinds_set_task_labels_and_domains() -> None:
    assert [e.task_label for e in build(TaskIncremental(3)).stream(0)] == [0, 1, 2]
    assert [e.task_label for e in build(ClassIncremental(3)).stream(0)] == [0, 0, 0]
    permuted = build(Permuted(3))
    assert [e.transform for e in permuted.stream(0)] == list(permuted.transforms)
    assert [e.transform for e in permuted.test_stream()] == list(permuted.transforms)


@pytest.mark.parametrize("stream", STREAMS)
def test_equal_arguments_give_the_same_manifest(stream: Stream) -> None:
    manifest = build(stream).manifest()
    assert manifest == build(stream).manifest()
    assert json.loads(json.dumps(manifest)) == manifest


def test_every_argument_changes_the_manifest() -> None:
    other_data = synthetic(num_classes=6, input_shape=(1, 4, 4), samples_per_class=30, seed=1)
    scenarios = [
        build(),
        build(seed=1),
        build(held_out=0.2),
        build(num_clients=6),
        build(dataset=other_data),
        build(stream=TaskIncremental(4)),
        build(stream=ClassIncremental(3)),
        build(stream=ClassIncremental(4, class_order=(5, 4, 3, 2, 1, 0))),
        build(stream=Rotated(4)),
        build(stream=Rotated(4, 90.0)),
        build(stream=Permuted(4)),
        build(partition=Dirichlet(0.5)),
        build(partition=Dirichlet(0.6)),
        build(partition=Iid(min_samples=2)),
    ]
    assert len({scenario.manifest()["hash"] for scenario in scenarios}) == len(scenarios)


def test_the_recipe_names_everything_that_the_protocol_was_built_from() -> None:
    recipe = build(ClassIncremental(2, shuffle_classes=True), Dirichlet(0.5), seed=3).recipe
    order = recipe["stream"].pop("class_order")
    assert sorted(order) == list(range(6))
    assert recipe == {
        "dataset": {"name": "synthetic", "digest": DATA.digest},
        "stream": {"name": "ClassIncremental", "num_experiences": 2, "shuffle_classes": True},
        "partition": {"name": "Dirichlet", "alpha": 0.5, "min_samples": 1},
        "held_out": 0.1,
        "seed": 3,
    }
    assert build(num_clients=7).manifest()["num_clients"] == 7


def test_a_partition_that_gives_a_row_twice_is_refused() -> None:
    class Greedy(Iid):
        def split(self, labels, num_clients, num_classes, seed):
            return [torch.tensor([3, 7]), torch.tensor([7])]

    with pytest.raises(ValueError, match=r"^partition: row 7 goes to more than one client$"):
        build(partition=Greedy(), num_clients=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"held_out": 0.6}, "scenario.held_out=0.6: must be between 0 and 0.5"),
        ({"held_out": -0.1}, "scenario.held_out=-0.1: must be between 0 and 0.5"),
        ({"held_out": float("nan")}, "scenario.held_out=nan: must be between 0 and 0.5"),
        ({"num_clients": 181}, "num_clients=181: more than the 180 training samples"),
        ({"stream": ClassIncremental(7)}, "scenario.num_experiences=7: more than .* 6 classes"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        build(**arguments)


def test_ten_thousand_clients_times_twenty_experiences() -> None:
    data = synthetic(10, (4,), samples_per_class=6000, test_samples_per_class=1)
    scenario = build(Permuted(20), Dirichlet(0.5, min_samples=0), 10_000, dataset=data)
    sizes = scenario.shares.sizes() + scenario.held_out.sizes()
    assert sizes.shape == (10_000, 20)
    assert (sizes.sum(dim=0) == 60_000).all()
    assert isinstance(scenario.shares, Shares)
    assert len(scenario.experience(9_999, 19)) == scenario.shares.sizes()[9_999, 19]
