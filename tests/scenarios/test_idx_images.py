"""What MNIST, Fashion-MNIST and KMNIST share; the rest is in test_mnist.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import built
from idx_files import contents, write

from scenarios.dataset import Dataset
from scenarios.datasets import fashion_mnist as fashion_module
from scenarios.datasets import kmnist as kmnist_module
from scenarios.datasets import mnist as mnist_module
from scenarios.datasets.fashion_mnist import fashion_mnist
from scenarios.datasets.kmnist import kmnist
from scenarios.datasets.mnist import mnist
from scenarios.datasets.pixels import Preprocessing

SETS = pytest.mark.parametrize(
    ("load", "source", "known_as"),
    [
        (mnist, mnist_module.SOURCE, "MNIST"),
        (fashion_mnist, fashion_module.SOURCE, "FashionMNIST"),
        (kmnist, kmnist_module.SOURCE, "KMNIST"),
    ],
    ids=["mnist", "fashion_mnist", "kmnist"],
)


@SETS
def test_files_are_read_as_torchvision_reads_them(
    load: Callable[..., Dataset], source: Any, known_as: str, tmp_path: Path
) -> None:
    import torchvision.datasets

    write(tmp_path / known_as / "raw", contents())
    data = load(str(tmp_path))
    assert data.name == source.name == load.__name__
    for train, samples in ((True, data.train), (False, data.test)):
        theirs = getattr(torchvision.datasets, known_as)(str(tmp_path), train=train)
        assert np.array_equal(samples.x[:, 0], theirs.data)
        assert np.array_equal(samples.y, theirs.targets)


@SETS
def test_downloads_are_those_of_torchvision(
    load: Callable[..., Dataset], source: Any, known_as: str
) -> None:
    import torchvision.datasets

    theirs = getattr(torchvision.datasets, known_as)
    assert source.folder == known_as
    assert list(source.mirrors) == theirs.mirrors
    assert source.checksums == {name: f"md5:{md5}" for name, md5 in theirs.resources}


@SETS
def test_each_set_has_a_folder_of_its_own(
    load: Callable[..., Dataset], source: Any, known_as: str, tmp_path: Path
) -> None:
    for other in {"MNIST", "FashionMNIST", "KMNIST"} - {known_as}:
        write(tmp_path / other / "raw", contents())
    places = f"{tmp_path / known_as / 'raw'}, {tmp_path / 'raw'}, {tmp_path}"
    with pytest.raises(ValueError, match=r"^dataset.root=") as caught:
        load(str(tmp_path))
    assert f"none of {places} holds {source.title}'s four files" in str(caught.value)


@SETS
def test_the_digest_names_the_content_and_its_preprocessing(
    load: Callable[..., Dataset], source: Any, known_as: str, tmp_path: Path
) -> None:
    root = str(write(tmp_path, contents()))
    plain = load(root)
    assert plain.digest == mnist(root).digest
    assert load(root, padding=2, mean=0.3, std=0.5).digest != plain.digest
    assert load(root, expected_digest=plain.digest, padding=2).train.x.shape[2:] == (32, 32)
    with pytest.raises(ValueError, match=r"^dataset.expected_digest=ab: .*" + plain.digest):
        load(root, expected_digest="ab", padding=2)


@pytest.mark.parametrize(
    "choice", ["dataset=fashion_mnist", "dataset=kmnist", "scenario=split_fashion_mnist"]
)
def test_choices_build_on_their_files(choice: str, tmp_path: Path) -> None:
    write(tmp_path, contents())
    scenario = built(tmp_path, choice).scenario
    assert scenario.input_shape == (1, 28, 28)
    assert [len(classes) for classes in scenario.classes] == [2] * 5


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"padding": -1}, "dataset.padding=-1: must be at least 0"),
        ({"mean": float("nan")}, "dataset.mean=nan: must be finite"),
        ({"mean": [0.1, 0.2]}, r"dataset.mean=\[0.1, 0.2\]: must be one number or 3, not 2"),
        ({"std": []}, r"dataset.std=\[\]: must be one number or 3, not 0"),
        ({"std": [1.0, 0.0, 1.0]}, r"dataset.std=\[1.0, 0.0, 1.0\]: must be greater than 0"),
        ({"std": -2.0}, "dataset.std=-2.0: must be greater than 0"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}$"):
        Preprocessing(3, **settings)
    with pytest.raises(ValueError, match=r"^dataset.mean=.*: must be one number, not 3$"):
        Preprocessing(1, mean=[0.1, 0.2, 0.3])
