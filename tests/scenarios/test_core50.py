"""CORe50, in its own layout with two frames of each object in each session."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenarios.datasets import core50 as module
from scenarios.datasets.core50 import core50


def frame(session: int, number: int, index: int) -> np.ndarray:
    """Return an image whose colour tells what it is, but for a texture that resizing changes."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:] = (session, number, index)
    pixels[64:, ::3] += 100
    return pixels


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original") / "core50_128x128"
    for session in range(1, 12):
        for number in range(1, 51):
            folder = root / f"s{session}" / f"o{number}"
            folder.mkdir(parents=True)
            for index in (0, 1) if number == 50 else (0,):
                path = folder / f"C_{session:02}_{number:02}_{index:03}.png"
                Image.fromarray(frame(session, number, index)).save(path, compress_level=0)
    return root


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """Return a copy that may be damaged: its images are links."""
    for path in original.rglob("*.png"):
        target = tmp_path / path.relative_to(original)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return tmp_path


def test_sessions_objects_and_frames_are_those_of_the_files(original: Path) -> None:
    data = core50(str(original.parent), side=None)
    assert data.train.x.shape == (8 * 51, 3, 128, 128)
    assert data.test.x.shape == (3 * 51, 3, 128, 128)
    assert (data.train.x.dtype, data.num_classes) == (torch.uint8, 50)
    train, test = data.tags["domain"]
    assert train.unique().tolist() == [0, 1, 3, 4, 5, 7, 8, 10]
    assert test.unique().tolist() == [2, 6, 9]
    for store, domain in ((data.train, train), (data.test, test)):
        assert torch.equal(store.x[:, 0, 0, 0].long(), domain + 1)
        assert torch.equal(store.x[:, 1, 0, 0].long(), store.y + 1)
    assert data.train.x[49:51, 2, 0, 0].tolist() == [0, 1]
    assert np.array_equal(data.test.x[0].permute(1, 2, 0).numpy(), frame(3, 1, 0))


def test_objects_are_numbered_as_their_folders(original: Path) -> None:
    data = core50(str(original), side=1)
    assert data.train.y[:51].tolist() == [*range(50), 49]  # not o1, o10, o11, ...
    category = core50(str(original), side=1, labels="category")
    assert category.num_classes == 10
    assert torch.equal(category.train.y, data.train.y // 5)
    assert category.digest != data.digest


def test_images_are_resized(original: Path) -> None:
    x = core50(str(original)).train.x
    assert x.shape == (8 * 51, 3, 32, 32)
    resized = Image.fromarray(frame(1, 1, 0)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(x[0].permute(1, 2, 0).numpy(), np.asarray(resized))


def test_the_digest_does_not_depend_on_the_place(original: Path, copy: Path) -> None:
    first = core50(str(original), side=4).digest
    assert core50(str(copy), side=4).digest == first
    assert core50(str(copy), side=5).digest != first
    assert core50(str(copy), side=4, mean=0.5).digest != first
    path = copy / "s11" / "o50" / "C_11_50_001.png"
    path.unlink()
    Image.fromarray(frame(11, 50, 9)).save(path)
    assert core50(str(copy), side=4).digest != first


def test_what_is_missing_or_misplaced_is_refused_by_path(copy: Path) -> None:
    folder = copy / "s4" / "o7"
    path = folder / "C_04_07_000.png"
    path.rename(folder / "C_04_08_000.png")
    with pytest.raises(ValueError, match=r"C_04_08_000.png: must be called C_04_07_000.png or so"):
        core50(str(copy))
    (folder / "C_04_08_000.png").unlink()
    with pytest.raises(ValueError, match=f"^{folder}: is empty"):
        core50(str(copy))
    folder.rmdir()
    with pytest.raises(ValueError, match=f"^{folder}: cannot be listed: No such file"):
        core50(str(copy))


def test_images_of_another_size_are_refused(copy: Path) -> None:
    path = copy / "s4" / "o7" / "C_04_07_000.png"
    path.unlink()
    Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(ValueError, match=f"^{path}: is 32 x 32 pixels, must be 128 x 128"):
        core50(str(copy))


def test_missing_sessions_say_what_to_do(copy: Path) -> None:
    (copy / "s11").rename(copy / "s12")
    with pytest.raises(ValueError, match=r"^dataset.root=.*folders s1, ..., s11\).*download=true$"):
        core50(str(copy))


def test_settings_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^dataset.labels=shape: must be object or category"):
        core50("/nowhere", labels="shape")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^dataset.side=-1: must be at least 1"):
        core50("/nowhere", side=-1)


def test_a_download_of_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"another file")
    monkeypatch.setattr(module, "URL", (tmp_path / "file").as_uri())
    with pytest.raises(ValueError, match=r"^dataset.download=true: CORe50 could not be .* md5"):
        core50(str(tmp_path / "root"), download=True)
    assert not list((tmp_path / "root").iterdir())
