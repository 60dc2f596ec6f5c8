"""Data sets that the library `datasets` saved on disk."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL.Image import Image, fromarray

from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from scenarios.datasets.hugging_face import hugging_face

datasets = pytest.importorskip("datasets")
Columns = Mapping[str, Any]

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 6, 7), dtype=np.uint8)
COLOURED = RNG.integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
TRAIN, TEST = slice(0, 3), slice(3, 5)
WHOLE = datasets.Value("int64")
LABELS = {"label": [0, 1, 0, 1, 0]}


@pytest.fixture(autouse=True)
def quiet() -> None:
    datasets.disable_progress_bars()


def save(folder: Path, columns: Columns, **features: Any) -> str:
    """Save three rows to train on and two to test on."""
    parts = {"train": TRAIN, "test": TEST}
    saved = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {name: values[rows] for name, values in columns.items()},
                features=datasets.Features(features) if features else None,
            )
            for split, rows in parts.items()
        }
    )
    saved.save_to_disk(folder / "saved")
    return str(folder / "saved")


def pictures(arrays: NDArray[np.uint8]) -> list[Image]:
    return [fromarray(array) for array in arrays]


def test_grey_images_class_names_and_tags(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        {"image": pictures(GREY), **LABELS, "site": list("babcb")},
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["no", "yes"]),
        site=datasets.Value("string"),
    )
    data = hugging_face(path, tags=["site"], mean=0.5, std=0.25)
    assert np.array_equal(data.train.x, GREY[TRAIN, None])
    assert np.array_equal(data.test.x, GREY[TEST, None])
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 1, 0], [1, 0])
    train, test = data.tags["site"]
    assert (train.tolist(), test.tolist()) == ([1, 0, 1], [2, 1])
    assert (data.name, data.train.mean, data.train.std) == ("hugging_face", (0.5,), (0.25,))
    assert data.digest == hugging_face(path, tags=["site"], mean=0.5, std=0.25).digest
    assert len({data.digest, hugging_face(path).digest, hugging_face(path, side=6).digest}) == 3


def test_images_in_colour_and_resized(tmp_path: Path) -> None:
    columns = {"img": pictures(COLOURED), "fine": LABELS["label"]}
    path = save(tmp_path, columns, img=datasets.Image(), fine=WHOLE)
    data = hugging_face(path, input="img", label="fine")
    assert np.array_equal(data.train.x, COLOURED[TRAIN].transpose(0, 3, 1, 2))
    small = hugging_face(path, input="img", label="fine", side=3).test.x
    assert small.shape == (2, 3, 3, 3)
    expected = np.asarray(fromarray(COLOURED[4]).resize((3, 3), 2))
    assert np.array_equal(small[1].permute(1, 2, 0), expected)


def test_images_of_different_sizes_need_a_side(tmp_path: Path) -> None:
    images = [*pictures(GREY)[:2], fromarray(GREY[2][:5]), *pictures(GREY)[3:]]
    path = save(tmp_path, {"image": images, **LABELS}, image=datasets.Image(), label=WHOLE)
    with pytest.raises(ValueError, match=r"row 2: is 5x7, the first image 6x7; set dataset.side"):
        hugging_face(path)
    assert hugging_face(path, side=4).train.x.shape == (3, 1, 4, 4)


@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        (np.arange(20).reshape(5, 4), datasets.List(WHOLE), torch.int64),
        (RNG.normal(size=(5, 2, 3)), datasets.Array2D((2, 3), "float32"), torch.float32),
        (RNG.normal(size=(5, 2)), datasets.List(datasets.Value("float64")), torch.float32),
        (GREY[:, None], datasets.Array3D((1, 6, 7), "uint8"), torch.uint8),
    ],
)
def test_columns_of_arrays(
    tmp_path: Path, values: NDArray[Any], feature: Any, expected: torch.dtype
) -> None:
    path = save(tmp_path, {"image": values.tolist(), **LABELS}, image=feature, label=WHOLE)
    data = hugging_face(path)
    assert data.train.x.dtype == data.test.x.dtype == expected
    np.testing.assert_allclose(data.train.x, values[TRAIN], rtol=1e-6)
    np.testing.assert_allclose(data.test.x, values[TEST], rtol=1e-6)


def test_columns_of_numbers_text_labels_and_a_regression(tmp_path: Path) -> None:
    columns = {"a": [1, 2, 3, 4, 5], "b": [0.5, 1.5, 2.5, 3.5, 4.5], "word": list("nynyn")}
    path = save(tmp_path, columns)
    data = hugging_face(path, input=["b", "a"], label="word")
    assert data.train.x.tolist() == [[0.5, 1], [1.5, 2], [2.5, 3]]
    assert (data.train.y.tolist(), data.test.y.tolist()) == ([0, 1, 0], [1, 0])
    fitted = hugging_face(path, input="a", label="b")
    assert fitted.regression
    assert fitted.train.x.tolist() == [[1], [2], [3]]
    scale = 1.5**0.5
    np.testing.assert_allclose(fitted.test.y[:, 0], [2 * scale, 3 * scale], rtol=1e-6)


def test_more_rows_than_a_batch_keep_their_order(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict(
        {"x": [[row, -row] for row in range(2345)], "label": [row % 2 for row in range(2345)]}
    )
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path)
    x = hugging_face(str(tmp_path), input="x").train.x
    assert torch.equal(x, torch.stack([torch.arange(2345), -torch.arange(2345)], 1))


@pytest.mark.parametrize(
    ("columns", "settings", "complaint"),
    [
        ({}, {"train": "training"}, ": has no split 'training'; it has train, test$"),
        ({}, {"input": "picture"}, ": split train has no column 'picture'; it has image, label"),
        ({}, {"label": "y"}, ": split train has no column 'y'"),
        ({}, {"tags": ["site"]}, ": split train has no column 'site'"),
        ({}, {"input": ["image", "word"]}, ": split train, column word: holds text, inputs must"),
        ({}, {"tags": ["many"]}, ": split train, column many: is of type .*list"),
        ({"label": [0, None, 0, 1, 0]}, {}, ": split train, column label: row 1: is empty"),
        ({"label": [0, 1, 0, 1, None]}, {}, ": split test, column label: row 1: is empty"),
        ({"label": [-1, 1, 0, 1, 0]}, {}, ": dataset hugging_face: training label -1 in row 0"),
        ({"label": [0, 1, 2, 1, 0]}, {}, ": dataset hugging_face: test samples of class 2 are"),
        ({"image": [1.0, 2.0, 3.0, None, 4.0]}, {}, ": split test, column image: row 0: is empty"),
        ({"image": [1.0, np.inf, 3.0, 4.0, 4.0]}, {}, ": split train, column image: row 1: inf is"),
        ({"image": list("abcde")}, {}, ": split train, column image: holds text, inputs must be"),
        (
            {"image": [[1.0], [2.0, 3.0], [4.0], [5.0], [6.0]]},
            {},
            ": split train, column image: is no column of numbers of one shape",
        ),
        ({"image": [["a"]] * 5}, {}, ": split train, column image: is no column of numbers of one"),
        ({"image": [{"a": 1}] * 5}, {}, ": split train, column image: is no column of numbers of"),
    ],
)
def test_what_does_not_fit_is_refused_with_split_column_and_row(
    tmp_path: Path, columns: Columns, settings: dict[str, Any], complaint: str
) -> None:
    plain = {"image": [1.0, 2.0, 3.0, 4.0, 5.0], **LABELS, "word": list("abcde"), "many": [[1]] * 5}
    path = save(tmp_path, {**plain, **columns})
    with pytest.raises(ValueError, match=complaint) as caught:
        hugging_face(path, **settings)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (None, "row 2: is empty"),
        (fromarray(COLOURED[2]), "row 2: has colours, and the first image is grey"),
        (fromarray(GREY[2].astype(np.uint16)), "row 2: is of mode I;16, must be of 8 bits"),
        ({"bytes": b"no image", "path": None}, "row 2: cannot identify image"),
    ],
)
def test_an_image_unlike_the_others_is_refused(tmp_path: Path, image: Any, complaint: str) -> None:
    images = [*pictures(GREY)[:2], image, *pictures(GREY)[3:]]
    path = save(tmp_path, {"image": images, **LABELS}, image=datasets.Image(), label=WHOLE)
    with pytest.raises(ValueError, match=f": split train, column image: {complaint}") as caught:
        hugging_face(path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_of_theirs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dataset.path=null: name the folder"):
        hugging_face()
    for path in ("/nowhere", "s3://bucket/data"):
        with pytest.raises(ValueError, match=r"^dataset.path=.*: is no folder"):
            hugging_face(path)
    with pytest.raises(ValueError, match=r"^dataset.side=0: must be at least 1, or null"):
        hugging_face(str(tmp_path), side=0)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: cannot be read"):
        hugging_face(str(tmp_path))
    datasets.Dataset.from_dict(LABELS).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match=r"one: holds one Dataset, not a DatasetDict"):
        hugging_face(str(tmp_path / "one"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, {"image": [1.0] * 5, **LABELS})
    for file in Path(path, "train").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"^{path}: cannot be read"):
        hugging_face(path)


def test_without_the_library_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'^dataset=hugging_face: .*pip install "fedlearn\[data\]'):
        hugging_face(str(tmp_path))


def test_the_yaml_builds_a_run(tmp_path: Path) -> None:
    columns = {"a": [1, 2, 3, 4, 5], "b": [0.5, 1.5, 2.5, 3.5, 4.5], **LABELS}
    overrides = [
        "dataset=hugging_face",
        f"dataset.path={save(tmp_path, columns)}",
        "dataset.input=[a,b]",
        "scenario=class_incremental",
        "scenario.num_experiences=2",
        "partition=iid",
        "num_clients=2",
        "continual=naive",
        "tracker=none",
    ]
    scenario = build(prepare(compose(overrides))).scenario
    assert (scenario.num_clients, scenario.input_shape) == (2, (2,))
