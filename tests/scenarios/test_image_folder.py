"""Folders of images: your own, and what all data sets of image files share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from scenarios.datasets.image_files import decode
from scenarios.datasets.image_folder import image_folder

Pixels = NDArray[np.uint8]


def picture(seed: int, height: int = 6, width: int = 6) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(root: Path, images: Mapping[str, Pixels]) -> Path:
    for name, pixels in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


SPLIT = {
    f"{part}/{name}/{number}.png": picture(100 * at + number)
    for at, (part, name) in enumerate((p, c) for p in ("train", "test") for c in ("ant", "bee"))
    for number in range(3 if part == "train" else 1)
}
WHOLE = {
    f"{name}/{number:03}.png": picture(100 * at + number)
    for at, name in enumerate(("ant", "bee", "cat"))
    for number in range(10 * (at + 1))
}
DOMAINS = {
    f"{domain}/{name}/{number}.png": picture(100 * at + number)
    for at, (domain, name) in enumerate((d, c) for d in ("photo", "sketch") for c in ("ant", "bee"))
    for number in range(5)
}


def test_train_and_test_are_what_lies_in_them_in_the_order_of_the_paths(tmp_path: Path) -> None:
    data = image_folder(str(write(tmp_path, SPLIT)), side=None)
    expected = np.stack([SPLIT[name] for name in sorted(SPLIT) if name.startswith("train")])
    assert data.train.x.dtype == torch.uint8
    assert np.array_equal(data.train.x.numpy(), expected.transpose(0, 3, 1, 2))
    assert data.train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(data.test.x[1].numpy(), SPLIT["test/bee/0.png"].transpose(2, 0, 1))
    assert data.test.y.tolist() == [0, 1]
    assert (data.num_classes, data.tags) == (2, {})


@pytest.mark.parametrize(("test_fraction", "tested"), [(0.2, [2, 4, 6]), (0.01, [1, 1, 1])])
def test_classes_alone_are_split_each_on_its_own(
    tmp_path: Path, test_fraction: float, tested: list[int]
) -> None:
    root = str(write(tmp_path, WHOLE))
    data = image_folder(root, side=None, test_fraction=test_fraction)
    assert data.test.y.bincount().tolist() == tested
    both = torch.cat([data.train.x, data.test.x]).permute(0, 2, 3, 1).numpy()
    labels = torch.cat([data.train.y, data.test.y]).tolist()
    assert len({pixels.tobytes() for pixels in both}) == len(both) == len(WHOLE)
    by_pixels = {pixels.tobytes(): name.split("/")[0] for name, pixels in WHOLE.items()}
    names = ["ant", "bee", "cat"]
    assert [by_pixels[each.tobytes()] for each in both] == [names[label] for label in labels]
    again = image_folder(root, side=None, test_fraction=test_fraction)
    other = image_folder(root, side=None, test_fraction=test_fraction, seed=1)
    assert data.digest == again.digest != other.digest


def test_domains_are_tags_and_are_split_each_on_its_own(tmp_path: Path) -> None:
    data = image_folder(str(write(tmp_path, DOMAINS)), side=None, domains=True)
    train, test = data.tags["domain"]
    assert train.tolist() == [0] * 8 + [1] * 8
    assert test.tolist() == [0, 0, 1, 1]
    assert data.train.y.tolist() == ([0] * 4 + [1] * 4) * 2
    kept = {pixels.tobytes() for pixels in data.train.x[train == 1].permute(0, 2, 3, 1).numpy()}
    assert kept < {DOMAINS[name].tobytes() for name in DOMAINS if name.startswith("sketch")}


def test_domains_may_lie_in_train_and_test(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / part, DOMAINS)
    data = image_folder(str(tmp_path), side=None, domains=True)
    assert torch.equal(data.train.x, data.test.x)
    assert data.tags["domain"][0].tolist() == data.tags["domain"][1].tolist() == [0] * 10 + [1] * 10
    (tmp_path / "test" / "photo").rename(tmp_path / "test" / "Photo")
    with pytest.raises(ValueError, match=r"test: has no folder photo, which .*train has$"):
        image_folder(str(tmp_path), domains=True)


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (40, 40), (5, 4)])
def test_images_are_cropped_to_the_middle_square_and_resized_as_pillow_does(
    tmp_path: Path, height: int, width: int
) -> None:
    pixels = picture(1, height, width)
    root = write(tmp_path, {**SPLIT, "train/ant/0.png": pixels})
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = Image.fromarray(pixels[top : top + edge, left : left + edge])
    expected = np.asarray(square.resize((16, 16), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(image_folder(str(root), side=16).train.x[0].numpy(), expected)


def test_colours_become_shades_of_grey(tmp_path: Path) -> None:
    data = image_folder(str(write(tmp_path, SPLIT)), side=None, channels=1)
    expected = np.asarray(Image.fromarray(SPLIT["train/ant/0.png"]).convert("L"))
    assert data.train.x.shape == (6, 1, 6, 6)
    assert np.array_equal(data.train.x[0, 0].numpy(), expected)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "PNG"])
def test_formats_without_loss_give_the_same_pixels_and_digest(tmp_path: Path, suffix: str) -> None:
    plain = image_folder(str(write(tmp_path / "plain", SPLIT)), side=None)
    other = tmp_path / "other"
    for name, pixels in SPLIT.items():
        path = (other / name).with_suffix(f".{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == "webp" else {}))
    assert image_folder(str(other), side=None).digest == plain.digest


def test_palettes_bits_and_transparency_are_converted(tmp_path: Path) -> None:
    write(tmp_path, SPLIT)
    checks = np.indices((6, 6)).sum(0) % 2 == 0
    Image.fromarray(checks).save(tmp_path / "train" / "ant" / "0.png")
    palette = Image.fromarray(checks.astype(np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "train" / "ant" / "1.png", transparency=b"\x00\x80")
    alpha = np.dstack([SPLIT["train/ant/2.png"], np.full((6, 6), 7, np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "train" / "ant" / "2.png")
    x = image_folder(str(tmp_path), side=None).train.x
    assert x[0, 0].tolist() == (checks * 255).tolist()
    assert x[1, :, 0, 0].tolist() == [40, 50, 60]
    assert x[1, :, 0, 1].tolist() == [10, 20, 30]
    assert np.array_equal(x[2].permute(1, 2, 0).numpy(), SPLIT["train/ant/2.png"])


def test_many_images_are_decoded_in_their_order(tmp_path: Path) -> None:
    shades = [np.full((2, 2), shade, np.uint8) for shade in range(256)]
    write(tmp_path, {f"{shade:03}.png": pixels for shade, pixels in enumerate(shades)})
    paths = sorted(tmp_path.iterdir())
    assert decode(paths, 1)[:, 0, 0, 0].tolist() == list(range(256))
    for broken in (200, 100, 150):
        paths[broken].write_bytes(b"")
    with pytest.raises(ValueError, match=r"100.png: is no image"):
        decode(paths, 1)


def test_the_digest_is_of_the_content_wherever_it_lies(tmp_path: Path) -> None:
    first = image_folder(str(write(tmp_path / "a", SPLIT)), side=None).digest
    root = write(tmp_path / "b", SPLIT)
    (root / "train" / "ant" / "0.png").rename(root / "train" / "ant" / "00.png")
    assert image_folder(str(root), side=None).digest == first
    changed = SPLIT["test/ant/0.png"].copy()
    changed[0, 0, 0] ^= 1
    others = [
        image_folder(str(write(tmp_path / "c", {**SPLIT, "test/ant/0.png": changed})), side=None),
        image_folder(str(root), side=None, mean=0.5),
        image_folder(str(root), side=None, std=(0.5, 0.5, 0.25)),
        image_folder(str(root), side=None, channels=1),
        image_folder(str(root), side=5),
    ]
    assert len({first, *(each.digest for each in others)}) == 6


def test_pixels_are_normalised_channel_by_channel(tmp_path: Path) -> None:
    root = write(tmp_path, SPLIT)
    data = image_folder(str(root), side=None, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    x = SPLIT["train/ant/0.png"].transpose(2, 0, 1) / 255
    expected = (x - np.array([0.5, 0.25, 0.0])[:, None, None]) / np.array([0.5, 1, 2])[
        :, None, None
    ]
    assert np.allclose(data.train.inputs(torch.tensor([0]))[0].numpy(), expected, atol=1e-6)


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    first = image_folder(str(write(tmp_path, SPLIT)), side=None).digest
    (tmp_path / ".git").mkdir()
    (tmp_path / "train" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    assert image_folder(str(tmp_path), side=None).digest == first


def _write_bytes(name: str, content: bytes) -> Any:
    def damage(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return damage


def _save(name: str, pixels: NDArray[Any]) -> Any:
    return lambda root: Image.fromarray(pixels).save(root / name)


def _cut(root: Path) -> None:
    path = root / "train/bee/1.png"
    path.write_bytes(path.read_bytes()[:90])


def _flip(root: Path) -> None:
    path = root / "train/bee/1.png"
    content = bytearray(path.read_bytes())
    content[60] ^= 255
    path.write_bytes(bytes(content))


def _empty(root: Path) -> None:
    (root / "test/bee/0.png").unlink()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("damage", "place", "message"),
    [
        (_cut, "train/bee/1.png", "is no image that can be read: "),
        (_flip, "train/bee/1.png", "is no image that can be read: "),
        (_write_bytes("train/bee/1.png", b""), "train/bee/1.png", "is no image that can be read"),
        (_write_bytes("train/bee/a.txt", b"text"), "train/bee/a.txt", "is no image that can be"),
        (_write_bytes("train/bee/a.eps", EPS), "train/bee/a.eps", "is no image that can be read"),
        (
            _save("train/bee/1.png", np.zeros((6, 6), np.uint16)),
            "train/bee/1.png",
            "is of Pillow's mode I;16, must have 8 bits a channel",
        ),
        (
            _save("train/bee/1.png", np.zeros((5, 6), np.uint8)),
            "train/bee/1.png",
            "is 6 x 5 pixels, but 0.png is 6 x 6: set dataset.side",
        ),
        (_empty, "test/bee", "is empty, must hold files; dataset.root must hold"),
        (_write_bytes("train/cat/0.png", b""), "test", "has no folder cat, which .*train has"),
        (_write_bytes("test/cat/0.png", b""), "train", "has no folder cat, which .*test has"),
        (_write_bytes("train/a.png", b""), "train/a.png", "is a file where folders are expected"),
        (_write_bytes("a.txt", b""), "a.txt", "is a file where folders are expected"),
        (_write_bytes("train/bee/x/a", b""), "train/bee/x", "is a folder where files are expected"),
        (_write_bytes("val/ant/a", b""), "test/ant", "is a folder .* in train/CLASS/ and test/C"),
    ],
)
def test_what_cannot_be_used_is_refused_by_path_in_one_line(
    tmp_path: Path, damage: Any, place: str, message: str
) -> None:
    damage(write(tmp_path, SPLIT))
    with pytest.raises(ValueError, match=f"^{tmp_path / place}: {message}") as caught:
        image_folder(str(tmp_path), side=None)
    assert "\n" not in str(caught.value)


def test_a_class_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"ant/0.png": picture(0), "bee/0.png": picture(1)})
    with pytest.raises(ValueError, match=f"^{root / 'ant'}: holds 1 image, needs 2"):
        image_folder(str(root))


def test_other_layouts_are_refused_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dataset.root=.*nowhere: is no folder; .*train/CLASS/"):
        image_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=f"^{tmp_path}: is empty, must hold folders"):
        image_folder(str(tmp_path))
    write(tmp_path / "one", {"ant/0.png": picture(0), "ant/1.png": picture(1)})
    with pytest.raises(ValueError, match=f"^{tmp_path / 'one'}: holds one class, ant; "):
        image_folder(str(tmp_path / "one"))
    write(tmp_path / "two", DOMAINS)
    with pytest.raises(ValueError, match=r"photo/ant: is a folder .* dataset.domains=true$"):
        image_folder(str(tmp_path / "two"))
    (tmp_path / "two" / "sketch" / "ant").rename(tmp_path / "two" / "sketch" / "Ant")
    with pytest.raises(ValueError, match=r"sketch: has no folder ant, which .*photo has$"):
        image_folder(str(tmp_path / "two"), domains=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 0}, "dataset.side=0: must be at least 1"),
        ({"channels": 2}, "dataset.channels=2: must be 1"),
        ({"test_fraction": 1.0}, "dataset.test_fraction=1.0: must be greater than 0 and less"),
        ({"mean": (0.1, 0.2)}, r"dataset.mean=\(0.1, 0.2\): must be one number or 3"),
        ({"std": 0.0}, "dataset.std=0.0: must be greater than 0"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        image_folder("/nowhere", **change)


def test_a_run_is_built_on_your_own_images(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    asked = [
        "dataset=image_folder",
        f"dataset.root={tmp_path}",
        "dataset.side=8",
        "dataset.mean=[0.5,0.5,0.5]",
        "scenario=class_incremental",
        "scenario.num_experiences=3",
        "num_clients=2",
        "continual=naive",
        "tracker=none",
    ]
    scenario = build(prepare(compose(asked))).scenario
    assert scenario.input_shape == (3, 8, 8)
    assert scenario.num_classes == 3
