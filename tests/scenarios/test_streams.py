import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from scenarios.domains import PixelPermutation, Rotation
from scenarios.streams import ClassIncremental, Permuted, Rotated, Stream, TaskIncremental

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
    layout = stream(num_experiences, shuffle).lay_out(num_classes, IMAGE, seed)
    sizes = [len(classes) for classes in layout.classes]
    assert len(sizes) == len(layout.transforms) == num_experiences
    assert sorted(sum(layout.classes, ())) == list(range(num_classes))
    assert max(sizes) - min(sizes) <= 1
    assert set(layout.transforms) == {None}


def test_ten_classes_in_three_experiences_drop_none() -> None:
    layout = ClassIncremental(3).lay_out(10, IMAGE, 0)
    assert layout.classes == ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9))


def test_the_class_order_is_drawn_from_the_seed_only_when_asked() -> None:
    plain, shuffled = ClassIncremental(5), ClassIncremental(5, shuffle_classes=True)
    assert plain.lay_out(10, IMAGE, 1).classes == plain.lay_out(10, IMAGE, 2).classes
    assert shuffled.lay_out(10, IMAGE, 1).classes == shuffled.lay_out(10, IMAGE, 1).classes
    assert shuffled.lay_out(10, IMAGE, 1).classes != shuffled.lay_out(10, IMAGE, 2).classes


@given(st.permutations(range(6)))
def test_an_explicit_class_order_is_followed(order: list[int]) -> None:
    layout = TaskIncremental(3, class_order=tuple(order)).lay_out(6, IMAGE, 0)
    assert sum(layout.classes, ()) == tuple(order)
    assert layout.recipe["class_order"] == order
    assert layout.kind == "task"


def test_a_class_order_may_come_as_a_list() -> None:
    assert ClassIncremental(1, class_order=[1, 0]) == ClassIncremental(1, class_order=(1, 0))  # type: ignore[arg-type]


@given(st.integers(1, 6), st.integers(0, 2**32))
def test_permuted_starts_with_the_identity_and_then_draws_a_bijection_each(
    num_experiences: int, seed: int
) -> None:
    layout = Permuted(num_experiences).lay_out(3, (2, 4, 4), seed)
    assert layout.kind == "domain"
    assert layout.classes == ((0, 1, 2),) * num_experiences
    assert layout.transforms[0] is None
    drawn = layout.transforms[1:]
    orders = [transform.order for transform in drawn if isinstance(transform, PixelPermutation)]
    assert len(orders) == len(drawn) == len(set(orders)) == num_experiences - 1
    assert all(sorted(order) == list(range(32)) for order in orders)


def test_permutations_depend_on_the_seed_and_not_on_the_length_of_the_stream() -> None:
    def transforms(length: int, seed: int) -> tuple[object, ...]:
        return Permuted(length).lay_out(3, IMAGE, seed).transforms

    assert transforms(3, 0) == transforms(5, 0)[:3]
    assert transforms(3, 0) != transforms(3, 1)


@given(st.integers(2, 12), st.floats(1, 359))
def test_rotated_spaces_its_angles_evenly_up_to_the_last(
    num_experiences: int, max_angle: float
) -> None:
    layout = Rotated(num_experiences, max_angle).lay_out(3, IMAGE, 0)
    assert layout.transforms[0] is None
    turned = [t.angle for t in layout.transforms if isinstance(t, Rotation)]
    torch.testing.assert_close(
        torch.tensor([0.0, *turned]), torch.linspace(0, max_angle, num_experiences)
    )
    assert layout.recipe["angles"] == [0.0, *turned]


def test_rotated_with_one_experience_does_not_rotate() -> None:
    assert Rotated(1).lay_out(3, IMAGE, 0).transforms == (None,)


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
    ],
)
def test_a_stream_that_does_not_fit_the_dataset_is_refused_in_one_line(
    stream: Stream, message: str
) -> None:
    with pytest.raises(ValueError, match="^" + message) as caught:
        stream.lay_out(4, (16,), 0)
    assert "\n" not in str(caught.value)
