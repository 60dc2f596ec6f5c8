"""Who gets what: properties of every stream on every partition, over sizes, counts and seeds."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlearn.types import Samples, Scenario
from scenarios.build import build_scenario
from scenarios.clocks import Clock
from scenarios.dataset import Dataset
from scenarios.partitions import (
    Dirichlet,
    Iid,
    LogNormal,
    Natural,
    Partition,
    Pathological,
    Quantity,
)
from scenarios.streams.class_incremental import ClassIncremental, SharedHead, TaskIncremental
from scenarios.streams.domain_incremental import Drifting, Permuted, Rotated
from scenarios.streams.independent import Independent
from scenarios.streams.instance_incremental import Blurry, Chunked, InstanceIncremental
from scenarios.streams.layout import Layout, Stream
from scenarios.streams.repetition import Repetition
from scenarios.streams.sources import Sources

CLASSES = 6
HELD: list[Stream] = [
    ClassIncremental(4),
    ClassIncremental(3, sizes=(1, 2, 2)),
    TaskIncremental(3, shuffle_classes=True),
    SharedHead(3),
    Permuted(3),
    Rotated(3),
    Drifting(3),
    Sources(by="domain"),
    Sources(by="domain", shuffle=True),
]
"""Streams whose experiences hold all of a client's samples of their groups."""

DEALT: list[Stream] = [
    InstanceIncremental(4),
    Chunked(6, chunks=3),
    Blurry(3, blur=0.3),
    Blurry(1),
    Blurry(2, sizes=(2, 1)),
    Repetition(5, 3),
    Independent(4, 2),
    Independent(3, 2, distinct=True),
]
"""Streams whose experiences share a client's samples out, each to one of them."""

PARTITIONS: list[Partition] = [
    Iid(),
    Dirichlet(0.3, min_samples=0),
    Pathological(2),
    Quantity(1.0),
    LogNormal(1.0),
    Natural("domain"),
]
ORDERS = [Clock(), Clock(order="shuffled")]


def names(value: object) -> str:
    return type(value).__name__


@dataclass(frozen=True)
class Case:
    """A built scenario and what it was built from."""

    dataset: Dataset
    layout: Layout
    owned: list[Tensor]
    scenario: Scenario
    groups: Tensor

    def of(self, client_id: int, experience: int) -> Tensor:
        """All rows of the pair, trained on or set aside, ascending."""
        kept = (self.scenario.shares, self.scenario.held_out)
        return torch.cat([rows[client_id, experience] for rows in kept]).sort().values

    @property
    def pairs(self) -> list[tuple[int, int]]:
        length = range(self.scenario.num_experiences)
        return [(k, t) for k in range(self.scenario.num_clients) for t in length]


def samples(size: int, seed: int) -> Dataset:
    """A dataset of `size` samples or a few more, every class and every domain among them."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(CLASSES), torch.randint(CLASSES, (size,), generator=rng)])
    domain = torch.cat([torch.arange(CLASSES), torch.randint(CLASSES, (size,), generator=rng)])
    y, domain = y[torch.randperm(len(y), generator=rng)], domain
    x = torch.arange(len(y), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 3, 3).contiguous()
    test = torch.arange(2 * CLASSES)
    return Dataset(
        "toy",
        Samples(x, y),
        Samples(torch.zeros(len(test), 1, 3, 3), test % CLASSES),
        CLASSES,
        "",
        tags={"domain": (domain, test % CLASSES)},
    )


def made(
    stream: Stream,
    partition: Partition,
    clock: Clock,
    size: int,
    num_clients: int,
    held_out: float,
    seed: int,
) -> Case:
    dataset = samples(size, seed)
    layout = stream.lay_out(dataset, num_clients, seed)
    return Case(
        dataset,
        layout,
        partition.split(dataset, num_clients, seed),
        build_scenario("toy", dataset, stream, partition, num_clients, held_out, seed, clock),
        dataset.tags["domain"][0] if layout.groups else dataset.train.y,
    )


def cases(*streams: Stream) -> st.SearchStrategy[Case]:
    return st.builds(
        made,
        st.sampled_from(streams),
        st.sampled_from(PARTITIONS),
        st.sampled_from(ORDERS),
        st.integers(0, 150),
        st.integers(3, 6),
        st.floats(0, 0.5),
        st.integers(0, 2**32),
    )


@pytest.mark.parametrize("stream", [*HELD, *DEALT], ids=names)
@pytest.mark.parametrize("partition", PARTITIONS, ids=names)
@given(data=st.data())
@settings(max_examples=4)
def test_a_clients_rows_stay_with_it_and_what_is_held_out_is_not_trained_on(
    stream: Stream, partition: Partition, data: st.DataObject
) -> None:
    case = made(
        stream,
        partition,
        data.draw(st.sampled_from(ORDERS)),
        data.draw(st.integers(0, 100)),
        data.draw(st.integers(3, 6)),
        held_out := data.draw(st.floats(0, 0.5)),
        data.draw(st.integers(0, 2**32)),
    )
    scenario = case.scenario
    for client_id in range(scenario.num_clients):
        seen = [case.of(client_id, t) for t in range(scenario.num_experiences)]
        assert torch.isin(torch.cat(seen), case.owned[client_id]).all()
        trained = torch.cat(
            [scenario.shares[client_id, t] for t in range(scenario.num_experiences)]
        )
        aside = torch.cat(
            [scenario.held_out[client_id, t] for t in range(scenario.num_experiences)]
        )
        for t, rows in enumerate(seen):
            assert len(rows.unique()) == len(rows)
            assert len(scenario.held_out[client_id, t]) == round(held_out * len(rows))
            assert scenario.shares[client_id, t].equal(scenario.shares[client_id, t].sort().values)
        # Classes that come whole in one experience only, and dealt samples, are in one experience;
        # so what is held out in any experience is trained on in none. Domains hold the same out.
        assert not torch.isin(aside, trained).any()


@given(cases(*HELD))
@settings(max_examples=80)
def test_an_experience_holds_all_of_its_clients_samples_of_its_groups(case: Case) -> None:
    for client_id, t in case.pairs:
        topic = int(case.scenario.orders[client_id, t])
        mine = case.owned[client_id]
        groups = case.layout.weights[topic].nonzero().flatten()
        assert case.of(client_id, t).equal(mine[torch.isin(case.groups[mine], groups)])


@given(cases(*DEALT))
@settings(max_examples=150)
def test_each_sample_is_dealt_once_in_proportion_to_the_weights(case: Case) -> None:
    orders, weights = case.scenario.orders, case.layout.weights
    length = case.scenario.num_experiences
    for client_id, mine in enumerate(case.owned):
        shares = weights[orders[client_id]]  # (T, G)
        total = shares.sum(0)
        dealt = torch.cat([case.of(client_id, t) for t in range(length)])
        wanted = mine[total[case.groups[mine]] > 0]
        assert dealt.sort().values.equal(wanted)  # each once; those of no use are left out
        counts = torch.stack(
            [case.groups[case.of(client_id, t)].bincount(minlength=CLASSES) for t in range(length)]
        )
        exact = shares / total.clamp(min=1e-300) * counts.sum(0)
        assert ((counts - exact).abs() < 1 + 1e-9).all()
        assert not counts[shares == 0].any()


@given(cases(InstanceIncremental(4), Chunked(6, chunks=3), Blurry(3), Repetition(5, 3)))
@settings(max_examples=40)
def test_streams_of_all_classes_use_every_sample_exactly_once(case: Case) -> None:
    used = torch.cat([case.of(*pair) for pair in case.pairs])
    assert used.sort().values.equal(torch.arange(len(case.dataset.train)))


@given(cases(ClassIncremental(4), TaskIncremental(2), SharedHead(5)))
@settings(max_examples=40)
def test_streams_of_disjoint_classes_use_every_sample_exactly_once(case: Case) -> None:
    used = torch.cat([case.of(*pair) for pair in case.pairs])
    assert used.sort().values.equal(torch.arange(len(case.dataset.train)))


@given(cases(ClassIncremental(4), Chunked(6, chunks=3), Repetition(5, 3), Independent(4, 2)))
@settings(max_examples=60)
def test_an_experience_holds_only_samples_of_its_topics_classes(case: Case) -> None:
    scenario = case.scenario
    for client_id, t in case.pairs:
        experience = scenario.experience(client_id, t)
        assert experience.classes == scenario.topics[int(scenario.orders[client_id, t])].classes
        assert set(case.dataset.train.y[case.of(client_id, t)].tolist()) <= set(experience.classes)


@given(cases(*HELD, *DEALT))
@settings(max_examples=60)
def test_nothing_is_copied(case: Case) -> None:
    scenario = case.scenario
    assert scenario.train.x is case.dataset.train.x
    assert scenario.test.x is case.dataset.test.x
    for shares in (scenario.shares, scenario.held_out):
        storage = shares.rows.untyped_storage().data_ptr()
        for pair in case.pairs:
            assert shares[pair].untyped_storage().data_ptr() == storage
    alike: dict[tuple[int, ...], int] = {}
    for topic in scenario.topics if case.layout.groups is None else ():
        place = alike.setdefault(topic.classes, topic.test_rows.data_ptr())
        if scenario.kind != "domain" or len(topic.classes) == CLASSES:
            assert topic.test_rows.data_ptr() == place


@pytest.mark.parametrize("stream", [*HELD, *DEALT], ids=names)
@given(
    st.sampled_from(PARTITIONS),
    st.sampled_from(ORDERS),
    st.integers(0, 2**32),
    st.integers(0, 2**32),
)
@settings(max_examples=5)
def test_a_scenario_is_a_function_of_its_seed_and_depends_on_it(
    stream: Stream, partition: Partition, clock: Clock, seed: int, other: int
) -> None:
    dataset, before = samples(120, 0), torch.get_rng_state()
    first, again, elsewhere = (
        build_scenario("toy", dataset, stream, partition, 4, 0.2, each, clock)
        for each in (seed, seed, other)
    )
    assert first.manifest() == again.manifest()
    assert first.shares.rows.equal(again.shares.rows)
    assert first.held_out.rows.equal(again.held_out.rows)
    assert first.orders.equal(again.orders)
    assert seed == other or first.manifest()["rows"] != elsewhere.manifest()["rows"]
    assert torch.get_rng_state().equal(before)


def test_samples_are_dealt_in_an_order_drawn_from_the_seed() -> None:
    dataset = samples(3000, 0)
    dealt = [
        build_scenario("toy", dataset, InstanceIncremental(3), Iid(), 1, 0.0, seed).shares
        for seed in (0, 0, 1)
    ]  # a single client has all rows, whatever the seed
    assert dealt[0].rows.equal(dealt[1].rows)
    assert not dealt[0].rows.equal(dealt[2].rows)
    for t in range(3):
        assert abs(float(dealt[0][0, t].double().mean()) - 1500) < 110  # four deviations
        both = torch.isin(dealt[0][0, t], dealt[2][0, t])
        assert abs(float(both.double().mean()) - 1 / 3) < 0.06


def many_clients(stream: Stream) -> tuple[Scenario, Tensor, Tensor]:
    """A thousand clients of two or three samples of each class, half of each pair set aside.

    Returns:
        The scenario, and how many samples of each class all experiences t train on and set aside,
        (T, CLASSES) each.
    """
    y, few = torch.arange(15_000) % CLASSES, torch.arange(CLASSES)
    large = Dataset(
        "many",
        Samples(torch.zeros(len(y), 1), y),
        Samples(torch.zeros(CLASSES, 1), few),
        CLASSES,
        "",
    )
    scenario = build_scenario("many", large, stream, Iid(), 1000, 0.5, 0)
    trained, aside = (
        torch.stack(
            [
                y[torch.cat([shares[k, t] for k in range(1000)])].bincount(minlength=CLASSES)
                for t in range(scenario.num_experiences)
            ]
        )
        for shares in (scenario.shares, scenario.held_out)
    )
    return scenario, trained, aside


@pytest.mark.parametrize(
    "stream",
    [InstanceIncremental(5), Blurry(3, blur=0.3), Repetition(5, 3), Chunked(6, chunks=3)],
    ids=names,
)
def test_what_clients_with_few_samples_have_too_much_or_too_little_cancels_out(
    stream: Stream,
) -> None:
    scenario, trained, aside = many_clients(stream)
    layout = stream.lay_out(samples(0, 0), 1, 0)
    expected = layout.weights / layout.weights.sum(0) * 2500
    assert ((trained + aside - expected).abs() <= 4 * expected.sqrt()).all()
    assert scenario.shares.sizes().float().mean() < 3  # or nothing would have to cancel out


@pytest.mark.parametrize("stream", [Blurry(3, blur=0.3), Repetition(5, 3)], ids=names)
def test_what_is_set_aside_is_like_what_is_trained_on(stream: Stream) -> None:
    _, trained, aside = many_clients(stream)
    both = trained + aside
    share = aside.sum() / both.sum()
    assert ((aside - share * both).abs() <= 4 * (both * share * (1 - share)).sqrt()).all()
