import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from fedlearn.types import Chain, Transform
from scenarios.domains import Blur, PatternNoise, PixelPermutation, Rotation, Scale

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
TRANSFORMS = [
    PixelPermutation((*range(40, 72), *range(40))),
    Rotation(33.0),
    Blur(1.3),
    PatternNoise(0.5, 3),
    Scale((0.7,)),
    Scale((1.0, 0.2)),
    Chain(Rotation(10.0), Blur(0.4)),
]


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


@given(
    st.floats(0.05, 6),
    st.integers(1, 3),
    st.integers(1, 12),
    st.integers(1, 12),
)
@settings(max_examples=60)
def test_a_blur_is_the_gaussian_of_scipy_mirrored_at_the_edges(
    sigma: float, channels: int, height: int, width: int
) -> None:
    x = images(2, channels, height, width).double()
    expected = x.numpy()
    for axis, side in ((2, height), (3, width)):
        reach = min(math.ceil(3 * sigma), side - 1)
        expected = ndimage.gaussian_filter1d(
            expected, sigma, axis=axis, mode="mirror", radius=reach
        )
    torch.testing.assert_close(Blur(sigma)(x), torch.from_numpy(expected), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(Blur(sigma)(x.float()).double(), Blur(sigma)(x), atol=1e-5, rtol=0)


def test_a_blur_spreads_a_point_by_its_deviation_and_loses_nothing() -> None:
    x = torch.zeros(1, 2, 61, 61, dtype=torch.float64)
    x[0, 0, 30, 30] = 1
    blurred = Blur(3.0)(x)
    assert float(blurred[0, 0].sum()) == pytest.approx(1)
    assert not blurred[0, 1].any()  # channels do not mix
    at = torch.arange(61, dtype=torch.float64) - 30
    for spread in (blurred[0, 0].sum(0), blurred[0, 0].sum(1)):
        assert float((spread * at).sum()) == pytest.approx(0, abs=1e-12)
        assert float((spread * at**2).sum()) == pytest.approx(9, rel=0.03)  # cut off at 3 sigma


def test_a_constant_image_has_nothing_to_blur() -> None:
    x = torch.full((2, 3, 5, 7), 0.3)
    torch.testing.assert_close(Blur(2.0)(x), x)


def test_a_pattern_is_the_same_for_every_input_and_normal() -> None:
    noise, x = PatternNoise(0.5, 3), images(4, 1, 80, 80)
    patterns = noise(x) - x
    assert (patterns - patterns[0]).abs().max() < 1e-6
    drawn = noise(torch.zeros(1, 1, 80, 80)).flatten()
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.std()) - 0.5) < 0.02
    assert abs(float((drawn > 0.5).double().mean()) - 0.1587) < 0.02  # beyond one deviation


def test_a_pattern_depends_on_its_seed_and_grows_with_its_deviation() -> None:
    x = torch.zeros(1, 2, 6, 6)
    weak, strong, other = PatternNoise(0.5, 3), PatternNoise(1.0, 3), PatternNoise(0.5, 4)
    torch.testing.assert_close(2 * weak(x), strong(x))
    assert not weak(x).equal(other(x))


def test_a_pattern_is_kept_and_not_confused_with_another_shape_or_type() -> None:
    used = PatternNoise(0.5, 3)
    for x in (images(2, 1, 4, 4), images(2, 1, 4, 5), images(2, 1, 4, 4).double(), images(2, 7)):
        fresh = PatternNoise(0.5, 3)(x)
        assert used(x).equal(fresh)
        assert fresh.dtype == x.dtype
        assert used(x).equal(fresh)
    assert len(used._placed) == 4
    before = torch.get_rng_state()
    PatternNoise(0.5, 3)(images(1, 3))
    assert torch.get_rng_state().equal(before)


def test_a_scale_multiplies_channels() -> None:
    x = images(3, 3, 4, 4)
    assert Scale((0.25,))(x).equal(0.25 * x)
    tinted = Scale((1.0, 0.5, 0.0))(x)
    for channel, factor in enumerate((1.0, 0.5, 0.0)):
        assert tinted[:, channel].equal(factor * x[:, channel])


def test_a_chain_is_one_after_the_other() -> None:
    x = images(2, 1, 6, 6)
    turned, moved = Rotation(90.0), PixelPermutation(tuple(reversed(range(36))))
    assert Chain(turned, moved)(x).equal(moved(turned(x)))
    assert Chain(turned, moved) != Chain(moved, turned)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Blur(1.0), Blur(1.1)),
        (PatternNoise(0.5, 3), PatternNoise(0.5, 4)),
        (PatternNoise(0.5, 3), PatternNoise(0.6, 3)),
        (Scale((0.5,)), Scale((0.6,))),
        (Rotation(1.0), Rotation(2.0)),
    ],
)
def test_transforms_are_equal_by_their_parameters(one: Transform, other: Transform) -> None:
    one(images(1, 1, 4, 4))  # what it keeps is not a part of what it is
    assert one == copy.deepcopy(one)
    assert hash(one) == hash(copy.deepcopy(one))
    assert one != other


def test_a_pickle_holds_the_parameters_only() -> None:
    for transform in (Rotation(33.0), PatternNoise(0.5, 3)):
        fresh = len(pickle.dumps(transform))
        transform(images(2, 3, 32, 32))
        assert len(pickle.dumps(transform)) == fresh


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
