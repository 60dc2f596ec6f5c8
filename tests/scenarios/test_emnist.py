import gzip
import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from building import built
from idx_files import encode

from scenarios.datasets import emnist as module
from scenarios.datasets.emnist import LABELS, emnist

SPLITS = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}


def contents(split: str) -> dict[str, bytes]:
    """A small split in EMNIST's files: two training images and one test image a class."""
    rng, labels = np.random.default_rng(len(split)), np.arange(SPLITS[split], dtype=np.uint8)
    labels += split == "letters"
    files = {}
    for part, repeats in (("train", 2), ("test", 1)):
        name, y = f"emnist-{split}-{part}", np.tile(labels, repeats)
        images = rng.integers(0, 256, (len(y), 28, 28), dtype=np.uint8)
        files[f"{name}-images-idx3-ubyte"] = encode(images)
        files[f"{name}-labels-idx1-ubyte"] = encode(y)
    return files


def write(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def packed(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(content) for name, content in files.items()}


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_is_what_torchvision_reads_but_upright_and_from_0(
    split: Any, tmp_path: Path
) -> None:
    from torchvision.datasets import EMNIST

    write(tmp_path / "EMNIST" / "raw", contents(split))
    data = emnist(split, str(tmp_path))
    assert data.num_classes == SPLITS[split]
    for train, samples in ((True, data.train), (False, data.test)):
        theirs = EMNIST(str(tmp_path), split, train=train)
        assert torch.equal(samples.x[:, 0], theirs.data.transpose(1, 2))
        assert torch.equal(samples.y, theirs.targets - int(split == "letters"))
    assert samples.x.is_contiguous()


def test_an_l_in_the_files_stands_upright(tmp_path: Path) -> None:
    files = contents("digits")
    lying = np.zeros((10, 28, 28), np.uint8)
    lying[:, 5, :20] = 255  # the files' rows are columns: a stroke down the left
    files["emnist-digits-test-images-idx3-ubyte"] = encode(lying)
    image = emnist("digits", str(write(tmp_path, files))).test.x[0, 0]
    assert (image[:20, 5] == 255).all()
    assert int((image > 0).sum()) == 20


@pytest.mark.parametrize("place", ["EMNIST/raw", "EMNIST/raw/gzip", "raw", "gzip", "."])
def test_files_are_found_in_each_place_plain_or_packed(place: str, tmp_path: Path) -> None:
    files = contents("digits")
    write(tmp_path / "plain" / place, files)
    write(tmp_path / "packed" / place, packed(files))
    digests = {emnist("digits", str(tmp_path / kind)).digest for kind in ("plain", "packed")}
    assert len(digests) == 1
    write(tmp_path / "plain" / place, contents("mnist"))
    digests.add(emnist("mnist", str(tmp_path / "plain")).digest)
    digests.add(emnist("digits", str(tmp_path / "plain"), padding=2).digest)
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("split", "label", "message"),
    [
        ("letters", 0, "label 0 in row 1, must be in 1..26"),
        ("letters", 27, "label 27 in row 1, must be in 1..26"),
        ("balanced", 47, "label 47 in row 1, must be in 0..46"),
        ("byclass", 62, "label 62 in row 1, must be in 0..61"),
    ],
)
def test_labels_of_another_split_are_refused(
    split: Any, label: int, message: str, tmp_path: Path
) -> None:
    name, files = f"emnist-{split}-test-labels-idx1-ubyte", contents(split)
    labels = np.frombuffer(files[name], np.uint8, offset=8).copy()
    labels[1] = label
    write(tmp_path, {**files, name: encode(labels)})
    with pytest.raises(ValueError, match=message) as caught:
        emnist(split, str(tmp_path))
    assert str(caught.value).startswith(str(tmp_path / name))


def test_settings_and_missing_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dataset.split=all: must be one of byclass, bymerge"):
        emnist("all", str(tmp_path))  # type: ignore[arg-type]
    write(tmp_path, contents("digits"))
    with pytest.raises(ValueError, match=r"^dataset.root=.* EMNIST's split letters") as caught:
        emnist("letters", str(tmp_path))
    assert "emnist-letters-train-images-idx3-ubyte[.gz]" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_download_is_unpacked_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "gzip.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for split in ("digits", "letters"):
            for name, content in packed(contents(split)).items():
                file.writestr(f"gzip/{name}", content)
    monkeypatch.setattr(module, "URL", archive.as_uri())
    root = tmp_path / "root"
    with pytest.raises(ValueError, match=r"^dataset.download=true: EMNIST could .* has the md5"):
        emnist("letters", str(root), download=True)
    assert not list((root / "EMNIST").iterdir())

    monkeypatch.setattr(module, "CHECKSUM", f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}")
    data = emnist("letters", str(root), download=True)
    assert data.digest == emnist("letters", str(write(tmp_path, contents("letters")))).digest
    assert [path.name for path in (root / "EMNIST").iterdir()] == ["raw"]  # not the archive
    archive.unlink()
    assert emnist("digits", str(root), download=True).num_classes == 10  # nothing to fetch
    with pytest.raises(ValueError, match=r"EMNIST.raw is there already; put its files there and"):
        emnist("mnist", str(root), download=True)


def test_splits_and_download_are_torchvisions() -> None:
    from torchvision.datasets import EMNIST

    assert (module.URL, module.CHECKSUM.removeprefix("md5:")) == (EMNIST.url, EMNIST.md5)
    assert tuple(LABELS) == EMNIST.splits
    for split, labels in LABELS.items():
        assert labels[-1] + 1 == len(EMNIST.classes_split_dict[split])


@pytest.mark.parametrize("split", ["balanced", "letters"])
def test_the_choice_builds_on_its_files(split: str, tmp_path: Path) -> None:
    write(tmp_path, contents(split))
    scenario = built(tmp_path, "dataset=emnist", f"dataset.split={split}").scenario
    assert (scenario.input_shape, scenario.num_classes) == ((1, 28, 28), SPLITS[split])
