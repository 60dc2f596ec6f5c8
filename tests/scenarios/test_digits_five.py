"""Digits-Five: small files of all five sources, in the layouts of the real ones."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from scenarios.datasets.digits_five import SOURCES, digits_five

SIZES = {
    "mnist": (30, 20),
    "mnistm": (40, 10),
    "usps": (20, 10),
    "svhn": (25, 15),
    "synth": (30, 10),
}
LABELS = {
    source: tuple((np.arange(size) * 3 + at) % 10 for size in sizes)
    for at, (source, sizes) in enumerate(SIZES.items())
}


def pixels(source: str, part: int, *shape: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([SOURCES.index(source), part])  # type: ignore[arg-type]
    return rng.integers(0, 256, (SIZES[source][part], *shape), dtype=np.uint8)


def idx(array: NDArray[np.uint8]) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def mnistm() -> dict[str, Any]:
    content: dict[str, Any] = {}
    for at, part in enumerate(("train", "test")):
        content[part] = pixels("mnistm", at, 28, 28, 3)
        content[f"label_{part}"] = np.eye(10, dtype=np.int64)[LABELS["mnistm"][at]]
    return content


def synth() -> dict[str, Any]:
    content: dict[str, Any] = {}
    for at, part in enumerate(("train", "test")):
        content[f"{part}_data"] = pixels("synth", at, 32, 32, 3)
        content[f"{part}_label"] = LABELS["synth"][at][:, None].astype(np.uint8)
    return content


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("MNIST/raw", "USPS", "SVHN", "digits_five"):
        (tmp_path / folder).mkdir(parents=True)
    for at, part in enumerate(("train", "t10k")):
        raw = tmp_path / "MNIST" / "raw"
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(pixels("mnist", at, 28, 28)))
        labels = LABELS["mnist"][at].astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    for at, name in enumerate(("usps", "usps.t")):
        lines = []
        for label, image in zip(LABELS["usps"][at], pixels("usps", at, 256), strict=True):
            values = " ".join(
                f"{i}:{2 * v / 255 - 1:.6f}" for i, v in enumerate(image.tolist(), start=1)
            )
            lines.append(f"{label + 1} {values} \n")
        (tmp_path / "USPS" / name).write_text("".join(lines))
    for at, part in enumerate(("train", "test")):
        labels = np.where(LABELS["svhn"][at] == 0, 10, LABELS["svhn"][at])[:, None]
        images = pixels("svhn", at, 32, 32, 3).transpose(1, 2, 3, 0)
        content = {"X": images, "y": labels.astype(np.uint8)}
        savemat(tmp_path / "SVHN" / f"{part}_32x32.mat", content)
    savemat(tmp_path / "digits_five" / "mnistm_with_label.mat", mnistm())
    savemat(tmp_path / "digits_five" / "syn_number.mat", synth(), do_compression=True)
    return tmp_path


def of(data: Any, index: int, part: int) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the images (n, height, width, 3) and labels of a domain."""
    store = (data.train, data.test)[part]
    rows = data.tags["domain"][part] == index
    return store.x[rows].permute(0, 2, 3, 1).numpy(), store.y[rows].tolist()


def test_all_sources_are_there_in_their_order_with_their_labels(root: Path) -> None:
    data = digits_five(str(root))
    assert data.train.x.shape == (145, 3, 32, 32)
    assert data.test.x.shape == (65, 3, 32, 32)
    assert data.train.x.dtype == torch.uint8
    assert data.num_classes == 10
    for index, source in enumerate(SOURCES):
        for part in (0, 1):
            images, labels = of(data, index, part)
            assert labels == LABELS[source][part].tolist()
            if source in ("svhn", "synth"):
                assert np.array_equal(images, pixels(source, part, 32, 32, 3))
    assert data.tags["domain"][0].tolist() == sorted(data.tags["domain"][0].tolist())


@pytest.mark.parametrize("source", ["mnist", "mnistm"])
def test_other_sizes_are_resized_bilinearly_and_grey_becomes_three_channels(
    root: Path, source: str
) -> None:
    data = digits_five(str(root), sources=[source])  # type: ignore[list-item]
    images, _ = of(data, 0, 1)
    shape = (28, 28) if source == "mnist" else (28, 28, 3)
    for image, original in zip(images, pixels(source, 1, *shape), strict=True):
        resized = Image.fromarray(original).resize((32, 32), Image.Resampling.BILINEAR)
        expected = np.asarray(resized.convert("RGB")).astype(int)
        assert np.abs(image - expected).max() <= 1  # the last bit is a matter of rounding


def test_images_are_kept_as_they_are_where_they_have_the_size_asked_for(root: Path) -> None:
    data = digits_five(str(root), sources=["mnistm"], side=28)
    assert np.array_equal(of(data, 0, 0)[0], pixels("mnistm", 0, 28, 28, 3))
    images, _ = of(digits_five(str(root), sources=["usps"], side=16), 0, 0)
    original = pixels("usps", 0, 16, 16)[..., None]
    assert np.abs(images.astype(int) - original).max() <= 1  # the text has six digits


def test_fewer_samples_are_drawn_of_each_source_whatever_the_others(root: Path) -> None:
    few = digits_five(str(root), samples_per_source=25, test_samples_per_source=12)
    assert few.tags["domain"][0].bincount().tolist() == [25, 25, 20, 25, 25]
    assert few.tags["domain"][1].bincount().tolist() == [12, 10, 10, 12, 10]
    everything = digits_five(str(root))
    images, labels = of(few, 4, 0)
    rows = [
        int(np.flatnonzero((of(everything, 4, 0)[0] == image).all((1, 2, 3)))[0])
        for image in images
    ]
    assert rows == sorted(set(rows))
    assert labels == LABELS["synth"][0][rows].tolist()
    two = digits_five(str(root), ["synth", "svhn"], samples_per_source=25)
    assert np.array_equal(of(two, 0, 0)[0], images)
    other = digits_five(str(root), samples_per_source=25, test_samples_per_source=12, seed=1)
    assert other.digest != few.digest


def test_the_digest_is_that_of_the_content(root: Path) -> None:
    first = digits_five(str(root)).digest
    mat = root / "digits_five" / "mnistm_with_label.mat"
    mat.rename(root / mat.name)
    assert digits_five(str(root)).digest == first
    changed = mnistm()
    changed["test"][3, 5, 5, 1] ^= 255
    others = [digits_five(str(root), side=31), digits_five(str(root), std=0.5)]
    savemat(root / mat.name, changed)
    others.append(digits_five(str(root)))
    assert len({first, *(each.digest for each in others)}) == 4


def _set(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, value(content[name]))


def _two_hot(labels: NDArray[Any]) -> NDArray[Any]:
    labels[4] = 0
    labels[4, [1, 3]] = 1
    return labels


def _ten(labels: NDArray[Any]) -> NDArray[Any]:
    labels[6] = 10
    return labels


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mnistm", _set("test", lambda a: a[:, :27]), r"test is uint8 of shape \(10, 27, 28, 3\)"),
        ("mnistm", _set("test", lambda a: a / 255), r"test is float64 of shape \(10, 28, 28, 3\)"),
        ("mnistm", _set("test", lambda a: a[1:]), "label_test has 10 rows, but test 9"),
        ("mnistm", _set("label_test", _two_hot), r"label_test is \[0, 1, 0, 1, .*\] in row 4"),
        ("mnistm", _set("label_test", lambda a: a[:, :9]), r"label_test is .* shape \(10, 9\)"),
        ("mnistm", lambda content: content.pop("train"), "holds no array train"),
        ("mnistm", _set("train", lambda a: {"a": 1}), r"train is \[\('a', 'O'\)\] of shape"),
        ("synth", _set("train_label", _ten), r"train_label is \[10\] in row 6, must be a digit"),
        ("synth", _set("train_label", lambda a: a + 0.5), r"train_label is \[4.5\] in row 0"),
        ("synth", _set("train_label", lambda a: a * np.nan), r"train_label is \[nan\] in row 0"),
        ("synth", _set("train_label", lambda a: "text"), "train_label is <U4 of shape"),
    ],
)
def test_wrong_arrays_are_refused_by_file_and_row(
    root: Path, name: str, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    make, file = {
        "mnistm": (mnistm, "mnistm_with_label.mat"),
        "synth": (synth, "syn_number.mat"),
    }[name]
    path = root / "digits_five" / file
    content = make()
    change(content)
    savemat(path, content)
    with pytest.raises(ValueError, match=f"^{path}: {message}") as caught:
        digits_five(str(root), sources=[name])  # type: ignore[list-item]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM", None])
def test_a_damaged_file_is_refused_by_name(root: Path, content: bytes | None) -> None:
    path = root / "digits_five" / "syn_number.mat"
    path.write_bytes(path.read_bytes()[:50_000] if content is None else content)
    with pytest.raises(ValueError, match=f"^{path}: is no file of MATLAB's format 5: ") as caught:
        digits_five(str(root), sources=["synth"])
    assert "\n" not in str(caught.value)


def test_missing_files_say_what_to_do(root: Path) -> None:
    (root / "digits_five" / "syn_number.mat").unlink()
    with pytest.raises(ValueError, match=r"^dataset.root=.*syn_number.mat.*leave synth out of"):
        digits_five(str(root))
    digits_five(str(root), sources=["mnistm"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, r"dataset.sources=\[\]: must name at least one of mnist, mnistm"),
        ({"sources": ["mnist", "emnist"]}, ".*: there is no emnist; choices: mnist, mnistm, usps"),
        ({"sources": ["usps", "usps"]}, r"dataset.sources=\['usps', 'usps'\]: names usps twice"),
        ({"side": 0}, "dataset.side=0: must be at least 1"),
        ({"samples_per_source": 0}, "dataset.samples_per_source=0: must be at least 1"),
        ({"test_samples_per_source": 0}, "dataset.test_samples_per_source=0: must be at least 1"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        digits_five("/nowhere", **change)
