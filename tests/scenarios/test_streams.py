from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from toys import labelled, toy

from scenarios.dataset import Dataset
from scenarios.datasets.synthetic import synthetic
from scenarios.domains import Blur, PatternNoise, PixelPermutation, Rotation, Scale
from scenarios.streams.class_incremental import ClassIncremental, SharedHead, TaskIncremental
from scenarios.streams.domain_incremental import Drifting, Permuted, Rotated
from scenarios.streams.independent import Independent
from scenarios.streams.instance_incremental import Blurry, Chunked, InstanceIncremental
from scenarios.streams.layout import Stream
from scenarios.streams.repetition import Repetition
from scenarios.streams.sources import Sources

IMAGE = (1, 4, 4)


@pytest.mark.parametrize("stream", [ClassIncremental, TaskIncremental])
@given(
    num_classes=st.integers(1, 30),
    num_experiences=st.integers(1, 30),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_classes_are_disjoint_complete_and_even(
    stream: type[ClassIncremental], num_classes: int, num_experiences: int, shuffle: bool, seed: int
) -> None:
    assume(num_experiences <= num_classes)
    layout = stream(num_experiences, shuffle).lay_out(toy(num_classes, IMAGE), 1, seed)
    sizes = [len(classes) for classes in layout.classes]
    assert len(sizes) == len(layout.weights) == num_experiences
    assert sorted(sum(layout.classes, ())) == list(range(num_classes))
    assert max(sizes) - min(sizes) <= 1
    assert layout.transforms is None
    for t, classes in enumerate(layout.classes):
        assert set(layout.weights[t].nonzero().flatten().tolist()) == set(classes)
    assert (layout.labels, layout.orders, layout.groups, layout.dealt) == (None, None, None, False)


def test_ten_classes_in_three_experiences_drop_none() -> None:
    layout = ClassIncremental(3).lay_out(toy(10, IMAGE), 1, 0)
    assert layout.classes == ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_the_class_order_is_drawn_from_the_seed_only_when_asked() -> None:
    plain, shuffled = ClassIncremental(5), ClassIncremental(5, shuffle_classes=True)
    assert (
        plain.lay_out(toy(10, IMAGE), 1, 1).classes == plain.lay_out(toy(10, IMAGE), 1, 2).classes
    )
    assert (
        shuffled.lay_out(toy(10, IMAGE), 1, 1).classes
        == shuffled.lay_out(toy(10, IMAGE), 1, 1).classes
    )
    assert (
        shuffled.lay_out(toy(10, IMAGE), 1, 1).classes
        != shuffled.lay_out(toy(10, IMAGE), 1, 2).classes
    )


@given(st.permutations(range(6)))
def test_an_explicit_class_order_is_followed(order: list[int]) -> None:
    layout = TaskIncremental(3, class_order=tuple(order)).lay_out(toy(6, IMAGE), 1, 0)
    assert sum(layout.classes, ()) == tuple(order)
    assert layout.recipe["class_order"] == order
    assert layout.kind == "task"


def test_a_class_order_may_come_as_a_list() -> None:
    assert ClassIncremental(1, class_order=[1, 0]) == ClassIncremental(1, class_order=(1, 0))  # type: ignore[arg-type]


@given(st.integers(1, 6), st.integers(0, 2**32))
def test_permuted_starts_with_the_identity_and_then_draws_a_bijection_each(
    num_experiences: int, seed: int
) -> None:
    layout = Permuted(num_experiences).lay_out(toy(3, (2, 4, 4)), 1, seed)
    assert layout.kind == "domain"
    assert layout.classes == ((0, 1, 2),) * num_experiences
    assert layout.transforms[0] is None
    drawn = layout.transforms[1:]
    orders = [transform.order for transform in drawn if isinstance(transform, PixelPermutation)]
    assert len(orders) == len(drawn) == len(set(orders)) == num_experiences - 1
    assert all(sorted(order) == list(range(32)) for order in orders)


def test_permutations_depend_on_the_seed_and_not_on_the_length_of_the_stream() -> None:
    def transforms(length: int, seed: int) -> tuple[object, ...]:
        return Permuted(length).lay_out(toy(3, IMAGE), 1, seed).transforms

    assert transforms(3, 0) == transforms(5, 0)[:3]
    assert transforms(3, 0) != transforms(3, 1)


@given(st.integers(2, 12), st.floats(1, 359))
def test_rotated_spaces_its_angles_evenly_up_to_the_last(
    num_experiences: int, max_angle: float
) -> None:
    layout = Rotated(num_experiences, max_angle).lay_out(toy(3, IMAGE), 1, 0)
    assert layout.transforms[0] is None
    turned = [t.angle for t in layout.transforms if isinstance(t, Rotation)]
    torch.testing.assert_close(
        torch.tensor([0.0, *turned]), torch.linspace(0, max_angle, num_experiences)
    )
    assert layout.recipe["angles"] == [0.0, *turned]


def test_rotated_with_one_experience_does_not_rotate() -> None:
    assert Rotated(1).lay_out(toy(3, IMAGE), 1, 0).transforms == (None,)


@given(st.permutations(range(7)), st.sampled_from([(1, 4, 2), (7,), (1,) * 7, (3, 4)]))
def test_experiences_bring_as_many_classes_as_they_are_told(
    order: list[int], sizes: tuple[int, ...]
) -> None:
    for kind in (ClassIncremental, TaskIncremental, SharedHead, Blurry):
        layout = kind(len(sizes), class_order=tuple(order), sizes=sizes).lay_out(
            toy(7, IMAGE), 1, 0
        )
        assert tuple(map(len, layout.classes)) == sizes
        assert sum(layout.classes, ()) == tuple(order)
        assert layout.recipe["sizes"] == list(sizes)


@pytest.mark.parametrize("kind", [ClassIncremental, TaskIncremental, SharedHead, Blurry])
def test_classes_may_be_left_out(kind: type[ClassIncremental]) -> None:
    layout = kind(2, class_order=(4, 1, 0, 3, 2), sizes=(2, 1)).lay_out(toy(5, IMAGE), 1, 0)
    assert layout.classes == ((4, 1), (0,))
    assert not layout.weights[:, [2, 3]].any()
    assert layout.weights.sum(0).tolist() == pytest.approx([1, 1, 0, 0, 1])


def test_chunks_of_a_group_follow_each_other_and_share_its_classes() -> None:
    layout = Chunked(6, chunks=3, sizes=(1, 3)).lay_out(toy(4, IMAGE), 1, 0)
    assert layout.classes == ((0,), (0,), (0,), (1, 2, 3), (1, 2, 3), (1, 2, 3))
    assert layout.weights.tolist() == [[1, 0, 0, 0]] * 3 + [[0, 1, 1, 1]] * 3
    assert layout.dealt


@given(st.integers(1, 9), st.floats(0, 0.999))
def test_blur_takes_its_share_from_every_class_and_spreads_it_evenly(
    num_experiences: int, blur: float
) -> None:
    layout = Blurry(num_experiences, blur=blur).lay_out(toy(9, IMAGE), 1, 0)
    sharp = ClassIncremental(num_experiences).lay_out(toy(9, IMAGE), 1, 0)
    assert layout.classes == sharp.classes
    others = max(num_experiences - 1, 1)
    for t, classes in enumerate(layout.classes):
        for label in range(9):
            share = 1 - blur if label in classes else blur / others
            assert float(layout.weights[t, label]) == pytest.approx(share, abs=1e-12)
    assert layout.dealt


def test_no_blur_deals_every_sample_to_its_own_class() -> None:
    layout = Blurry(3, blur=0).lay_out(toy(9, IMAGE), 1, 0)
    assert layout.weights.equal(ClassIncremental(3).lay_out(toy(9, IMAGE), 1, 0).weights)
    assert Blurry(3, blur=0) == Blurry(3, blur=0.0)
    assert repr(Blurry(3, blur=0)) == repr(Blurry(3, blur=0.0))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_repetition_fills_every_experience_and_forgets_no_class(
    num_experiences: int, size: int, num_classes: int, seed: int
) -> None:
    assume(size <= num_classes <= size * num_experiences)
    layout = Repetition(num_experiences, size).lay_out(toy(num_classes, IMAGE), 1, seed)
    assert len(layout.classes) == num_experiences
    assert all(len(set(classes)) == len(classes) == size for classes in layout.classes)
    assert set(sum(layout.classes, ())) == set(range(num_classes))
    assert layout.dealt
    assert (
        layout.classes
        == Repetition(num_experiences, size).lay_out(toy(num_classes, IMAGE), 9, seed).classes
    )


def test_repetition_places_classes_at_random() -> None:
    times = torch.zeros(6, 10)
    for seed in range(1000):
        layout = Repetition(6, 4).lay_out(toy(10, IMAGE), 1, seed)
        for t, classes in enumerate(layout.classes):
            times[t, list(classes)] += 1
    assert times.min() > 330  # of 1000 * 4 / 10
    assert times.max() < 470


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(0, 2**32),
)
def test_independent_clients_draw_their_own_classes(
    num_classes: int, size: int, num_experiences: int, num_clients: int, seed: int
) -> None:
    assume(size <= num_classes)
    stream = Independent(num_experiences, size)
    layout = stream.lay_out(toy(num_classes, IMAGE), num_clients, seed)
    assert layout.orders is not None
    assert layout.orders.shape == (num_clients, num_experiences)
    assert all(len(set(classes)) == len(classes) == size for classes in layout.classes)
    assert all(classes == tuple(sorted(classes)) for classes in layout.classes)
    assert len(set(layout.classes)) == len(layout.classes)  # no topic twice
    assert set(layout.orders.flatten().tolist()) == set(range(len(layout.classes)))  # none unused
    again = stream.lay_out(toy(num_classes, IMAGE), num_clients, seed)
    assert again.classes == layout.classes
    assert again.orders is not None
    assert again.orders.equal(layout.orders)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**32))
def test_distinct_clients_draw_no_class_twice(
    num_experiences: int, size: int, rest: int, seed: int
) -> None:
    dataset = toy(num_experiences * size + rest, IMAGE)
    layout = Independent(num_experiences, size, distinct=True).lay_out(dataset, 6, seed)
    assert layout.orders is not None
    for topics in layout.orders.tolist():
        drawn = sum((layout.classes[topic] for topic in topics), ())
        assert len(set(drawn)) == len(drawn) == num_experiences * size


def test_independent_classes_are_drawn_uniformly_and_for_each_client() -> None:
    layout = Independent(5, 2).lay_out(toy(10, IMAGE), 1000, 0)
    assert layout.orders is not None
    assert len(layout.classes) == 45  # all pairs
    counts = layout.orders.flatten().bincount()
    assert counts.min() > 70  # of 5000 / 45
    assert counts.max() < 155
    assert len({tuple(row) for row in layout.orders.tolist()}) == 1000
    assert not (layout.orders == layout.orders[:, :1]).all(1).any()


@given(st.integers(2, 9), st.floats(0.01, 0.99))
def test_a_drift_gets_worse_evenly(num_experiences: int, severity: float) -> None:
    expected = torch.linspace(0, severity, num_experiences, dtype=torch.float64)[1:].tolist()

    def found(drift: str) -> list[object]:
        stream = Drifting(num_experiences, drift, severity)  # type: ignore[arg-type]
        layout = stream.lay_out(toy(3, (3, 4, 4)), 1, 0)
        assert layout.classes == ((0, 1, 2),) * num_experiences
        assert layout.recipe["severities"] == pytest.approx([0.0, *expected])
        assert layout.transforms is not None
        assert layout.transforms[0] is None
        return list(layout.transforms[1:])

    blurs, patterns = found("blur"), found("noise")
    assert [each.sigma for each in blurs if isinstance(each, Blur)] == pytest.approx(expected)
    assert [each.std for each in patterns if isinstance(each, PatternNoise)] == pytest.approx(
        expected
    )
    assert len({each.seed for each in patterns if isinstance(each, PatternNoise)}) == 1
    for drift, untouched in (("contrast", 0), ("tint", 1)):
        scales = [each.factors for each in found(drift) if isinstance(each, Scale)]
        assert all(factors[:untouched] == (1.0,) * untouched for factors in scales)
        assert [factors[-1] for factors in scales] == pytest.approx([1 - each for each in expected])


def test_the_pattern_of_a_noise_depends_on_the_seed() -> None:
    def pattern(seed: int) -> object:
        layout = Drifting(3, "noise").lay_out(toy(3, (5,)), 1, seed)
        assert layout.transforms is not None
        return layout.transforms[2]

    assert pattern(0) == pattern(0)
    assert pattern(0) != pattern(1)


def test_a_single_experience_does_not_drift() -> None:
    assert Drifting(1).lay_out(toy(3, (5,)), 1, 0).transforms == (None,)
    assert repr(Drifting(severity=1)) == repr(Drifting(severity=1.0))


def by_domain(train: list[int], test: list[int]) -> Dataset:
    """A dataset whose training and test samples have these domains; labels are domain // 2."""
    samples = synthetic(3, (2,), samples_per_class=len(train), test_samples_per_class=len(test))
    parts = []
    for store, tag in ((samples.train, train), (samples.test, test)):
        y = torch.tensor(tag) // 2
        parts.append(replace(store, x=store.x[: len(y)], y=y))
    tags = {"domain": (torch.tensor(train), torch.tensor(test))}
    return replace(samples, train=parts[0], test=parts[1], tags=tags)


def test_sources_follow_the_tag_in_training_and_in_testing() -> None:
    dataset = by_domain([0, 4, 4, 2, 2, 0, 3], [0, 2, 3, 4, 0, 5])
    layout = Sources().lay_out(dataset, 1, 0)
    assert layout.kind == "domain"
    assert layout.recipe["order"] == [0, 2, 3, 4]  # 5 is in no training sample
    assert layout.classes == ((0,), (1,), (1,), (2,))
    assert layout.weights.argmax(1).tolist() == [0, 2, 3, 4]
    assert layout.weights.sum(1).tolist() == [1, 1, 1, 1]
    assert layout.test_rows is not None
    assert [rows.tolist() for rows in layout.test_rows] == [[0, 4], [1], [2], [3]]
    assert not layout.dealt
    assert layout.groups == "domain"


def test_a_source_without_test_samples_is_tested_on_its_classes() -> None:
    layout = Sources(kind="class").lay_out(by_domain([0, 1, 2, 4], [0, 2, 3, 4]), 1, 0)
    assert layout.kind == "class"
    assert layout.test_rows is not None
    assert [rows.tolist() for rows in layout.test_rows] == [[0], [0], [1], [3]]


def test_the_order_of_sources_is_drawn_from_the_seed_only_when_asked() -> None:
    dataset = by_domain([0, 1, 2, 3, 4, 5], [0, 2, 4])
    orders = [Sources(shuffle=True).lay_out(dataset, 1, seed).recipe["order"] for seed in (0, 0, 1)]
    assert sorted(orders[0]) == [0, 1, 2, 3, 4, 5]
    assert orders[0] == orders[1] != orders[2]
    layout = Sources(shuffle=True).lay_out(dataset, 1, 0)
    assert layout.classes == tuple((value // 2,) for value in orders[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassIncremental(0), "scenario.num_experiences=0: must be at least 1"),
        (lambda: TaskIncremental(-1), "scenario.num_experiences=-1: must be at least 1"),
        (lambda: Permuted(0), "scenario.num_experiences=0: must be at least 1"),
        (lambda: Rotated(0), "scenario.num_experiences=0: must be at least 1"),
        (lambda: Rotated(2, 0.0), "scenario.max_angle=0.0: must be greater than 0 and less"),
        (lambda: Rotated(2, 360.0), "scenario.max_angle=360.0: must be greater than 0 and less"),
        (
            lambda: ClassIncremental(2, True, (1, 0)),
            "scenario.shuffle_classes=true: cannot be combined with scenario.class_order",
        ),
        (
            lambda: ClassIncremental(2, sizes=(1, 1, 1)),
            r"scenario.sizes=\[1, 1, 1\]: must be 2 numbers from 1, as scenario.num_experiences",
        ),
        (lambda: TaskIncremental(2, sizes=(4, 0)), r"scenario.sizes=\[4, 0\]: must be 2 numbers"),
        (lambda: Chunked(4, chunks=2, sizes=(4,)), r"scenario.sizes=\[4\]: must be 2 numbers"),
        (
            lambda: Chunked(4, chunks=3),
            "scenario.chunks=3: must divide scenario.num_experiences=4",
        ),
        (lambda: Chunked(4, chunks=0), "scenario.chunks=0: must divide"),
        (lambda: Chunked(0, chunks=1), "scenario.num_experiences=0: must be at least 1"),
        (lambda: InstanceIncremental(0), "scenario.num_experiences=0: must be at least 1"),
        (lambda: Blurry(2, blur=1.0), r"scenario.blur=1.0: must be in \[0, 1\)"),
        (lambda: Blurry(2, blur=-0.1), r"scenario.blur=-0.1: must be in \[0, 1\)"),
        (lambda: Blurry(2, blur=float("nan")), r"scenario.blur=nan: must be in \[0, 1\)"),
        (lambda: Repetition(0), "scenario.num_experiences=0: must be at least 1"),
        (lambda: Repetition(2, 0), "scenario.classes_per_experience=0: must be at least 1"),
        (lambda: Independent(0), "scenario.num_experiences=0: must be at least 1"),
        (lambda: Independent(2, 0), "scenario.classes_per_experience=0: must be at least 1"),
        (lambda: Drifting(0), "scenario.num_experiences=0: must be at least 1"),
        (
            lambda: Drifting(2, "rain"),  # type: ignore[arg-type]
            "scenario.drift=rain: must be one of blur, noise, contrast, tint$",
        ),
        (
            lambda: Drifting(2, "noise", 0.0),
            "scenario.severity=0.0: must be greater than 0 and finite for scenario.drift=noise",
        ),
        (lambda: Drifting(2, "blur", float("inf")), "scenario.severity=inf: must be .* finite"),
        (lambda: Drifting(2, "noise", float("nan")), "scenario.severity=nan: must be"),
        (
            lambda: Drifting(2, "tint", 1.0),
            "scenario.severity=1.0: must be greater than 0 and less than 1 for scenario.drift=tint",
        ),
        (lambda: Drifting(2, "contrast", 2.0), "scenario.severity=2.0: must be .* less than 1"),
        (
            lambda: Sources(kind="kind"),  # type: ignore[arg-type]
            "scenario.kind=kind: must be one of class, task, domain$",
        ),
    ],
)
def test_a_parameter_out_of_range_is_refused_before_any_data(make, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        make()


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (ClassIncremental(5), "scenario.num_experiences=5: more than the dataset's 4 classes"),
        (ClassIncremental(2, class_order=(0, 1, 2, 2)), ".*class 2"),
        (ClassIncremental(2, class_order=(0, 1, 2)), ".*lacks class 3"),
        (ClassIncremental(2, class_order=(0, 1, 2, 3, 4)), ".*there is no class 4"),
        (ClassIncremental(2, class_order=(0, 1, 2, 3, 0)), ".*repeats class 0"),
        (Rotated(2), r"dataset inputs of shape \[16\] cannot be rotated"),
        (
            ClassIncremental(2, sizes=(2, 3)),
            r"scenario.sizes=\[2, 3\]: add up to 5, more than the dataset's 4 classes",
        ),
        (Chunked(10, chunks=2), "scenario.num_experiences=10: more than the dataset's 4 classes"),
        (Repetition(9, 5), "scenario.classes_per_experience=5: more than the dataset's 4 classes"),
        (
            Repetition(3, 1),
            "scenario.classes_per_experience=1: 3 experiences have room for 3 of the 4 classes",
        ),
        (Independent(9, 5), "scenario.classes_per_experience=5: more than the dataset's 4 classes"),
        (
            Independent(3, 2, distinct=True),
            "scenario.distinct=true: 3 experiences of 2 classes need more than the dataset's 4",
        ),
        (
            Drifting(2, "blur"),
            r"scenario.drift=blur: needs images \(channels, height, width\), inputs are \[16\]",
        ),
        (Sources(), "scenario.by=domain: dataset toy has no such tag; tags: none"),
    ],
)
def test_a_stream_that_does_not_fit_the_dataset_is_refused_in_one_line(
    stream: Stream, message: str
) -> None:
    with pytest.raises(ValueError, match="^" + message) as caught:
        stream.lay_out(toy(4, (16,)), 1, 0)
    assert "\n" not in str(caught.value)


def test_a_tint_needs_colours_and_noise_needs_real_inputs() -> None:
    with pytest.raises(ValueError, match=r"^scenario.drift=tint: needs images \(3 channels, "):
        Drifting(2, "tint").lay_out(toy(4, (1, 4, 4)), 1, 0)
    words = labelled(torch.arange(4), 4, (6,))
    tokens = {
        part: replace(getattr(words, part), x=getattr(words, part).x.long())
        for part in ("train", "test")
    }
    with pytest.raises(ValueError, match=r"^scenario.drift=noise: inputs are tokens"):
        Drifting(2, "noise").lay_out(replace(words, **tokens), 1, 0)


@pytest.mark.parametrize(
    "stream",
    [
        ClassIncremental(2, shuffle_classes=True),
        Permuted(2),
        Rotated(2),
        Drifting(2),
        InstanceIncremental(2),
        Chunked(4, chunks=2),
        Blurry(2),
        Repetition(3, 2),
        Independent(3, 2),
        Sources(by="domain", shuffle=True),
    ],
    ids=lambda stream: type(stream).__name__,
)
def test_a_stream_leaves_the_global_generators_alone(stream: Stream) -> None:
    dataset = synthetic(4, (1, 4, 4), samples_per_class=4, test_samples_per_class=1)
    tag = torch.arange(16) // 4
    tagged = replace(dataset, tags={"domain": (tag, tag[:4])})
    before = torch.get_rng_state()
    stream.lay_out(tagged, 3, 0)
    assert torch.get_rng_state().equal(before)
