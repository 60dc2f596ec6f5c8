"""Omniglot, in its own layout with fewer characters."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scenarios.datasets import omniglot as module
from scenarios.datasets.omniglot import omniglot

LAYOUT = {"background": {"Greek": 2, "Armenian": 1}, "evaluation": {"Tibetan": 2}}
# in order: folders, alphabets by name, characters
CHARACTERS = [
    ("background", "Armenian", 1),
    ("background", "Greek", 1),
    ("background", "Greek", 2),
    ("evaluation", "Tibetan", 1),
    ("evaluation", "Tibetan", 2),
]


@pytest.fixture(autouse=True)
def fewer_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHARACTERS", {"background": 3, "evaluation": 2})


def drawing(label: int, drawer: int) -> np.ndarray:
    """Return white paper with as many lines of ink as the label and the drawer say."""
    paper = np.ones((105, 105), dtype=bool)
    paper[: label + 1] = False
    paper[50 : 50 + drawer] = False
    return paper


def path_of(label: int, drawer: int) -> Path:
    part, alphabet, character = CHARACTERS[label]
    name = f"{label + 709:04}_{drawer:02}.png"
    return Path(f"images_{part}") / alphabet / f"character{character:02}" / name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for label in range(len(CHARACTERS)):
        for drawer in range(1, 21):
            path = tmp_path / path_of(label, drawer)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawing(label, drawer)).save(path)
    return tmp_path


def test_drawings_characters_and_drawers_are_those_of_the_files(root: Path) -> None:
    data = omniglot(str(root), side=None)
    assert data.train.x.shape == (75, 1, 105, 105)
    assert data.train.x.dtype == torch.uint8
    assert data.num_classes == 5
    assert data.train.y.tolist() == [label for label in range(5) for _ in range(15)]
    assert data.test.y.tolist() == [label for label in range(5) for _ in range(5)]
    assert data.tags["writer"][0].tolist() == list(range(15)) * 5
    assert data.tags["writer"][1].tolist() == list(range(15, 20)) * 5
    assert data.tags["domain"][1].tolist() == [0] * 5 + [1] * 10 + [2] * 10
    assert data.train.x[16, 0].tolist() == (drawing(1, 2) * 255).tolist()
    assert data.test.x[-1, 0].tolist() == (drawing(4, 20) * 255).tolist()


def test_one_folder_is_enough_for_its_characters(root: Path) -> None:
    everything = omniglot(str(root), side=10)
    (root / "images_background").rename(root / "elsewhere")
    data = omniglot(str(root), side=10, alphabets="evaluation", test_drawers=1)
    assert data.num_classes == 2
    assert data.tags["domain"][0].unique().tolist() == [0]
    assert (len(data.train), len(data.test)) == (38, 2)
    assert torch.equal(data.test.x[1], everything.test.x[-1])
    with pytest.raises(ValueError, match=r"^dataset.root=.* folder images_background; .*=true$"):
        omniglot(str(root))


def test_images_are_resized(root: Path) -> None:
    x = omniglot(str(root)).train.x
    resized = (
        Image.fromarray(drawing(0, 1)).convert("L").resize((28, 28), Image.Resampling.BILINEAR)
    )
    assert x.shape == (75, 1, 28, 28)
    assert np.array_equal(x[0, 0].numpy(), np.asarray(resized))


def test_the_digest_does_not_depend_on_the_place(root: Path) -> None:
    first = omniglot(str(root)).digest
    others = [
        omniglot(str(root), side=27),
        omniglot(str(root), test_drawers=6),
        omniglot(str(root), mean=0.5),
        omniglot(str(root), alphabets="background"),
    ]
    assert len({first, *(each.digest for each in others)}) == 5
    (root / "omniglot-py").mkdir()
    for part in LAYOUT:
        (root / f"images_{part}").rename(root / "omniglot-py" / f"images_{part}")
    assert omniglot(str(root)).digest == first
    Image.fromarray(drawing(0, 2)).save(root / "omniglot-py" / path_of(0, 1))
    assert omniglot(str(root)).digest != first


def test_what_is_missing_or_misplaced_is_refused_by_path(root: Path) -> None:
    path = root / path_of(1, 3)
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=f"^{path.parent}: must hold one drawing of each of"):
        omniglot(str(root))
    path.with_name("3.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"character01/3.png: must be called NNNN_DD.png"):
        omniglot(str(root))
    path.with_name("3.png").unlink()
    path.write_bytes(content[:60])
    with pytest.raises(ValueError, match=f"^{path}: is no image that can be read"):
        omniglot(str(root))
    Image.new("1", (105, 104)).save(path)
    with pytest.raises(ValueError, match=f"^{path}: is 105 x 104 pixels, must be 105 x 105"):
        omniglot(str(root))


def test_a_missing_character_is_refused(root: Path) -> None:
    folder = (root / path_of(2, 1)).parent
    folder.rename(root / "character02")
    with pytest.raises(ValueError, match=r"images_background: holds 2 characters, must be 3$"):
        omniglot(str(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_drawers": 0}, "dataset.test_drawers=0: must be at least 1 and less than 20"),
        ({"test_drawers": 20}, "dataset.test_drawers=20: must be at least 1"),
        ({"alphabets": "greek"}, "dataset.alphabets=greek: must be one of all, background, ev"),
        ({"side": 0}, "dataset.side=0: must be at least 1"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        omniglot("/nowhere", **change)


def test_what_is_missing_is_fetched_checked_and_unpacked(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = omniglot(str(root)).digest
    checksums = {}
    for part in LAYOUT:
        archive = root / f"images_{part}.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in (root / f"images_{part}").rglob("*"):
                file.write(path, path.relative_to(root))
        checksums[part] = f"md5:{hashlib.md5(archive.read_bytes()).hexdigest()}"
    monkeypatch.setattr(module, "URL", f"{root.as_uri()}/")
    fresh = tmp_path / "fresh"
    with pytest.raises(
        ValueError, match=r"^dataset.download=true: Omniglot could not be .*damaged"
    ):
        omniglot(str(fresh), download=True)
    monkeypatch.setattr(module, "CHECKSUMS", checksums)
    assert omniglot(str(fresh), download=True).digest == first
    assert omniglot(str(fresh)).digest == first
