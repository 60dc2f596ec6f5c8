import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlearn.types import Transform
from scenarios.domains import PixelPermutation, Rotation

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
TRANSFORMS = [PixelPermutation((*range(40, 72), *range(40))), Rotation(33.0)]


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@given(st.permutations(range(12)))
def test_a_permutation_moves_every_element_and_loses_none(order: list[int]) -> None:
    x = images(5, 1, 3, 4)
    moved = PixelPermutation(tuple(order))(x)
    assert moved.flatten(1).equal(torch.stack([x.flatten(1)[:, i] for i in order], dim=1))
    inverse = PixelPermutation(tuple(sorted(range(12), key=order.__getitem__)))
    assert inverse(moved).equal(x)


@pytest.mark.parametrize("order", [(0, 0, 1), (1, 2, 3), (0, 2)])
def test_an_order_that_is_no_permutation_is_refused(order: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be a permutation of 0"):
        PixelPermutation(order)


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 5, 9), (1, 1, 28, 28)])
def test_a_rotation_by_zero_or_a_full_turn_is_the_identity(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    torch.testing.assert_close(Rotation(0.0)(x), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(Rotation(360.0)(x), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [8, 9, 28])
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_equal_rot90(side: int, turns: int) -> None:
    x = images(4, 2, side, side)
    expected = torch.rot90(x, turns, dims=(-2, -1))
    torch.testing.assert_close(Rotation(90.0 * turns)(x), expected, atol=1e-5, rtol=0)


def test_an_image_that_is_not_square_is_turned_about_its_centre_without_shear() -> None:
    x = images(2, 1, 6, 10)
    torch.testing.assert_close(Rotation(180.0)(x), x.flip(-2, -1), atol=1e-5, rtol=0)
    square = torch.rot90(x[..., 2:8], 1, dims=(-2, -1))
    torch.testing.assert_close(Rotation(90.0)(x)[..., 2:8], square, atol=1e-5, rtol=0)


@given(st.floats(-360, 360))
@settings(max_examples=30)
def test_rotating_back_restores_the_middle_of_a_smooth_image(angle: float) -> None:
    axis = torch.linspace(-1, 1, 33)
    x = torch.exp(-4 * ((axis[:, None] - 0.1) ** 2 + 2 * (axis[None, :] + 0.1) ** 2))[None, None]
    back = Rotation(-angle)(Rotation(angle)(x))
    assert (back - x)[..., 8:25, 8:25].abs().max() < 0.03


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_batch_is_transformed_row_by_row(transform: Transform, device: str) -> None:
    x = images(7, 2, 6, 6).to(device)
    together = transform(x)
    assert together.equal(torch.cat([transform(row[None]) for row in x]))
    assert together.equal(transform(x))
    torch.testing.assert_close(together.cpu(), transform(x.cpu()))
    assert transform(x[:0]).shape == (0, 2, 6, 6)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_used_transform_survives_pickling_and_copying(transform: Transform) -> None:
    x = images(3, 2, 6, 6)
    expected = transform(x)
    for twin in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        assert twin == transform
        assert twin(x).equal(expected)
    assert hash(transform) == hash(copy.copy(transform))


def test_transforms_leave_their_input_alone() -> None:
    x = images(3, 2, 6, 6)
    before = x.clone()
    for transform in TRANSFORMS:
        assert transform(x).data_ptr() != x.data_ptr()
    assert x.equal(before)
