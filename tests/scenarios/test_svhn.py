import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from building import built
from scipy.io import savemat

from scenarios.datasets import svhn as module
from scenarios.datasets.svhn import svhn

Contents = dict[str, dict[str, Any]]


def contents() -> Contents:
    """Twenty training, ten test and five extra images, as MATLAB keeps them."""
    rng = np.random.default_rng(0)
    return {
        f"{part}_32x32.mat": {
            "X": rng.integers(0, 256, (32, 32, 3, size), dtype=np.uint8),
            "y": (np.arange(size, dtype=np.uint8) % 10 + 1)[:, None],
        }
        for part, size in (("train", 20), ("test", 10), ("extra", 5))
    }


def write(folder: Path, files: Contents) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, held in files.items():
        savemat(folder / name, held, do_compression=True)
    return folder


@pytest.mark.parametrize("place", ["SVHN", "."])
def test_files_are_read_as_torchvision_reads_them(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import SVHN

    monkeypatch.setattr(SVHN, "_check_integrity", lambda self: True)
    folder = write(tmp_path / place, contents())
    data = svhn(str(tmp_path))
    for split, samples in (("train", data.train), ("test", data.test)):
        theirs = SVHN(str(folder), split)
        assert np.array_equal(samples.x, theirs.data)
        assert np.array_equal(samples.y, theirs.labels)
    assert samples.x.is_contiguous()
    assert samples.y.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_extra_samples_come_after_the_training_samples(tmp_path: Path) -> None:
    files = contents()
    root = str(write(tmp_path, files))
    plain, more = svhn(root), svhn(root, extra=True)
    assert more.train.x.shape == (25, 3, 32, 32)
    assert np.array_equal(more.train.x[:20], plain.train.x)
    extra = files["extra_32x32.mat"]["X"].transpose(3, 2, 0, 1)
    assert np.array_equal(more.train.x[20:], extra)
    assert more.train.y[20:].tolist() == [1, 2, 3, 4, 5]
    assert plain.digest == svhn(root).digest != more.digest
    assert svhn(root, mean=0.4, std=[0.2, 0.3, 0.2]).digest not in (plain.digest, more.digest)


GOOD = contents()["train_32x32.mat"]
IMAGES, LABELS = GOOD["X"], GOOD["y"]
WRONG = LABELS.copy()
WRONG[7] = 11


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"y": LABELS}, r"must hold X, \(32, 32, 3, n\) bytes$"),
        ({"X": IMAGES.astype(float), "y": LABELS}, r"must hold X, \(32, 32, 3, n\) bytes$"),
        ({"X": IMAGES.transpose(3, 2, 0, 1), "y": LABELS}, r"must hold X, \(32, 32, 3, n\) bytes$"),
        ({"X": IMAGES}, r"must hold y, \(20, 1\) whole numbers$"),
        ({"X": IMAGES, "y": LABELS[1:]}, r"must hold y, \(20, 1\) whole numbers$"),
        ({"X": IMAGES, "y": LABELS + 0.5}, r"must hold y, \(20, 1\) whole numbers$"),
        ({"X": IMAGES, "y": LABELS - 1}, r"label 0 in row 0, must be in 1..10$"),
        ({"X": IMAGES, "y": WRONG}, r"label 11 in row 7, must be in 1..10$"),
    ],
)
def test_other_content_is_refused_by_name(
    held: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path, {**contents(), "train_32x32.mat": held}) / "train_32x32.mat"
    with pytest.raises(ValueError, match=message) as caught:
        svhn(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "hdf5"])
def test_a_damaged_file_is_refused_by_name_in_one_line(damage: str, tmp_path: Path) -> None:
    path = write(tmp_path, contents()) / "test_32x32.mat"
    content = path.read_bytes()
    flipped = content[:5000] + bytes([content[5000] ^ 255]) + content[5001:]
    path.write_bytes(
        {
            "cut": content[:-500],
            "flipped": flipped,
            "empty": b"",
            "text": b"no MATLAB file\n" * 100,
            "hdf5": content[:124] + b"\x00\x02IM" + content[128:],  # MATLAB's version 7.3
        }[damage]
    )
    with pytest.raises(ValueError, match="is no MATLAB file that can be read: ") as caught:
        svhn(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    (write(tmp_path, contents()) / "extra_32x32.mat").unlink()
    assert len(svhn(str(tmp_path)).train) == 20
    with pytest.raises(ValueError, match=r"^dataset.root=.*extra_32x32.mat.*download=true$"):
        svhn(str(tmp_path), extra=True)


def test_a_download_fetches_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, root = write(tmp_path / "mirror", contents()), tmp_path / "root"
    monkeypatch.setattr(module, "MIRRORS", (f"{mirror.as_uri()}/",))
    with pytest.raises(ValueError, match=r"^dataset.download=true: SVHN could not .* has the md5"):
        svhn(str(root), download=True)
    assert not list((root / "SVHN").iterdir())

    sums = {
        path.name: f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}" for path in mirror.iterdir()
    }
    monkeypatch.setattr(module, "CHECKSUMS", {name: sums[name] for name in module.CHECKSUMS})
    data = svhn(str(root), download=True)
    assert data.digest == svhn(str(mirror)).digest
    assert sorted(path.name for path in (root / "SVHN").iterdir()) == [
        "test_32x32.mat",
        "train_32x32.mat",
    ]
    for name in ("train_32x32.mat", "test_32x32.mat"):
        (mirror / name).unlink()
    assert len(svhn(str(root), download=True, extra=True).train) == 25


def test_downloads_are_torchvisions() -> None:
    from torchvision.datasets import SVHN

    for url, name, md5 in SVHN.split_list.values():
        assert url == f"{module.MIRRORS[0]}{name}"
        assert module.CHECKSUMS[name] == f"md5:{md5}"


def test_the_choice_builds_on_its_files(tmp_path: Path) -> None:
    write(tmp_path / "SVHN", contents())
    scenario = built(tmp_path, "dataset=svhn", "dataset.extra=true").scenario
    assert scenario.input_shape == (3, 32, 32)
    assert len(scenario.train) == 25
