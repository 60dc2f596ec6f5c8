import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.types import Scenario, Shares
from scenarios.build import build_scenario
from scenarios.clocks import Clock
from scenarios.dataset import Dataset
from scenarios.datasets.arrays import from_arrays
from scenarios.datasets.diabetes import diabetes
from scenarios.datasets.synthetic import synthetic
from scenarios.partitions import (
    Dirichlet,
    FromFile,
    Iid,
    LogNormal,
    Partition,
    Pathological,
    Quantity,
)
from scenarios.skews import Skew
from scenarios.streams.class_incremental import ClassIncremental, SharedHead, TaskIncremental
from scenarios.streams.domain_incremental import Drifting, Permuted, Rotated
from scenarios.streams.independent import Independent
from scenarios.streams.instance_incremental import Blurry, Chunked, InstanceIncremental
from scenarios.streams.layout import Stream
from scenarios.streams.repetition import Repetition

DATA = synthetic(num_classes=6, input_shape=(1, 4, 4), samples_per_class=30)
WHOLE: list[Stream] = [
    ClassIncremental(4),
    ClassIncremental(3, sizes=(1, 3, 2)),
    TaskIncremental(3),
    Permuted(3),
    Rotated(3),
    Drifting(3),
]
"""Streams whose experiences hold all of a client's samples of their classes."""

STREAMS: list[Stream] = [
    *WHOLE,
    InstanceIncremental(3),
    Chunked(6, chunks=2),
    Blurry(3, blur=0.2),
    Repetition(4, 3),
    Independent(3, 2),
]
PARTITIONS: list[Partition] = [
    Iid(),
    Dirichlet(0.3, min_samples=0),
    Pathological(2),
    Quantity(1.0),
    LogNormal(1.0),
]


def build(
    stream: Stream = STREAMS[0],
    partition: Partition = PARTITIONS[0],
    num_clients: int = 5,
    held_out: float = 0.1,
    seed: int = 0,
    dataset: Dataset = DATA,
    clock: Clock | None = None,
    skew: Skew | None = None,
    rounds_per_experience: int | None = None,
) -> Scenario:
    return build_scenario(
        "toy",
        dataset,
        stream,
        partition,
        num_clients,
        held_out,
        seed,
        clock,
        skew,
        rounds_per_experience,
    )


def rows_tested(scenario: Scenario) -> list[torch.Tensor]:
    return [topic.test_rows for topic in scenario.topics]


def pairs(scenario: Scenario) -> list[tuple[int, int]]:
    experiences = range(scenario.num_experiences)
    return [(k, t) for k in range(scenario.num_clients) for t in experiences]


@pytest.mark.parametrize("stream", WHOLE)
@pytest.mark.parametrize("partition", PARTITIONS)
@given(num_clients=st.integers(3, 30), held_out=st.floats(0, 0.5), seed=st.integers(0, 2**32))
@settings(max_examples=15)
def test_every_pair_holds_its_clients_rows_of_its_classes(
    stream: Stream, partition: Partition, num_clients: int, held_out: float, seed: int
) -> None:
    scenario = build(stream, partition, num_clients, held_out, seed)
    owned = partition.split(DATA, num_clients, seed)
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
    assert torch.cat(rows_tested(scenario)).sort().values.equal(torch.arange(len(DATA.test)))
    for t, rows in enumerate(rows_tested(scenario)):
        assert set(DATA.test.y[rows].tolist()) == set(scenario.classes[t])


@pytest.mark.parametrize("stream", [Permuted(4), Rotated(4), Drifting(4)])
def test_new_domains_share_a_clients_rows_held_out_ones_included(stream: Stream) -> None:
    scenario = build(stream, Dirichlet(0.5), held_out=0.2)
    for client_id in range(scenario.num_clients):
        for t in range(1, 4):
            for kept in (scenario.shares, scenario.held_out):
                assert kept[client_id, t].equal(kept[client_id, 0])
    assert all(rows.equal(torch.arange(len(DATA.test))) for rows in rows_tested(scenario))
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
    held_out = [scenario.held_out_experience(1, t) for t in range(scenario.num_experiences)]
    for experience in (*scenario.stream(1), *held_out, *scenario.test_stream()):
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
    assert [len(rows) for rows in rows_tested(scenario)] == [len(dataset.test)] * 3


def test_a_regression_may_have_several_outputs() -> None:
    x, y = (torch.randn(40, size, generator=torch.Generator().manual_seed(0)) for size in (5, 2))
    scenario = build(Permuted(2), dataset=from_arrays("two", x, y, x[:8], y[:8]))
    assert scenario.num_classes == 2
    assert [len(rows) for rows in rows_tested(scenario)] == [8, 8]
    assert scenario.shares.sizes().sum() + scenario.held_out.sizes().sum() == 2 * 40
    assert len(scenario.shares.rows) + len(scenario.held_out.rows) == 40  # the same rows twice


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
    domains = [topic.transform for topic in permuted.topics]
    assert len(set(domains)) == 3
    assert [e.transform for e in permuted.stream(0)] == domains
    assert [e.transform for e in permuted.test_stream()] == domains


def test_an_experience_shows_its_topic_through_the_clients_own_eyes() -> None:
    plain, skewed = build(Permuted(3)), build(Permuted(3), skew=Skew(rotation=40.0))
    for client_id, t in pairs(plain):
        x, y = plain.experience(client_id, t).gather()
        turned, labels = skewed.experience(client_id, t).gather()
        as_they_are = plain.train.inputs(plain.shares[client_id, t])
        seen = skewed.views[client_id](as_they_are)  # type: ignore[index, misc]
        domain = plain.topics[t].transform
        assert x.equal(as_they_are if domain is None else domain(as_they_are))
        assert turned.equal(seen if domain is None else domain(seen))
        assert not turned.equal(x)
        assert labels.equal(y)
    for one, other in zip(plain.test_stream(), skewed.test_stream(), strict=True):
        assert one.gather()[0].equal(other.gather()[0])  # what is tested is seen as it is


def test_wrong_labels_stay_within_the_head_and_out_of_the_test_set() -> None:
    skewed = build(SharedHead(3), skew=Skew(label_noise=1.0))
    plain = build(SharedHead(3))
    assert skewed.num_classes == 2
    assert set(skewed.train.y.tolist()) == {0, 1}
    assert not skewed.train.y.equal(plain.train.y)
    assert skewed.test.y.equal(plain.test.y)
    assert skewed.train.x is plain.train.x


def test_a_wrong_label_has_no_place_in_a_task_s_head() -> None:
    message = r"^skew.label_noise=0.4: a wrong label may be of another task, .* scenario$"
    with pytest.raises(ValueError, match=message):
        build(TaskIncremental(3), skew=Skew(label_noise=0.4))
    assert build(TaskIncremental(3), skew=Skew(rotation=10.0)).views is not None


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
        build(partition=LogNormal(0.5)),
        build(partition=Quantity(0.5)),
        build(stream=InstanceIncremental(4)),
        build(stream=Chunked(4, chunks=2)),
        build(stream=Chunked(4, chunks=4)),
        build(stream=Blurry(4)),
        build(stream=Blurry(4, blur=0.3)),
        build(stream=ClassIncremental(4, sizes=(1, 1, 1, 3))),
        build(stream=Repetition(4, 3)),
        build(stream=Repetition(4, 2)),
        build(stream=Independent(4, 3)),
        build(stream=Independent(4, 2)),
        build(stream=Drifting(4)),
        build(stream=Drifting(4, "noise", 0.6)),
        build(stream=Drifting(4, "blur", 0.5)),
        build(clock=Clock("shuffled")),
        build(clock=Clock(delay=3)),
        build(clock=Clock(spread=0.5)),
        build(clock=Clock(joining=0.5)),
        build(clock=Clock(leaving=0.5)),
        build(clock=Clock(pausing=0.5)),
        build(skew=Skew(rotation=30.0)),
        build(skew=Skew(label_noise=0.3)),
        build(rounds_per_experience=7),
    ]
    assert len({scenario.manifest()["hash"] for scenario in scenarios}) == len(scenarios)
    assert build(clock=Clock(), skew=Skew()).manifest() == build().manifest()


def test_the_recipe_names_everything_that_the_protocol_was_built_from() -> None:
    recipe = build(ClassIncremental(2, shuffle_classes=True), Dirichlet(0.5), seed=3).recipe
    order = recipe["stream"].pop("class_order")
    assert sorted(order) == list(range(6))
    assert recipe == {
        "dataset": {"name": "synthetic", "digest": DATA.digest},
        "stream": {
            "name": "ClassIncremental",
            "num_experiences": 2,
            "shuffle_classes": True,
            "sizes": None,
        },
        "partition": {"name": "Dirichlet", "alpha": 0.5, "min_samples": 1},
        "clock": {
            "name": "Clock",
            "order": "same",
            "delay": 0,
            "spread": 0.0,
            "joining": 0.0,
            "leaving": 0.0,
            "pausing": 0.0,
        },
        "skew": {"name": "Skew", "rotation": 0.0, "label_noise": 0.0},
        "rounds_per_experience": None,
        "held_out": 0.1,
        "seed": 3,
    }
    assert build(num_clients=7).manifest()["num_clients"] == 7


def test_a_partition_that_gives_a_row_twice_is_refused() -> None:
    class Greedy(Iid):
        def split(self, dataset, num_clients, seed):
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


def test_where_a_partitions_file_lies_is_no_part_of_the_protocol(tmp_path: Path) -> None:
    rows = [list(range(0, 180, 2)), list(range(1, 180, 2))]
    hashes = set()
    for name in ("here.json", "there.json"):
        (tmp_path / name).write_text(json.dumps(rows))
        scenario = build(partition=FromFile(str(tmp_path / name)), num_clients=2)
        assert str(tmp_path) not in json.dumps(scenario.manifest())
        hashes.add(scenario.manifest()["hash"])
    (tmp_path / "here.json").write_text(json.dumps(rows[::-1]))
    other = build(partition=FromFile(str(tmp_path / "here.json")), num_clients=2)
    assert len(hashes) == 1
    assert other.manifest()["hash"] not in hashes
