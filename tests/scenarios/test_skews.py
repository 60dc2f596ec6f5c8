"""Skews: a client's own view of its inputs, and the mistakes in its labels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedlearn.types import Samples
from scenarios.domains import Rotation
from scenarios.skews import Skew

SEEDS = st.integers(0, 2**32)
IMAGE = (1, 4, 4)


def stored(size: int, num_classes: int) -> Samples:
    return Samples(torch.zeros(size, *IMAGE), torch.arange(size) % num_classes)


def split(size: int, num_clients: int) -> list[Tensor]:
    return list(torch.arange(size).tensor_split(num_clients))


@given(st.floats(0.1, 180), st.integers(1, 20), SEEDS)
@settings(max_examples=40)
def test_every_client_is_turned_by_an_angle_of_its_own_within_the_bound(
    rotation: float, num_clients: int, seed: int
) -> None:
    skew = Skew(rotation=rotation)
    views = skew.views(num_clients, IMAGE, seed)
    assert views is not None
    angles = [view.angle for view in views if isinstance(view, Rotation)]
    assert len(angles) == num_clients
    assert len(set(angles)) == num_clients
    assert all(-rotation <= angle <= rotation for angle in angles)
    assert skew.views(num_clients, IMAGE, seed) == views
    assert skew.views(num_clients, IMAGE, seed + 1) != views
    more = skew.views(num_clients + 3, IMAGE, seed)
    assert more is not None
    assert more[:num_clients] == views  # whoever else is there


def test_angles_are_uniform_either_way() -> None:
    views = Skew(rotation=90.0).views(8000, IMAGE, 0)
    assert views is not None
    angles = torch.tensor([view.angle for view in views if isinstance(view, Rotation)])
    counts = torch.histc(angles, bins=8, min=-90, max=90)
    assert ((counts - 1000).abs() < 140).all()


@given(st.integers(2, 9), st.floats(0.01, 1), st.integers(1, 6), SEEDS)
@settings(max_examples=40)
def test_a_wrong_label_is_another_class(
    num_classes: int, label_noise: float, num_clients: int, seed: int
) -> None:
    samples, owned = stored(300, num_classes), split(300, num_clients)
    skew = Skew(label_noise=label_noise)
    noisy = skew.labels(samples, owned, num_classes, seed)
    assert noisy.x is samples.x
    assert noisy.y.dtype == torch.int64
    assert noisy.y.shape == samples.y.shape
    assert noisy.y.min() >= 0
    assert noisy.y.max() < num_classes
    assert noisy.y.equal(skew.labels(samples, owned, num_classes, seed).y)
    assert samples.y.equal(torch.arange(300) % num_classes)  # not changed in place


def test_each_client_has_a_share_of_wrong_labels_of_its_own() -> None:
    size, num_clients = 400_000, 200
    samples, owned = stored(size, 5), split(size, num_clients)
    noisy = Skew(label_noise=0.6).labels(samples, owned, 5, 0)
    wrong = noisy.y != samples.y
    rates = torch.stack([wrong[rows].double().mean() for rows in owned])
    assert rates.max() < 0.6 + 0.05  # 2000 samples: a deviation of 0.011
    assert rates.max() > 0.55
    assert rates.min() < 0.05
    assert abs(float(rates.mean()) - 0.3) < 0.04  # uniform from 0 to 0.6
    assert abs(float(rates.std()) - 0.6 / 12**0.5) < 0.03
    shift = (noisy.y - samples.y)[wrong] % 5
    counts = shift.bincount(minlength=5)
    assert counts[0] == 0
    assert ((counts[1:] / len(shift) - 0.25).abs() < 0.01).all()  # any other class, each as likely
    by_class = torch.stack([wrong[samples.y == label].double().mean() for label in range(5)])
    assert ((by_class - wrong.double().mean()).abs() < 0.01).all()


def test_all_labels_may_be_wrong_and_unowned_ones_are_right() -> None:
    samples = stored(20_000, 4)
    owned = [torch.arange(10_000)]
    rates = []
    for seed in range(30):
        noisy = Skew(label_noise=1.0).labels(samples, owned, 4, seed)
        wrong = noisy.y != samples.y
        assert not wrong[10_000:].any()
        rates.append(float(wrong[:10_000].double().mean()))
    assert max(rates) > 0.9
    assert min(rates) < 0.1


def test_which_labels_are_wrong_does_not_depend_on_the_angles() -> None:
    samples, owned = stored(100, 3), split(100, 4)
    both, alone = Skew(rotation=30.0, label_noise=0.5), Skew(label_noise=0.5)
    assert both.labels(samples, owned, 3, 7).y.equal(alone.labels(samples, owned, 3, 7).y)
    assert both.views(4, IMAGE, 7) == Skew(rotation=30.0).views(4, IMAGE, 7)


def test_no_skew_changes_nothing() -> None:
    samples = stored(10, 2)
    assert Skew().labels(samples, split(10, 2), 2, 0) is samples
    assert Skew().views(5, (7,), 0) is None
    assert repr(Skew(rotation=1, label_noise=0)) == repr(Skew(rotation=1.0, label_noise=0.0))


def test_a_skew_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state()
    skew = Skew(rotation=30.0, label_noise=0.5)
    skew.views(4, IMAGE, 0)
    skew.labels(stored(50, 3), split(50, 4), 3, 0)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotation": -1.0}, r"skew.rotation=-1.0: must be in \[0, 180\]$"),
        ({"rotation": 181}, r"skew.rotation=181: must be in \[0, 180\]$"),
        ({"rotation": float("nan")}, r"skew.rotation=nan: must be in \[0, 180\]$"),
        ({"label_noise": -0.1}, r"skew.label_noise=-0.1: must be in \[0, 1\]$"),
        ({"label_noise": 1.1}, r"skew.label_noise=1.1: must be in \[0, 1\]$"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(arguments, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        Skew(**arguments)


@pytest.mark.parametrize("shape", [(16,), (4, 4), (2, 3, 4, 4)])
def test_only_images_can_be_turned(shape: tuple[int, ...]) -> None:
    message = r"^skew.rotation=30: needs images \(channels, height, width\), inputs are \["
    with pytest.raises(ValueError, match=message):
        Skew(rotation=30.0).views(3, shape, 0)


def test_a_regression_has_no_labels() -> None:
    samples = replace(stored(6, 2), y=torch.zeros(6, 1))
    with pytest.raises(ValueError, match=r"^skew.label_noise=0.5: a regression has no labels$"):
        Skew(label_noise=0.5).labels(samples, split(6, 2), 1, 0)
