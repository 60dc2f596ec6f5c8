import random
import sys
from typing import Any

import numpy as np
import pytest
import torch

from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from scenarios.datasets.mnist1d import mnist1d

pytest.importorskip("mnist1d", reason="MNIST-1D comes with fedlearn[data]")

# from mnist1d_data.pkl of https://github.com/greydanus/mnist1d
FIRST_TRAINED = [-0.332006, -0.471910, -0.778697]
LAST_TESTED = [0.659876, 0.877734, 1.193152]
TRAINED_LABELS = [2, 6, 4, 5, 6, 6, 6, 0]
TESTED_LABELS = [3, 6, 1, 2, 5, 9, 6, 4]


def test_the_default_is_the_published_data() -> None:
    data = mnist1d()
    assert data.train.x.shape == (4000, 1, 40)
    assert data.test.x.shape == (1000, 1, 40)
    assert data.train.x.dtype == torch.float32
    assert data.train.x[0, 0, :3].tolist() == pytest.approx(FIRST_TRAINED, rel=1e-5)
    assert data.test.x[-1, 0, -3:].tolist() == pytest.approx(LAST_TESTED, rel=1e-5)
    assert data.train.y[:8].tolist() == TRAINED_LABELS
    assert data.test.y[-8:].tolist() == TESTED_LABELS
    both = torch.cat([data.train.x, data.test.x]).double()
    assert float(both.mean()) == pytest.approx(0, abs=1e-6)
    assert float(both.std(correction=0)) == pytest.approx(1, abs=1e-6)
    labels = torch.cat([data.train.y, data.test.y])
    assert labels.bincount().tolist() == [500] * 10


def test_nothing_is_drawn_from_the_global_generators() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), float(torch.rand(()))

    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    expected = drawn()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    first = mnist1d(200)
    assert drawn() == expected
    assert mnist1d(200).digest == first.digest != mnist1d(200, seed=43).digest


def test_the_split_changes_sides_and_not_samples() -> None:
    few, many = mnist1d(200, test_fraction=0.3), mnist1d(200, test_fraction=0.5)
    assert (len(few.train), len(few.test), len(many.test)) == (140, 60, 100)
    assert torch.equal(few.train.x[:100], many.train.x)
    assert torch.equal(torch.cat([few.train.x, few.test.x])[100:], many.test.x)


def test_shuffled_positions_are_the_same_for_all_samples() -> None:
    plain, shuffled = mnist1d(200), mnist1d(200, shuffle_positions=True)
    before, after = plain.train.x[:, 0], shuffled.train.x[:, 0]
    order = torch.cdist(before.T, after.T).argmin(0)
    assert sorted(order.tolist()) == list(range(40)) != order.tolist()
    assert torch.allclose(before[:, order], after, atol=1e-5)
    assert torch.equal(plain.train.y, shuffled.train.y)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_samples": 10}, "dataset.num_samples=10: must be at least 20"),
        ({"num_samples": 205}, "dataset.num_samples=205: must be at least 20, and a multiple of"),
        ({"test_fraction": 0.0}, "dataset.test_fraction=0.0: must be greater than 0 and less"),
        ({"test_fraction": 1.0}, "dataset.test_fraction=1.0: must be greater than 0 and less"),
        ({"seed": -1}, "dataset.seed=-1: must be in 0..4294967295"),
        ({"seed": 2**32}, "dataset.seed=4294967296: must be in 0..4294967295"),
        ({"num_samples": 20}, "dataset mnist1d: training samples of class . are missing"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        mnist1d(**settings)


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    complaint = r"^dataset=mnist1d: needs the package mnist1d \(.*\): pip install 'fedlearn\[data\]"
    with pytest.raises(ValueError, match=complaint):
        mnist1d()


def test_the_choice_builds() -> None:
    overrides = ["dataset=mnist1d", "dataset.num_samples=500", "continual=naive", "tracker=none"]
    assert build(prepare(compose(overrides))).scenario.input_shape == (1, 40)
