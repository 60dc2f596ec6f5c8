"""A user's own arrays: in memory, in NumPy files and in a torch file."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlearn.arrivals import parts_of
from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from scenarios.build import build_scenario
from scenarios.dataset import Dataset
from scenarios.datasets.arrays import arrays, from_arrays
from scenarios.partitions import Iid
from scenarios.streams.class_incremental import ClassIncremental

RNG = np.random.default_rng(0)
IMAGES = {
    "x_train": RNG.integers(0, 256, (12, 3, 4, 4), dtype=np.uint8),
    "y_train": np.arange(12) % 3,
    "x_test": RNG.integers(0, 256, (6, 3, 4, 4), dtype=np.uint8),
    "y_test": np.arange(6) % 3,
}
TAGS = {"tag_site_train": np.arange(12) // 6, "tag_site_test": np.zeros(6, np.int32)}


def test_ten_lines_make_a_scenario_of_what_is_in_memory() -> None:
    rng = np.random.default_rng(1)
    y_train, y_test = np.arange(60) % 4, np.arange(20) % 4
    dataset = from_arrays(
        "mine", rng.normal(size=(60, 5)), y_train, rng.normal(size=(20, 5)), y_test
    )
    scenario = build_scenario(
        name="mine",
        dataset=dataset,
        stream=ClassIncremental(num_experiences=2),
        partition=Iid(),
        num_clients=3,
        held_out=0.1,
        seed=0,
    )
    assert (scenario.num_clients, scenario.num_experiences, scenario.num_classes) == (3, 2, 4)
    assert scenario.shares.sizes().sum() + scenario.held_out.sizes().sum() == 60
    assert scenario.manifest()["dataset"] == {"name": "mine", "digest": dataset.digest}
    x, y = scenario.experience(0, 1).gather()
    assert x.shape[1:] == (5,)
    assert set(y.tolist()) <= {2, 3}


def save_npz(folder: Path, held: dict[str, Any]) -> Path:
    np.savez_compressed(folder / "data.npz", **held)
    return folder / "data.npz"


def save_npy(folder: Path, held: dict[str, Any]) -> Path:
    for key, array in held.items():
        np.save(folder / f"{key}.npy", array)
    return folder


def save_pt(folder: Path, held: dict[str, Any]) -> Path:
    torch.save({key: torch.from_numpy(array) for key, array in held.items()}, folder / "data.pt")
    return folder / "data.pt"


@pytest.mark.parametrize("save", [save_npz, save_npy, save_pt])
def test_files_hold_the_arrays_exactly(tmp_path: Path, save: Callable[..., Path]) -> None:
    data = arrays(str(save(tmp_path, IMAGES | TAGS)), mean=[0.5, 0.4, 0.3], std=2)
    assert data.train.x.dtype == torch.uint8
    for part, samples, site in zip(
        ("train", "test"), (data.train, data.test), data.tags["site"], strict=True
    ):
        assert np.array_equal(samples.x, IMAGES[f"x_{part}"])
        assert np.array_equal(samples.y, IMAGES[f"y_{part}"])
        assert np.array_equal(site, TAGS[f"tag_site_{part}"])
    assert (data.name, data.num_classes) == ("arrays", 3)
    pixels = IMAGES["x_train"] / 255 - np.array([0.5, 0.4, 0.3]).reshape(3, 1, 1)
    np.testing.assert_allclose(data.train.inputs(torch.arange(12)), pixels / 2, atol=1e-6)
    assert data.digest == memory(**TAGS, mean=(0.5, 0.4, 0.3), std=2.0).digest


def memory(**changed: Any) -> Dataset:
    """The images from memory, with `changed` in place of theirs."""
    held = {**IMAGES, **changed}
    sites = [held.pop(f"tag_site_{part}", None) for part in ("train", "test")]
    return from_arrays("images", **held, tags={} if sites[0] is None else {"site": tuple(sites)})


def test_the_digest_is_of_the_content_alone() -> None:
    plain = memory().digest
    tensors = {key: torch.from_numpy(array) for key, array in IMAGES.items()}
    narrow = {"y_train": IMAGES["y_train"].astype(np.int8), "y_test": IMAGES["y_test"][:, None]}
    assert memory(**tensors).digest == memory(**narrow).digest == plain
    other = IMAGES["x_test"].copy()
    other[5, 2, 3, 3] ^= 1
    changes: list[dict[str, Any]] = [
        {"x_test": other},
        {"y_test": IMAGES["y_test"][::-1]},
        {"mean": 0.5},
        {"std": 0.5},
        dict(TAGS),
    ]
    assert len({plain, *(memory(**change).digest for change in changes)}) == 1 + len(changes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float64, torch.float32),
        (np.float32, torch.float32),
        (">f4", torch.float32),
        (np.float16, torch.float32),
        (np.bool_, torch.float32),
        (np.uint8, torch.uint8),
        (np.int8, torch.int64),
        (np.uint16, torch.int64),
        (np.uint64, torch.int64),
    ],
)
def test_inputs_become_what_a_model_takes(given: Any, expected: torch.dtype) -> None:
    values = (np.arange(6).reshape(3, 2) % 2).astype(given)
    x = from_arrays("toy", values, [0, 1, 0], values[:2], [0, 1]).train.x
    assert x.dtype == expected
    assert x.tolist() == [[0, 1]] * 3


def test_arrays_that_torch_cannot_share_are_copied() -> None:
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    values.flags.writeable = False
    data = from_arrays("toy", values[::-1], [0, 1, 0, 1], values[:2], [1, 0])
    assert data.train.x.tolist() == values[::-1].tolist()
    shared = torch.zeros(2, 2)
    kept = from_arrays("toy", shared, [0, 1], values, [0, 1, 0, 1]).train.x
    assert kept.data_ptr() == shared.data_ptr()


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2)])
def test_targets_are_standardised_by_the_training_samples(shape: tuple[int, ...]) -> None:
    targets = np.random.default_rng(0).normal(3, 5, shape)
    x = np.zeros((4, 2))
    data = from_arrays("toy", x, targets, x[:2], targets[:2] + 1)
    assert data.regression
    flat = targets.reshape(4, -1)
    assert data.num_classes == flat.shape[1]
    np.testing.assert_allclose(data.train.y, (flat - flat.mean(0)) / flat.std(0), atol=1e-5)
    np.testing.assert_allclose(data.test.y, (flat[:2] + 1 - flat.mean(0)) / flat.std(0), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"x_train": IMAGES["x_train"][:11]}, "x_train holds 11 samples, y_train 12"),
        ({"x_train": IMAGES["x_train"].astype(object)}, "x_train is of type object"),
        ({"x_train": IMAGES["x_train"] * 1j}, "x_train is of type complex128"),
        ({"x_train": torch.zeros(12, 1) * 1j}, "x_train is of type torch.complex64, must be of wh"),
        ({"x_test": IMAGES["x_test"][:0]}, "x_test is empty"),
        ({"x_test": np.float32(3)}, "x_test is empty"),
        ({"x_test": IMAGES["x_test"][:, :2]}, r"images: training inputs are \(3, 4, 4\) but test"),
        ({"x_test": np.full((6, 3), 2**63, np.uint64)}, "x_test holds 9223372036854775808, more"),
        ({"y_train": np.arange(12)}, "images: test samples of class 3 are missing"),
        ({"y_train": np.arange(12) - 1}, "images: training label -1 in row 0"),
        ({"y_test": np.arange(6.0)}, "y_train is torch.int64 and y_test torch.float64"),
        ({"y_train": np.eye(12)}, "y_train is torch.float64 and y_test torch.int64"),
        (
            {"y_train": np.eye(12), "y_test": np.ones((6, 2))},
            "y_train has 12 targets a sample, y_test 2",
        ),
        ({**TAGS, "tag_site_test": np.zeros(5, int)}, "images: tag site: is torch.int64 of shape"),
        ({**TAGS, "tag_site_test": np.zeros(6)}, "tag_site_test is of type torch.float64, must be"),
        ({"mean": [0.5, 0.5]}, r"dataset.mean=\[0.5, 0.5\]: must be one finite number, or one a"),
        ({"std": 0.0}, "dataset.std=0.0: must be greater than 0"),
        ({"std": float("nan")}, "dataset.std=nan: must be one finite number"),
    ],
)
def test_arrays_that_fit_nothing_are_refused(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        memory(**changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [save_npz, save_npy, save_pt])
@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"x_test": None}, ": lacks x_test$"),
        ({"tag_site_train": TAGS["tag_site_train"]}, ": lacks tag_site_test$"),
        ({"z": np.zeros(2)}, ": holds 'z'; x_train, y_train, x_test, y_test and tag_"),
        ({"y_test": np.arange(5)}, ": x_test holds 6 samples, y_test 5"),
        ({"y_test": np.zeros(6, int)}, ": dataset arrays: test samples of class 1 are missing"),
    ],
)
def test_a_file_without_the_right_arrays_is_refused_by_name(
    tmp_path: Path, save: Callable[..., Path], changed: dict[str, Any], complaint: str
) -> None:
    held = {key: each for key, each in {**IMAGES, **changed}.items() if each is not None}
    path = save(tmp_path, held)
    with pytest.raises(ValueError, match=complaint) as caught:
        arrays(str(path))
    assert str(caught.value).startswith(f"{path}: ")


class Malice:
    def __reduce__(self) -> Any:
        return pytest.fail, ("code from a data file was run",)


@pytest.mark.parametrize("ending", ["npy", "npz", "pt", "pth"])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, ending: str) -> None:
    foreign = np.array([Malice()], dtype=object)
    path = tmp_path / f"data.{ending}"
    if ending == "npy":
        np.save(tmp_path / "x_train.npy", foreign, allow_pickle=True)
        path = tmp_path
    elif ending == "npz":
        np.savez(path, x_train=foreign)
    elif ending == "pt":
        torch.save({"x_train": Malice()}, path)
    else:
        path.write_bytes(pickle.dumps({"x_train": Malice()}, protocol=2))
    with pytest.raises(ValueError, match=r"cannot be read|holds more than tensors") as caught:
        arrays(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("save", [save_npz, save_pt])
@pytest.mark.parametrize("kept", [0, 40, -30])
def test_a_damaged_file_is_refused_by_name(
    tmp_path: Path, save: Callable[..., Path], kept: int
) -> None:
    path = save(tmp_path, IMAGES)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"cannot be read|is damaged") as caught:
        arrays(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_torch_file_must_hold_a_dictionary_of_tensors(tmp_path: Path) -> None:
    for held in ([torch.zeros(2)], {"x_train": [1, 2]}):
        torch.save(held, tmp_path / "data.pt")
        with pytest.raises(ValueError, match=r"data.pt: cannot be read: is no dictionary"):
            arrays(str(tmp_path / "data.pt"))


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (None, "dataset.path=null: name an .npz file"),
        ("/nowhere/data.npz", "^/nowhere/data.npz: cannot be read"),
        ("/nowhere/data.csv", "dataset.path=/nowhere/data.csv: must be a folder, or end in .npz"),
    ],
)
def test_a_path_to_nothing_is_refused(path: str | None, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        arrays(path)


def test_the_yaml_builds_a_run(tmp_path: Path) -> None:
    overrides = [
        "dataset=arrays",
        f"dataset.path={save_npz(tmp_path, IMAGES)}",
        "dataset.mean=[0.5,0.4,0.3]",
        "scenario=class_incremental",
        "scenario.num_experiences=3",
        "partition=iid",
        "num_clients=2",
        "continual=naive",
        "tracker=none",
    ]
    scenario = build(prepare(compose(overrides))).scenario
    assert (scenario.num_experiences, scenario.input_shape) == (3, (3, 4, 4))
    assert scenario.train.mean == (0.5, 0.4, 0.3)


# --- parts --------------------------------------------------------------------------------------


def test_parts_are_one_after_the_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {
        "x_train": rng.normal(size=(12, 3)),
        "y_train": rng.integers(0, 4, 12),
        "tag_day_train": np.arange(12),
    }
    cuts = {"0.npz": slice(0, 5), "1": slice(5, 6), "2.pt": slice(6, 12)}
    (tmp_path / "parts" / "1").mkdir(parents=True)
    for name, rows in cuts.items():
        held, place = {key: each[rows] for key, each in whole.items()}, tmp_path / "parts" / name
        if name == "1":
            for key, each in held.items():
                np.save(place / f"{key}.npy", each)
        elif name == "2.pt":
            torch.save({key: torch.from_numpy(each) for key, each in held.items()}, place)
        else:
            np.savez(place, **held)
    np.savez(tmp_path / "whole.npz", **whole)
    np.savez(tmp_path / "parts" / "9.npz", **whole)  # 3 is missing, so it is none yet
    np.savez(tmp_path / "parts" / "3.npz.part.npz", **whole)
    parts, one = (arrays(str(tmp_path / name), num_classes=4) for name in ("parts", "whole.npz"))
    assert parts.digest == one.digest
    assert torch.equal(parts.train.x, one.train.x)


@pytest.mark.parametrize(
    ("second", "complaint"),
    [
        ({"x_train": np.zeros((2, 3))}, "parts 0 and 1 do not both hold y_train"),
        ({"x_train": np.zeros((2, 4)), "y_train": np.zeros(2, int)}, "parts do not fit together"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(
    tmp_path: Path, second: dict[str, Any], complaint: str
) -> None:
    np.savez(tmp_path / "0.npz", x_train=np.zeros((2, 3)), y_train=np.zeros(2, int))
    np.savez(tmp_path / "1.npz", **second)
    with pytest.raises(ValueError, match=f"{tmp_path}: {complaint}"):
        arrays(str(tmp_path), num_classes=2)


def test_a_folder_without_a_first_part_has_none(tmp_path: Path) -> None:
    assert parts_of(tmp_path / "nowhere") == []
    assert parts_of(tmp_path) == []
    for name in ("1.npz", "00.npz", "x.npz", "0.npz.tmp", ".0.npz"):
        (tmp_path / name).touch()
    assert parts_of(tmp_path) == []
    assert parts_of(tmp_path / "1.npz") == []
    for number in (0, 10, *range(2, 10)):
        (tmp_path / f"{number}.npz").touch()
    assert [part.name for part in parts_of(tmp_path)] == [f"{number}.npz" for number in range(11)]
