"""Tiny ImageNet, in its own layout with fewer images of each class."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scenarios.datasets import tiny_imagenet as module
from scenarios.datasets.tiny_imagenet import tiny_imagenet

NAMES = [f"n{(7 * number) % 200 + 1443537:08}" for number in range(200)]  # not in sorted order


@pytest.fixture(autouse=True)
def fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRAIN_PER_CLASS", 2)
    monkeypatch.setattr(module, "TEST_PER_CLASS", 1)


def shade(number: int) -> Image.Image:
    """Return a photograph of one colour, which JPEG keeps but for rounding."""
    return Image.new("RGB", (64, 64), (number, 255 - number, 128))


def jpeg(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=95)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original") / "tiny-imagenet-200"
    for label, name in enumerate(NAMES):
        for number in range(2):
            jpeg(root / "train" / name / "images" / f"{name}_{number}.JPEG", shade(label))
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t0\t9\t9\n")
    lines = []
    for row in range(200):  # rows in another order than classes
        label = (row + 50) % 200
        jpeg(root / "val" / "images" / f"val_{row}.JPEG", shade(label))
        lines.append(f"val_{row}.JPEG\t{NAMES[label]}\t0\t32\t44\t62\n")
    grey = Image.new("L", (64, 64), 77)
    jpeg(root / "train" / NAMES[3] / "images" / f"{NAMES[3]}_1.JPEG", grey)
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return root


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    """Return a copy that may be damaged: links, but for its folders and text files."""
    for path in original.rglob("*"):
        target = tmp_path / path.relative_to(original)
        if path.suffix == ".JPEG":
            target.symlink_to(path)
        elif path.is_dir():
            target.mkdir(parents=True)
        else:
            target.write_bytes(path.read_bytes())
    return tmp_path


def test_images_and_labels_are_those_of_the_files(original: Path) -> None:
    data = tiny_imagenet(str(original.parent))
    assert data.train.x.shape == (400, 3, 64, 64)
    assert data.train.x.dtype == torch.uint8
    assert (data.num_classes, data.tags) == (200, {})
    assert data.train.y.tolist() == [label for label in range(200) for _ in range(2)]
    assert data.test.y.tolist() == [(row + 50) % 200 for row in range(200)]
    expected = np.asarray(Image.open(original / "val" / "images" / "val_9.JPEG"))
    assert np.array_equal(data.test.x[9].permute(1, 2, 0).numpy(), expected)
    coloured = torch.arange(400) != 7
    for x, y in ((data.train.x[coloured], data.train.y[coloured]), (data.test.x, data.test.y)):
        assert int((x[:, 0, 5, 5].long() - y).abs().max()) <= 2
    assert set(data.train.x[7].flatten().tolist()) == {77}  # grey: three equal channels


def test_the_digest_does_not_depend_on_the_place(original: Path, copy: Path) -> None:
    first = tiny_imagenet(str(original)).digest
    assert tiny_imagenet(str(copy)).digest == first
    assert tiny_imagenet(str(copy), mean=(0.5, 0.4, 0.3), std=0.2).digest != first
    path = copy / "val" / "images" / "val_0.JPEG"
    path.unlink()
    jpeg(path, shade(200))
    assert tiny_imagenet(str(copy)).digest != first


def _rewrite(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = (root / name).read_text()
        assert old in content
        (root / name).write_text(content.replace(old, new, 1))

    return damage


def _remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def _resize(root: Path) -> None:
    (root / "val/images/val_3.JPEG").unlink()
    jpeg(root / "val/images/val_3.JPEG", shade(3).resize((64, 63)))


def _cut(root: Path) -> None:
    path = root / "val/images/val_3.JPEG"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-300])


NAME = NAMES[5]
ANNOTATIONS = "val/val_annotations.txt"


@pytest.mark.parametrize(
    ("damage", "place", "message"),
    [
        (_rewrite("wnids.txt", NAME, "../.."), "wnids.txt", r"'../..' in row 5 is no class"),
        (_rewrite("wnids.txt", NAME, NAMES[4]), "wnids.txt", f"repeats {NAMES[4]} in row 5"),
        (_rewrite("wnids.txt", f"{NAME}\n", ""), "wnids.txt", "names 199 classes, must be 200"),
        (_rewrite("wnids.txt", NAME, "né"), "wnids.txt", "is no text: "),
        (
            _remove(f"train/{NAME}/images/{NAME}_0.JPEG"),
            f"train/{NAME}/images",
            "holds 1 images, must be 2",
        ),
        (_remove("val/images/val_7.JPEG"), ANNOTATIONS, "'val_7.JPEG' in row 7 is not in images/"),
        (_rewrite(ANNOTATIONS, "val_7.", "val_6."), ANNOTATIONS, "'val_6.JPEG' in row 7 is not in"),
        (_rewrite(ANNOTATIONS, "val_7.", "../val_7."), ANNOTATIONS, "'../val_7.JPEG' in row 7 is"),
        (_rewrite(ANNOTATIONS, NAME, "n00000000"), ANNOTATIONS, "'n00000000' in row 155 is no"),
        (_rewrite(ANNOTATIONS, f"\t{NAME}\t", " "), ANNOTATIONS, ".* in row 155 is no class"),
        (_rewrite(ANNOTATIONS, NAME, NAMES[4]), ANNOTATIONS, f"names 2 images of {NAMES[4]}, must"),
        (_resize, "val/images/val_3.JPEG", "is 64 x 63 pixels, must be 64 x 64"),
        (_cut, "val/images/val_3.JPEG", "is no image that can be read: "),
    ],
)
def test_damaged_files_are_refused_by_name_and_row(
    copy: Path, damage: Callable[[Path], None], place: str, message: str
) -> None:
    damage(copy)
    with pytest.raises(ValueError, match=f"^{copy / place}: {message}") as caught:
        tiny_imagenet(str(copy))
    assert "\n" not in str(caught.value)


def test_an_image_without_annotation_is_refused(copy: Path) -> None:
    jpeg(copy / "val" / "images" / "val_200.JPEG", shade(0))
    with pytest.raises(ValueError, match=r"annotations.txt: does not name val_200.JPEG, which is"):
        tiny_imagenet(str(copy))


def test_missing_files_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dataset.root=.*wnids.txt.*download=true$"):
        tiny_imagenet(str(tmp_path))


def test_the_archive_is_fetched_checked_and_unpacked(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in original.rglob("*"):
            file.write(path, path.relative_to(original.parent))
    monkeypatch.setattr(module, "URL", archive.as_uri())
    root = tmp_path / "root"
    with pytest.raises(ValueError, match=r"download=true: Tiny ImageNet could not .* damaged"):
        tiny_imagenet(str(root), download=True)
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "CHECKSUM", f"md5:{digest}")
    fetched = tiny_imagenet(str(root), download=True).digest
    archive.unlink()
    assert fetched == tiny_imagenet(str(root), download=True).digest
    assert fetched == tiny_imagenet(str(original)).digest
