"""Infinite dSprites: shapes, their factors, and that images show both."""

from typing import Any

import numpy as np
import pytest
import torch

from fedlearn.seeding import numpy_generator
from scenarios.datasets.idsprites import BACKGROUND, DARK, LIGHT, draw_outline, idsprites, render

SIDE = 128


def outline(seed: int = 0) -> Any:
    return draw_outline(numpy_generator(seed, "test"))


def shape_of(image: Any) -> Any:
    """Return the pixels that belong to the shape, (n, 2): x and y."""
    return np.argwhere(image != BACKGROUND)[:, ::-1]


def test_samples_are_bytes_with_their_factors() -> None:
    data = idsprites(3, samples_per_class=5, test_samples_per_class=2, side=16)
    assert data.train.x.shape == (15, 1, 16, 16)
    assert data.train.x.dtype == torch.uint8
    assert data.train.y.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert data.test.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert list(data.tags) == ["scale", "orientation", "position_x", "position_y"]
    for train, test in data.tags.values():
        assert 0 <= int(train.min()) <= int(train.max()) < 32
        assert (len(train), len(test)) == (15, 6)


def test_each_image_shows_its_class_with_its_factors() -> None:
    data = idsprites(2, samples_per_class=4, test_samples_per_class=1, side=24, seed=7)
    for row in range(8):
        drawn = draw_outline(numpy_generator(7, "idsprites-shape", int(data.train.y[row])))
        factors = [int(train[row]) for train, _ in data.tags.values()]
        assert np.array_equal(data.train.x[row, 0].numpy(), render(drawn, 24, *factors))


def test_no_two_samples_of_a_class_share_all_factors() -> None:
    data = idsprites(2, samples_per_class=300, test_samples_per_class=100, side=1)
    for label in range(2):
        rows = [
            torch.stack([tag[part] for tag in data.tags.values()], 1)[store.y == label]
            for part, store in enumerate((data.train, data.test))
        ]
        assert len(torch.cat(rows).unique(dim=0)) == 400


def test_data_are_a_function_of_the_seed_and_classes_of_their_number() -> None:
    small = {"samples_per_class": 3, "test_samples_per_class": 1, "side": 16}
    two, three, again = idsprites(2, **small), idsprites(3, **small), idsprites(2, **small)
    assert two.digest == again.digest != idsprites(2, **small, seed=1).digest
    assert torch.equal(two.train.x, three.train.x[:6])


@pytest.mark.parametrize("seed", range(8))
def test_outlines_are_normalised(seed: int) -> None:
    drawn = outline(seed)
    assert np.allclose(np.ptp(drawn, axis=1), 1)
    finely = render(drawn, 256, 31, 0, 0, 0)
    x, y = shape_of(finely).mean(0) + 0.5
    assert abs(x - 64) < 1.5  # position 0 is a quarter of the image
    assert abs(y - 64) < 1.5
    assert shape_of(finely).shape[0] > 500


def test_scale_position_and_orientation_do_what_they_say() -> None:
    drawn = outline(3)
    areas = [len(shape_of(render(drawn, SIDE, scale, 0, 16, 16))) for scale in (0, 31)]
    assert areas[1] / areas[0] == pytest.approx(4, rel=0.1)
    places = [shape_of(render(drawn, SIDE, 0, 5, x, y)).mean(0) for x, y in ((0, 0), (31, 10))]
    assert places[1] - places[0] == pytest.approx([SIDE / 2, SIDE / 2 * 10 / 31], abs=1)
    turned = [render(drawn, SIDE, 31, turn, 16, 16) for turn in (0, 8)]
    angle = 2 * np.pi * 32 / 33 * 8 / 31
    (one, other) = ((each == LIGHT).nonzero()[::-1] for each in turned)
    centre = SIDE * (0.25 + 0.5 * 16 / 31)
    before, after = (np.array([x.mean(), y.mean()]) + 0.5 - centre for x, y in (one, other))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert turn @ before == pytest.approx(after, abs=0.7)


def test_one_half_is_dark_and_turns_with_the_shape() -> None:
    image = render(outline(1), SIDE, 31, 0, 16, 16)
    assert set(np.unique(image[:, [0, -1]])) == {BACKGROUND}
    centre = SIDE * (0.25 + 0.5 * 16 / 31)
    assert (image == DARK).nonzero()[1].min() > centre - 1
    assert (image == LIGHT).nonzero()[1].max() < centre
    assert (image == DARK).sum() > 100
    assert (image == LIGHT).sum() > 100


def test_classes_can_be_told_apart() -> None:
    drawn = [render(outline(seed), 32, 31, 0, 16, 16).astype(int) for seed in range(10)]
    for one in range(10):
        for other in range(one):
            assert np.abs(drawn[one] - drawn[other]).mean() > 1


def test_the_global_generators_are_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    state = torch.get_rng_state()
    idsprites(2, 1, 1, side=4)
    assert np.array_equal(np.random.get_state()[1], before)  # type: ignore[index, arg-type]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 1}, "dataset.num_classes=1: must be at least 2"),
        ({"samples_per_class": 0}, "dataset.samples_per_class=0: must be at least 1"),
        ({"test_samples_per_class": 0}, "dataset.test_samples_per_class=0: must be at least 1"),
        ({"side": 0}, "dataset.side=0: must be at least 1"),
        (
            {"samples_per_class": 32**4},
            "dataset.samples_per_class=1048576: with 50 to test on these are more than the 1048576",
        ),
    ],
)
def test_a_setting_out_of_bounds_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        idsprites(**change)
