import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from idx_files import NAMES, contents, encode, write

from scenarios.datasets import mnist as module
from scenarios.datasets.idx import read_idx
from scenarios.datasets.mnist import mnist

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("FEDLEARN_DATA", REPOSITORY / ".." / "shared" / "data"))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "raw", "."])
def test_files_are_found_in_each_place_plain_or_packed(
    tmp_path: Path, place: str, packed: bool
) -> None:
    files = contents()
    write(tmp_path / place, files, packed=packed)
    data = mnist(str(tmp_path))
    assert data.train.x.shape == (20, 1, 28, 28)
    assert data.train.x.dtype == torch.uint8
    pixels = np.frombuffer(files["train-images"], np.uint8, offset=16).reshape(20, 1, 28, 28)
    assert np.array_equal(data.train.x.numpy(), pixels)
    assert data.test.y.tolist() == list(range(10))


def test_the_digest_is_that_of_the_content_however_packed(tmp_path: Path) -> None:
    files = contents()
    plain = mnist(str(write(tmp_path / "plain", files))).digest
    assert mnist(str(write(tmp_path / "packed", files, packed=True))).digest == plain
    image = bytearray(files["t10k-images"])
    image[500] ^= 1
    changed = {**files, "t10k-images": bytes(image)}
    other = mnist(str(write(tmp_path / "other", changed))).digest
    assert other != plain
    assert mnist(str(tmp_path / "plain"), expected_digest=plain).digest == plain
    with pytest.raises(ValueError, match=f"^dataset.expected_digest={plain}: .*{other}"):
        mnist(str(tmp_path / "other"), expected_digest=plain)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple), st.integers(0, 2**32))
def test_idx_round_trip(tmp_path_factory, shape: tuple[int, ...], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / "array"
    path.write_bytes(encode(array))
    assert np.array_equal(read_idx(path, array.ndim), array)


IMAGES = contents()["train-images"]
LABELS = contents()["train-labels"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images", IMAGES[:-1], "holds 15679 bytes of data, .* 20 x 28 x 28 = 15680"),
        ("train-images", IMAGES + b"\0", "holds 15681 bytes of data"),
        ("train-images", IMAGES[:10], "ends within its 16-byte header"),
        ("train-images", b"", "starts with 0x, must be 0x00000803"),
        ("train-images", LABELS, "starts with 0x00000801, must be 0x00000803"),
        ("train-images", b"\0\0\x0d" + IMAGES[3:], "starts with 0x00000d03"),
        ("train-images", b"\0\0\x08\x03" + b"\xff" * 12, "holds 0 bytes of data"),
        (
            "train-images",
            encode(np.zeros((20, 28, 27), dtype=np.uint8)),
            "images are 28 x 27, must be 28 x 28",
        ),
        ("train-labels", LABELS[:-1], "holds 19 bytes of data"),
        ("train-labels", LABELS[:-1] + b"\x0b", "label 11 in row 19, must be in 0..9"),
        ("train-labels", encode(np.arange(10, dtype=np.uint8)), "10 labels, but 20 images in"),
        ("t10k-labels", encode(np.arange(9, dtype=np.uint8)), "9 labels, but 10 images in"),
    ],
)
def test_a_damaged_file_is_refused_by_name_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write(tmp_path, {**contents(), name: content})
    with pytest.raises(ValueError, match=message) as caught:
        mnist(str(tmp_path))
    assert str(caught.value).startswith(str(tmp_path / NAMES[name]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    write(tmp_path, contents(), packed=True)
    path = tmp_path / f"{NAMES['train-images']}.gz"
    content = path.read_bytes()
    flipped = content[:5000] + bytes([content[5000] ^ 255]) + content[5001:]
    path.write_bytes({"cut": content[:-500], "flipped": flipped, "not gzip": b"PK"}[damage])
    with pytest.raises(ValueError, match="cannot be read") as caught:
        mnist(str(tmp_path))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("missing", [list(NAMES), ["t10k-labels"]])
def test_missing_files_say_what_to_do(tmp_path: Path, missing: list[str]) -> None:
    write(tmp_path, {name: c for name, c in contents().items() if name not in missing})
    with pytest.raises(ValueError, match=r"^dataset.root=.*dataset.download=true$") as caught:
        mnist(str(tmp_path))
    assert "\n" not in str(caught.value)


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.name: f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}" for path in folder.iterdir()
    }


def comes_from(monkeypatch: pytest.MonkeyPatch, *mirrors: Path, like: Path | None = None) -> None:
    """Let MNIST come from `mirrors`, and be what is in the folder `like`, or what it is."""
    source = replace(module.SOURCE, mirrors=[f"{mirror.as_uri()}/" for mirror in mirrors])
    if like is not None:
        source = replace(source, checksums=checksums(like))
    monkeypatch.setattr(module, "SOURCE", source)


def test_download_fetches_checks_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = write(tmp_path / "mirror", contents(), packed=True)
    changed = {**contents(), "t10k-labels": encode(np.arange(10, dtype=np.uint8)[::-1])}
    other = write(tmp_path / "other", changed, packed=True)
    comes_from(monkeypatch, tmp_path / "empty", other, mirror, like=mirror)
    root = tmp_path / "root"
    data = mnist(str(root), download=True)
    assert data.digest == mnist(str(mirror)).digest != mnist(str(other)).digest
    assert {path.name for path in (root / "MNIST" / "raw").iterdir()} == {
        f"{name}.gz" for name in NAMES.values()
    }
    comes_from(monkeypatch)
    assert mnist(str(root), download=True).digest == data.digest  # nothing to fetch


def test_a_download_fetches_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = write(tmp_path / "mirror", contents(), packed=True)
    rest = write(tmp_path / "rest", {"t10k-labels": contents()["t10k-labels"]}, packed=True)
    folder = tmp_path / "root" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for path in mirror.iterdir():
        if not (rest / path.name).exists():
            path.rename(folder / path.name)
    comes_from(monkeypatch, rest, like=rest)
    assert len(mnist(str(tmp_path / "root"), download=True).test) == 10


def test_a_download_that_is_not_mnist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = write(tmp_path / "mirror", contents(), packed=True)
    comes_from(monkeypatch, tmp_path / "empty", mirror)
    with pytest.raises(ValueError, match=r"^dataset.download=true: MNIST could not be") as caught:
        mnist(str(tmp_path / "root"), download=True)
    message = str(caught.value)
    assert f"{tmp_path / 'empty'}/train-images-idx3-ubyte.gz: could not be fetched" in message
    assert f"{mirror}/train-images-idx3-ubyte.gz: has the md5" in message
    assert message.endswith("put its files there and set dataset.download=false")
    assert "\n" not in message
    assert not list((tmp_path / "root" / "MNIST" / "raw").iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    comes_from(monkeypatch, tmp_path / "empty")
    with pytest.raises(ValueError, match=r"^dataset.download=true: MNIST could not be"):
        mnist(str(tmp_path / "file"), download=True)


def test_nothing_is_downloaded_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "scenarios.datasets.downloads.fetch", lambda *arguments: pytest.fail("fetched")
    )
    with pytest.raises(ValueError, match="none of"):
        mnist(str(tmp_path))
    write(tmp_path, contents())
    mnist(str(tmp_path), download=True)


def test_padding_and_normalisation_are_arithmetic_and_change_the_digest(tmp_path: Path) -> None:
    root = str(write(tmp_path, contents()))
    plain, changed = mnist(root), mnist(root, padding=2, mean=0.5, std=0.25)
    assert changed.train.x.shape == (20, 1, 32, 32)
    padded, original = (each.train.inputs(torch.arange(20)) for each in (changed, plain))
    assert torch.allclose(padded[:, :, 2:-2, 2:-2], (original - 0.5) / 0.25, atol=1e-6)
    assert (padded[:, :, :2] == -2).all()  # black, normalised like every other pixel
    digests = {
        plain.digest,
        changed.digest,
        mnist(root, mean=0.5).digest,
        mnist(root, std=2).digest,
    }
    assert len(digests) == 4
    assert mnist(root, padding=0, mean=0, std=1).digest == plain.digest


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"padding": -1}, "dataset.padding=-1: must be at least 0"),
        ({"std": 0.0}, "dataset.std=0.0: must be greater than 0"),
        ({"std": float("inf")}, "dataset.std=inf"),
    ],
)
def test_impossible_preprocessing_is_refused(change: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        mnist("/nowhere", **change)  # type: ignore[arg-type]


@pytest.mark.skipif(
    not (DATA / "MNIST" / "raw" / NAMES["train-images"]).is_file(),
    reason="no MNIST in $FEDLEARN_DATA or ../shared/data",
)
def test_the_real_mnist() -> None:
    data = mnist(str(DATA))
    assert data.train.x.shape == (60_000, 1, 28, 28)
    assert data.test.x.shape == (10_000, 1, 28, 28)
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.train.y.bincount().tolist() == train_counts
    test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.test.y.bincount().tolist() == test_counts
    pixels = data.train.inputs(torch.arange(60_000))
    assert abs(float(pixels.mean()) - 0.1307) < 1e-4
    assert abs(float(pixels.std()) - 0.3081) < 1e-4
    shipped = (REPOSITORY / "conf" / "dataset" / "mnist.yaml").read_text()
    assert f"expected_digest: {data.digest}\n" in shipped
