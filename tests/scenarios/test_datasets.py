"""Digits, synthetic samples, and what every dataset is checked for. MNIST: test_mnist.py."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.types import Samples
from scenarios.dataset import Dataset, standardised
from scenarios.datasets.diabetes import diabetes
from scenarios.datasets.digits import digits
from scenarios.datasets.synthetic import synthetic


def test_digits_are_scikit_learns_all_of_them_once() -> None:
    from sklearn.datasets import load_digits

    data = digits()
    x = torch.cat([data.train.x, data.test.x])
    y = torch.cat([data.train.y, data.test.y])
    assert x.shape == (1797, 1, 8, 8)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    pixels, labels = load_digits(return_X_y=True)
    ours = np.column_stack([x.flatten(1).numpy() * 16, y])
    theirs = np.column_stack([pixels, labels])
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


@given(st.floats(1e-4, 1 - 1e-4) | st.just(1e-4), st.integers(0, 5))
@settings(max_examples=10)
def test_digits_are_split_by_class_and_every_class_is_on_both_sides(
    test_fraction: float, seed: int
) -> None:
    data = digits(test_fraction, seed)
    tested, trained = (s.y.bincount(minlength=10) for s in (data.test, data.train))
    assert ((tested - test_fraction * (tested + trained)).abs() <= 1).all()
    assert min(tested.min(), trained.min()) >= 1
    assert data.digest == digits(test_fraction, seed).digest
    assert data.digest != digits(test_fraction, seed + 1).digest


@pytest.mark.parametrize("shape", [(5,), (1, 8, 8), (3, 4, 6), (2, 2, 2, 2)])
def test_synthetic_samples_have_the_shape_and_the_numbers_asked_for(shape: tuple[int, ...]) -> None:
    data = synthetic(3, shape, samples_per_class=7, test_samples_per_class=2)
    assert data.train.x.shape == (21, *shape)
    assert data.input_shape == shape
    assert data.train.y.bincount().tolist() == [7, 7, 7]
    assert data.test.y.bincount().tolist() == [2, 2, 2]


def test_synthetic_classes_can_be_learned_from_training_samples_and_hold_on_test_ones() -> None:
    data = synthetic(10, (1, 8, 8), samples_per_class=50, noise=1.0)
    means = torch.stack([data.train.x[data.train.y == label].mean(dim=0) for label in range(10)])
    nearest = torch.cdist(data.test.x.flatten(1), means.flatten(1)).argmin(dim=1)
    assert (nearest == data.test.y).double().mean() > 0.99


def test_synthetic_noise_has_the_standard_deviation_asked_for() -> None:
    quiet, loud = (synthetic(4, (50,), 400, noise=noise) for noise in (0.0, 2.0))
    assert torch.unique(quiet.train.x, dim=0).shape == (4, 50)
    spread = [loud.train.x[loud.train.y == label].std(dim=0).mean() for label in range(4)]
    assert all(abs(float(s) - 2.0) < 0.1 for s in spread)


def test_synthetic_is_a_function_of_its_seed() -> None:
    assert synthetic(seed=1).digest == synthetic(seed=1).digest != synthetic(seed=2).digest


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: digits(0.0), "dataset.test_fraction=0.0: must be greater than 0 and less than 1"),
        (lambda: digits(1.0), "dataset.test_fraction=1.0: must be greater than 0 and less than 1"),
        (lambda: synthetic(1), "dataset.num_classes=1: must be at least 2"),
        (lambda: synthetic(samples_per_class=0), "dataset.samples_per_class=0: must be at least 1"),
        (lambda: synthetic(test_samples_per_class=0), "dataset.test_samples_per_class=0: must be"),
        (lambda: synthetic(input_shape=()), r"dataset.input_shape=\[\]: needs sizes of at least 1"),
        (lambda: synthetic(input_shape=(3, 0)), r"dataset.input_shape=\[3, 0\]: needs sizes"),
        (lambda: synthetic(noise=-1.0), "dataset.noise=-1.0: must be at least 0"),
        (lambda: synthetic(noise=float("nan")), "dataset.noise=nan: must be at least 0"),
    ],
)
def test_a_parameter_out_of_range_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        make()


def store(labels: list[int], *, bad: float | None = None, width: int = 2) -> Samples:
    x = torch.zeros(len(labels), width)
    if bad is not None:
        x[1, 0] = bad
    return Samples(x, torch.tensor(labels))


GOOD = [0, 1, 2]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (store([0, 1, 3]), store(GOOD), "dataset toy: training label 3 in row 2: must be in 0..2"),
        (store(GOOD), store([0, -1, 2]), "dataset toy: test label -1 in row 1: must be in 0..2"),
        (store([0, 2, 2]), store(GOOD), "dataset toy: training samples of class 1 are missing"),
        (store(GOOD), store([0, 1]), "dataset toy: test samples of class 2 are missing"),
        (store(GOOD, bad=float("nan")), store(GOOD), "dataset toy: training input in row 1 is not"),
        (store(GOOD), store(GOOD, bad=float("inf")), "dataset toy: test input in row 1 is not"),
        (store(GOOD), store(GOOD, width=3), r"dataset toy: training inputs are \(2,\) but test"),
        (
            Samples(torch.zeros(3, 2, dtype=torch.float64), torch.tensor(GOOD)),
            store(GOOD),
            "dataset toy: training samples are torch.float64",
        ),
    ],
)
def test_unusable_samples_are_refused(train: Samples, test: Samples, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message) as caught:
        Dataset("toy", train, test, 3, "")
    assert "\n" not in str(caught.value)


def test_a_class_may_be_missing_where_the_dataset_says_so() -> None:
    data = Dataset("toy", store([0, 2]), store([1]), 4, "", every_class=False)
    assert data.num_classes == 4
    with pytest.raises(ValueError, match=r"test label 4 in row 0: must be in 0..3"):
        Dataset("toy", store([0, 2]), store([4]), 4, "", every_class=False)
    with pytest.raises(ValueError, match=r"^dataset toy: test samples: there are none"):
        Dataset("toy", store([0, 2]), store([]), 4, "", every_class=False)


def test_diabetes_is_scikit_learns_standardised_by_the_training_samples() -> None:
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import LinearRegression

    data = diabetes(test_fraction=0.25, seed=3)
    assert (len(data.train), len(data.test)) == (332, 110)
    assert data.regression
    assert data.digest == diabetes(test_fraction=0.25, seed=3).digest != diabetes().digest
    for values in (data.train.x, data.train.y):
        assert torch.allclose(values.mean(0), torch.zeros(()), atol=1e-6)
        assert torch.allclose(values.std(0, correction=0), torch.ones(()), atol=1e-6)
    # One affine map for all rows changes nothing of what a linear model explains of them.
    x, y = (
        torch.cat(both) for both in zip(*((s.x, s.y) for s in (data.train, data.test)), strict=True)
    )
    theirs = load_diabetes(return_X_y=True, scaled=False)
    explained = [LinearRegression().fit(*each).score(*each) for each in ((x, y), theirs)]
    assert explained[0] == pytest.approx(explained[1], rel=1e-5)


def test_standardising_leaves_a_column_that_does_not_vary_finite() -> None:
    train = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    ours, tested = standardised(train, torch.tensor([[5.0, 6.0]]))
    assert ours.tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert tested.tolist() == [[3.0, 1.0]]


def test_targets_that_cannot_be_scored_are_refused() -> None:
    x, y = torch.zeros(4, 2), torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])
    Dataset("toy", Samples(x, y), Samples(x, y), 1, "")
    for train, test, outputs, complaint in (
        (3 * y + 5, y, 1, r"training targets have means 5 and standard deviations 3, must be 0"),
        (y, y * torch.nan, 1, "test target in row 0 is not finite"),
        (y, y, 2, r"training targets are \(4, 1\), must be \(4, 2\)"),
        (y, torch.tensor([0, 0, 0, 0]), 1, "labels on one side, real targets on the other"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Dataset("toy", Samples(x, train), Samples(x, test), outputs, "")
