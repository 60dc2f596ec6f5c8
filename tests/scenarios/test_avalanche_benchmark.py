"""Avalanche's benchmarks as data sets: what is read, from which experience, under which seed."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    dataset_benchmark,
    nc_benchmark,
    ni_benchmark,
    tensors_benchmark,
)
from avalanche.benchmarks.utils import as_classification_dataset
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from fedlearn.config.composition import compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import build, prepare
from scenarios.datasets.avalanche_benchmark import avalanche_benchmark


def numbered(size: int, first: float = 0.0) -> Any:
    """Return `size` samples of 6 classes in turn; each is its number, four times."""
    x = torch.arange(size, dtype=torch.float32)[:, None].repeat(1, 4) + first
    dataset = TensorDataset(x, torch.arange(size) % 6)
    dataset.targets = (torch.arange(size) % 6).tolist()
    return dataset


def small(n_experiences: int = 3, **options: Any) -> Any:
    return nc_benchmark(numbered(24), numbered(12, 100), n_experiences, False, **options)


class Pictures(Dataset[Any]):
    """Images of Pillow's, one of each of two classes."""

    targets = (0, 1)

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.new("RGB", (4, 3), (10, 20, 30 + index))
        return image.convert(self._mode), index


def test_new_classes_are_read_experience_by_experience() -> None:
    order = [3, 1, 5, 0, 2, 4]
    data = avalanche_benchmark(partial(small, fixed_class_order=order))
    train, test = data.tags["experience"]
    assert train.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert test.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for index in range(3):
        assert set(data.train.y[train == index].tolist()) == set(order[2 * index : 2 * index + 2])
    assert torch.equal(data.train.y, data.train.x[:, 0].long() % 6)
    assert torch.equal(data.test.y, (data.test.x[:, 0].long() - 100) % 6)
    assert sorted(data.train.x[:, 3].tolist()) == list(range(24))
    assert (data.num_classes, data.train.x.dtype) == (6, torch.float32)


def test_labels_are_those_that_the_benchmark_gives() -> None:
    data = avalanche_benchmark(
        partial(small, class_ids_from_zero_in_each_exp=True, fixed_class_order=[3, 1, 5, 0, 2, 4])
    )
    assert data.num_classes == 2
    first = data.train.x[data.tags["experience"][0] == 0][:, 0].long() % 6
    assert torch.equal(data.train.y[:8], (first == 1).long())


def test_what_is_drawn_follows_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = avalanche_benchmark(small)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert avalanche_benchmark(small).digest == one.digest
    assert len({avalanche_benchmark(small, seed=seed).digest for seed in range(4)}) > 1
    avalanche_benchmark(partial(small, seed=5))  # which Avalanche gives to the global generator
    assert torch.equal(torch.get_rng_state(), state)


def test_the_digest_is_that_of_samples_and_experiences() -> None:
    order = {"fixed_class_order": [0, 1, 2, 3, 4, 5]}
    digests = {
        avalanche_benchmark(partial(small, **order)).digest,
        avalanche_benchmark(partial(small, 2, **order)).digest,
        avalanche_benchmark(partial(small, fixed_class_order=[1, 0, 2, 3, 4, 5][::-1])).digest,
    }
    assert len(digests) == 3


def _new_style() -> Any:
    train, test = ([as_classification_dataset(numbered(n))] * 2 for n in (12, 6))
    return benchmark_from_datasets(train=train, test=test)


@pytest.mark.parametrize(
    ("make", "trained", "tested"),
    [
        (partial(ni_benchmark, numbered(24), numbered(12), 3), [8, 8, 8], [12]),
        (partial(dataset_benchmark, [numbered(24), numbered(6)], [numbered(12)]), [24, 6], [12]),
        (
            partial(
                tensors_benchmark,
                train_tensors=[(torch.rand(6, 1, 2, 2), torch.arange(6))] * 2,
                test_tensors=[(torch.rand(6, 1, 2, 2), torch.arange(6))],
                task_labels=[0, 1],
            ),
            [6, 6],
            [6],
        ),
        (_new_style, [12, 12], [6, 6]),
    ],
)
def test_other_benchmarks_are_read(
    make: Callable[[], Any], trained: list[int], tested: list[int]
) -> None:
    data = avalanche_benchmark(make)
    assert data.tags["experience"][0].bincount().tolist() == trained
    assert data.tags["experience"][1].bincount().tolist() == tested


def test_training_samples_are_read_as_for_evaluation() -> None:
    data = avalanche_benchmark(
        partial(
            small,
            train_transform=lambda x: x + torch.rand(4),
            eval_transform=lambda x: x * 2,
        )
    )
    assert sorted(data.train.x[:, 0].tolist()) == list(range(0, 48, 2))
    assert sorted(data.test.x[:, 0].tolist()) == list(range(200, 224, 2))


@pytest.mark.parametrize(("mode", "channels"), [("RGB", [10, 20, 31]), ("L", [18])])
def test_images_stay_bytes_channels_first(mode: str, channels: list[int]) -> None:
    make = partial(dataset_benchmark, [Pictures(mode)], [Pictures(mode)])
    x = avalanche_benchmark(make).train.x
    assert (x.shape, x.dtype) == ((2, len(channels), 3, 4), torch.uint8)
    assert x[1, :, 2, 3].tolist() == channels


def of(train: list[Any], test: list[Any]) -> Callable[[], Any]:
    """Return a maker of a benchmark by hand, of samples by experience."""

    class Samples(list[Any]):
        def eval(self) -> "Samples":
            return self

    def stream(experiences: list[Any]) -> Any:
        return [SimpleNamespace(dataset=Samples(samples)) for samples in experiences]

    return lambda: SimpleNamespace(train_stream=stream(train), test_stream=stream(test))


PAIR = [(np.zeros(2), 0), (np.ones(2), 1)]


def test_arrays_and_empty_experiences_are_read() -> None:
    data = avalanche_benchmark(of([[], PAIR], [PAIR]))
    assert data.tags["experience"][0].tolist() == [1, 1]
    assert data.train.x.tolist() == [[0, 0], [1, 1]]
    tokens = [(torch.tensor([3, 4]), torch.tensor(0)), (torch.tensor([5, 6]), 1)]
    assert avalanche_benchmark(of([tokens], [tokens])).train.x.dtype == torch.int64


def _fail() -> Any:
    raise AssertionError


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        (None, r"dataset.benchmark=null: name what makes it, e.g. .*SplitMNIST"),
        (object(), "dataset.benchmark: a object that is made already .*`_partial_: true`"),
        (lambda: object(), "dataset.benchmark: object is no benchmark .*has no train_stream"),
        (_fail, "dataset.benchmark: cannot be made: AssertionError"),
        (partial(small, 7), "dataset.benchmark: cannot be made: "),
        (partial(small, wrong=1), "dataset.benchmark: cannot be made: .*wrong"),
        (of([], [PAIR]), "dataset.benchmark: its train_stream is empty"),
        (of([PAIR], [[]]), "dataset.benchmark: its test_stream is empty"),
        (
            of([PAIR, [(np.zeros(3), 0)]], [PAIR]),
            r"dataset.benchmark: sample 0 of experience 1 of train_stream: is float64 of shape "
            r"\(3,\), the first float64 of shape \(2,\)",
        ),
        (
            of([PAIR], [[PAIR[0], (np.zeros(2), 0.5)]]),
            "dataset.benchmark: sample 1 of experience 0 of test_stream: has the label 0.5, must",
        ),
    ],
)
def test_what_is_no_benchmark_is_refused(benchmark: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        avalanche_benchmark(benchmark)
    assert "\n" not in str(caught.value)


def asked(node: str) -> list[str]:
    return [
        "dataset=avalanche_benchmark",
        f"dataset.benchmark={node}",
        "scenario=class_incremental",
        "scenario.num_experiences=3",
        "partition=iid",
        "num_clients=2",
        "continual=naive",
        "tracker=none",
    ]


def test_a_yaml_names_any_benchmark() -> None:
    node = f"{{_target_:{__name__}.small,_partial_:true,fixed_class_order:[0,1,2,3,4,5]}}"
    scenario = build(prepare(compose(asked(node)))).scenario
    expected = avalanche_benchmark(partial(small, fixed_class_order=[0, 1, 2, 3, 4, 5]))
    assert scenario.manifest()["dataset"]["digest"] == expected.digest
    made_already = node.replace("_partial_:true,", "")
    with pytest.raises(ConfigError, match=r"^dataset.benchmark: a NCScenario that is made already"):
        build(prepare(compose(asked(made_already))))
    with pytest.raises(ConfigError, match=r"^dataset.benchmark.n_experience=3: unknown key"):
        prepare(compose(asked("{_target_:avalanche.benchmarks.SplitMNIST,n_experience:3}")))
