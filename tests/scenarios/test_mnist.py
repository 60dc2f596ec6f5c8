import gzip
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scenarios.datasets.idx import read_idx
from scenarios.datasets.mnist import mnist

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("FEDLEARN_DATA", REPOSITORY / ".." / "shared" / "data"))
NAMES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "t10k-images": "t10k-images-idx3-ubyte",
    "t10k-labels": "t10k-labels-idx1-ubyte",
}


def encode(array: NDArray[np.uint8]) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def contents() -> dict[str, bytes]:
    """A small data set in MNIST's format: 20 training and 10 test images."""
    rng = np.random.default_rng(0)
    return {
        name: encode(
            rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
            if name.endswith("images")
            else np.arange(size, dtype=np.uint8) % 10
        )
        for size, part in ((20, "train"), (10, "t10k"))
        for name in (f"{part}-images", f"{part}-labels")
    }


def write(folder: Path, files: dict[str, bytes], *, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if packed:
            (folder / f"{NAMES[name]}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / NAMES[name]).write_bytes(content)
    return folder


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


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_download_that_is_not_mnist_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setenv("no_proxy", "*")
    mirror = write(tmp_path / "mirror", contents(), packed=True)
    with serving(mirror) as url:
        monkeypatch.setattr(MNIST, "mirrors", [url])
        with pytest.raises(ValueError, match=r"^dataset.download=true: MNIST could not be"):
            mnist(str(tmp_path / "root"), download=True)


def test_download_fetches_checks_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setenv("no_proxy", "*")
    mirror = write(tmp_path / "mirror", contents(), packed=True)
    archives = [mirror / f"{name}.gz" for name in NAMES.values()]
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in archives]
    monkeypatch.setattr(MNIST, "resources", sums)
    root = tmp_path / "root"
    with serving(mirror) as url:
        monkeypatch.setattr(MNIST, "mirrors", [url])
        data = mnist(str(root), download=True)
    assert data.digest == mnist(str(mirror)).digest
    assert mnist(str(root)).digest == data.digest

    monkeypatch.setattr(MNIST, "mirrors", [])
    assert mnist(str(root), download=True).digest == data.digest  # nothing to fetch


def test_a_failed_download_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision.datasets import MNIST

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(MNIST, "mirrors", ["https://127.0.0.1:1/", "http://127.0.0.1:1/"])
    with pytest.raises(ValueError, match=r"^dataset.download=true: MNIST could not be") as caught:
        mnist(str(tmp_path / "root"), download=True)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_nothing_is_downloaded_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scenarios.datasets.mnist._download", lambda root: pytest.fail("fetched"))
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
