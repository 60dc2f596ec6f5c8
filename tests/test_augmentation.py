"""Augmentation: each operation by hand, and whose draws it uses."""

import math

import pytest
import torch

from fedlearn.augmentation import Augmentation, crop, flip, rotate

SHAPES = [(1, 8, 8), (3, 6, 9)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=["grey", "oblong"])


def _images(shape=(3, 6, 9), size=5):
    return torch.rand(size, *shape, generator=torch.Generator().manual_seed(0))


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@shapes
def test_flip_mirrors_the_marked_images_left_and_right(shape):
    x = _images(shape, 2)
    flipped = flip(x, torch.tensor([False, True]))
    assert torch.equal(flipped[0], x[0])
    assert torch.equal(flipped[1], x[1].flip(-1))


@shapes
def test_a_crop_is_the_image_shifted_with_zeros_coming_in(shape):
    x = _images(shape, 3)
    middle = torch.full((3,), 2)
    assert torch.equal(crop(x, 2, middle, middle), x)
    shifted = crop(x, 2, torch.tensor([0, 2, 4]), torch.tensor([2, 1, 4]))
    assert torch.equal(shifted[0, :, 2:], x[0, :, :-2])  # two rows down
    assert (shifted[0, :, :2] == 0).all()
    assert torch.equal(shifted[1, :, :, 1:], x[1, :, :, :-1])  # one column to the right
    assert (shifted[1, :, :, 0] == 0).all()
    assert torch.equal(shifted[2, :, :-2, :-2], x[2, :, 2:, 2:])
    assert (shifted[2, :, -2:] == 0).all()


@shapes
def test_no_turn_is_the_identity_and_half_a_turn_mirrors_twice(shape):
    x = _images(shape, 2)
    turned = rotate(x, torch.tensor([0.0, 180.0]))
    assert torch.allclose(turned[0], x[0], atol=1e-5)
    assert torch.allclose(turned[1], x[1].flip(-1, -2), atol=1e-4)


def test_a_quarter_turn_is_counter_clockwise_and_keeps_the_proportions():
    x = _images((1, 8, 8), 1)
    assert torch.allclose(rotate(x, torch.tensor([90.0])), x.rot90(1, (2, 3)), atol=1e-5)
    oblong = _images((1, 4, 8), 1)
    turned = rotate(oblong, torch.tensor([90.0]))
    assert torch.allclose(turned[..., 2:6], oblong[..., 2:6].rot90(1, (2, 3)), atol=1e-5)
    assert (turned[..., :2] == 0).all()  # a pixel of 1 by 1 stays one


@shapes
def test_equal_generators_give_equal_images_and_others_others(shape):
    augment, x = Augmentation(flip=True, crop=2, rotation=20.0), _images(shape)
    first, again, other = (augment(x, _generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == x.shape
    assert first.dtype == x.dtype


def test_it_neither_touches_its_input_nor_the_global_generator():
    x, state = _images(), torch.get_rng_state()
    before = x.clone()
    Augmentation(flip=True, crop=1, rotation=5.0)(x, _generator())
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_asked_for_changes_nothing_and_draws_nothing():
    x, generator = _images(), _generator()
    before = generator.get_state()
    assert torch.equal(Augmentation()(x, generator), x)
    assert torch.equal(generator.get_state(), before)


def test_half_of_the_images_are_mirrored():
    ramp = torch.arange(2.0).view(1, 1, 1, 2).expand(4000, 1, 1, 2)
    mirrored = Augmentation(flip=True)(ramp, _generator())[:, 0, 0, 0] == 1
    assert abs(float(mirrored.float().mean()) - 0.5) < 4 * math.sqrt(0.25 / 4000)


def test_every_shift_comes_up_as_often():
    dot = torch.zeros(9000, 1, 3, 3)
    dot[:, 0, 1, 1] = 1
    places = Augmentation(crop=1)(dot, _generator()).sum(0).flatten()
    assert places.sum() == 9000
    assert (places - 1000).abs().max() < 4 * math.sqrt(1000)


def test_angles_fill_the_range_both_ways_and_no_more():
    x = torch.zeros(500, 1, 33, 33)
    x[:, 0, 16, 32] = 1  # at three o'clock: its height after a turn tells the angle
    turned = Augmentation(rotation=30.0)(x, _generator())[:, 0]
    rows = torch.arange(33.0).view(33, 1)
    height = 16 - (turned * rows).sum((1, 2)) / turned.sum((1, 2))
    assert height.max() <= 16 * math.sin(math.radians(30)) + 0.5
    assert height.max() > 7
    assert height.min() < -7


def test_images_of_a_batch_draw_for_themselves():
    x = _images(size=1).expand(20, -1, -1, -1)
    for augment in (Augmentation(flip=True), Augmentation(crop=2), Augmentation(rotation=30.0)):
        assert len(augment(x, _generator()).flatten(1).unique(dim=0)) > 1
