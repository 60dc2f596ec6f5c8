"""FEMNIST and Shakespeare in the JSON that LEAF's preprocess.sh writes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from scenarios.datasets.femnist import femnist
from scenarios.datasets.shakespeare import ALPHABET, shakespeare

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (9, 784), dtype=np.uint8)
LABELS = [0, 61, 9, 10, 35, 36, 1, 2, 3]

User = tuple[list[Any], list[Any]]


def drawings(*rows: int) -> User:
    """As LEAF's data_to_json.py has them: pixels divided by 255, class numbers."""
    return [(PIXELS[row] / 255).tolist() for row in rows], [LABELS[row] for row in rows]


def write(path: Path, users: dict[str, User], **changed: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }
    path.write_text(json.dumps({**content, **changed}))


TRAIN = {"f0000_14": drawings(0, 1), "f0001_41": drawings(2)}
MORE = {"f0002_03": drawings(3, 4, 5)}
TEST = {"f0000_14": drawings(6), "f0002_03": drawings(7, 8)}
FIRST = "all_data_0_niid_0_keep_0_train_9.json"


def write_femnist(folder: Path) -> None:
    write(folder / "train" / FIRST, TRAIN)
    write(folder / "train" / "all_data_1_niid_0_keep_0_train_9.json", MORE)
    write(folder / "test" / "all_data_0_niid_0_keep_0_test_9.json", TEST)
    (folder / "all_data").mkdir()
    (folder / "all_data" / "all_data_0.json").touch()


@pytest.mark.parametrize("place", ["femnist/data", "data", "."])
def test_femnist_is_found_and_read_exactly(tmp_path: Path, place: str) -> None:
    write_femnist(tmp_path / place)
    data = femnist(str(tmp_path))
    assert data.train.x.dtype == torch.uint8
    assert np.array_equal(data.train.x, PIXELS[:6].reshape(-1, 1, 28, 28))
    assert np.array_equal(data.test.x, PIXELS[6:].reshape(-1, 1, 28, 28))
    assert (data.train.y.tolist(), data.test.y.tolist()) == (LABELS[:6], LABELS[6:])
    train, test = data.tags["writer"]
    assert (train.tolist(), test.tolist()) == ([0, 0, 1, 2, 2, 2], [0, 2, 2])
    assert (data.name, data.num_classes) == ("femnist", 62)


@pytest.mark.parametrize(("limit", "trained", "tested"), [(1, 2, 1), (2, 3, 1), (3, 6, 3)])
def test_only_the_first_writers_are_kept(
    tmp_path: Path, limit: int, trained: int, tested: int
) -> None:
    write_femnist(tmp_path)
    data = femnist(str(tmp_path), max_writers=limit)
    assert np.array_equal(data.train.x, PIXELS[:trained].reshape(-1, 1, 28, 28))
    assert np.array_equal(data.test.x, PIXELS[6 : 6 + tested].reshape(-1, 1, 28, 28))
    train, test = data.tags["writer"]
    assert train.unique().tolist() == list(range(limit))
    assert set(test.tolist()) <= set(train.tolist())


def test_files_are_not_read_for_writers_that_nobody_asked_for(tmp_path: Path) -> None:
    write_femnist(tmp_path)
    (tmp_path / "train" / "z.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        femnist(str(tmp_path))
    assert len(femnist(str(tmp_path), max_writers=3).train) == 6


def test_a_split_by_user_keeps_the_users_apart(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a.json", TRAIN)
    write(tmp_path / "test" / "a.json", MORE)
    train, test = femnist(str(tmp_path)).tags["writer"]
    assert (train.tolist(), test.tolist()) == ([0, 0, 1], [2, 2, 2])
    with pytest.raises(ValueError, match=r"^dataset.max_writers=2: .*test has no samples of these"):
        femnist(str(tmp_path), max_writers=2)


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    write_femnist(tmp_path / "a")
    write_femnist(tmp_path / "b" / "femnist" / "data")
    plain = femnist(str(tmp_path / "a")).digest
    assert femnist(str(tmp_path / "b")).digest == plain
    others = [femnist(str(tmp_path / "a"), max_writers=2).digest]
    for changed in (
        {"f0000_14": drawings(1, 0), "f0001_41": TRAIN["f0001_41"]},
        {"f0000_14": drawings(0), "f0001_41": drawings(1, 2)},
        {"f0000_14": (TRAIN["f0000_14"][0], [1, 61]), "f0001_41": TRAIN["f0001_41"]},
    ):
        write(tmp_path / "a" / "train" / FIRST, changed)
        others.append(femnist(str(tmp_path / "a")).digest)
    assert len({plain, *others}) == 5


def test_users_without_samples_are_left_out(tmp_path: Path) -> None:
    write_femnist(tmp_path)
    write(tmp_path / "train" / FIRST, {**TRAIN, "f0009_99": ([], [])})
    assert femnist(str(tmp_path)).tags["writer"][0].unique().tolist() == [0, 1, 2]


IMAGE = drawings(0)[0][0]


@pytest.mark.parametrize(
    ("image", "label", "complaint"),
    [
        (IMAGE[:-1], 0, "sample 1: is no list of 784 numbers"),
        (None, 0, "sample 1: is no list of 784 numbers"),
        ([None, *IMAGE[1:]], 0, "a pixel is no number"),
        (["0.5", *IMAGE[1:]], 0, "a pixel is no number"),
        ([*IMAGE[:-1], 1.004], 0, "sample 1: pixel 783 is 1.004, must be one of 0, 1/255"),
        ([-1 / 255, *IMAGE[1:]], 0, "sample 1: pixel 0 is -0.0039"),
        ([0.5, *IMAGE[1:]], 0, "sample 1: pixel 0 is 0.5, must be one of 0, 1/255"),
        ([float("nan"), *IMAGE[1:]], 0, "sample 1: pixel 0 is nan"),
        (IMAGE, 62, "sample 1: label 62 must be in 0..61"),
        (IMAGE, -1, "sample 1: label -1 must be in 0..61"),
        (IMAGE, 3.0, "sample 1: label 3.0 must be in 0..61"),
        (IMAGE, True, "sample 1: label True must be in 0..61"),
    ],
)
def test_a_bad_drawing_is_refused_with_file_user_and_sample(
    tmp_path: Path, image: Any, label: Any, complaint: str
) -> None:
    write_femnist(tmp_path)
    path = tmp_path / "train" / FIRST
    write(path, {**TRAIN, "f0001_41": ([IMAGE, image], [5, label])})
    with pytest.raises(ValueError, match=complaint) as caught:
        femnist(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: user 'f0001_41': ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "is no JSON"),
        ('{"users": ["a"', "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is not in LEAF's format"),
        ('{"users": [], "num_samples": []}', "is not in LEAF's format .*user_data"),
        ('{"users": ["a"], "num_samples": [], "user_data": {}}', "names 1 users, but 0 num_"),
        ('{"users": ["a"], "num_samples": [1], "user_data": {}}', "is not in LEAF's format"),
        (
            '{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": 1, "y": [1]}}}',
            "is not in LEAF's format",
        ),
        (
            '{"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": [[]], "y": [1]}}}',
            "user 'a': 1 x, 1 y, num_samples says 2",
        ),
        (
            '{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[]], "y": []}}}',
            "user 'a': 1 x, 0 y, num_samples says 1",
        ),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: str, complaint: str) -> None:
    write_femnist(tmp_path)
    path = tmp_path / "train" / FIRST
    path.write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        femnist(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_user_in_two_files_is_refused(tmp_path: Path) -> None:
    write_femnist(tmp_path)
    path = tmp_path / "train" / "b.json"
    write(path, TRAIN)
    with pytest.raises(ValueError, match="user 'f0000_14' was there before") as caught:
        femnist(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")


def test_files_that_are_not_there_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dataset.root=.*: none of .*femnist.*preprocess.sh"):
        femnist(str(tmp_path))
    (tmp_path / "data" / "all_data").mkdir(parents=True)
    (tmp_path / "data" / "all_data" / "all_data_0.json").touch()
    with pytest.raises(ValueError, match=r"data has all_data only; let LEAF's preprocess.sh"):
        femnist(str(tmp_path))
    (tmp_path / "data" / "train").mkdir()
    (tmp_path / "data" / "train" / "a.json").touch()
    with pytest.raises(ValueError, match="has all_data only"):
        femnist(str(tmp_path))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"^dataset.max_writers={limit}: must be at least 1"):
        femnist("nowhere", max_writers=limit)
    with pytest.raises(ValueError, match=f"^dataset.max_users={limit}: must be at least 1"):
        shakespeare("nowhere", max_users=limit)


def lines(text: str) -> User:
    """As LEAF's shake_utils.py cuts a line: 80 characters, and the one after them."""
    padded = " " * 80 + text
    count = len(padded) - 80
    return [padded[i : i + 80] for i in range(count)], [padded[i + 80] for i in range(count)]


ROLES = {
    "THE_TRAGEDY_OF_HAMLET_HAMLET": lines("To be, or not to be? [Exit]\n"),
    "THE_TRAGEDY_OF_HAMLET_GHOST": lines("Mark me.\n"),
}


def write_shakespeare(folder: Path) -> None:
    # with a list that LEAF writes for this set and nobody needs
    write(folder / "train" / "all_data_train_9.json", ROLES, hierarchies=["HAMLET"] * 2)
    write(folder / "test" / "all_data_test_9.json", {"THE_TRAGEDY_OF_HAMLET_GHOST": lines("Pity")})


def test_leafs_alphabet() -> None:
    assert len(set(ALPHABET)) == 80
    assert list(ALPHABET) == sorted(ALPHABET)


def test_shakespeare_is_read_exactly(tmp_path: Path) -> None:
    write_shakespeare(tmp_path / "shakespeare" / "data")
    data = shakespeare(str(tmp_path))
    assert (data.train.x.dtype, data.input_shape, data.num_classes) == (torch.int64, (80,), 80)
    strings = ["".join(ALPHABET[token] for token in row) for row in data.train.x]
    assert strings == [string for x, _ in ROLES.values() for string in x]
    following = "".join(ALPHABET[label] for label in data.train.y)
    assert following == "To be, or not to be? [Exit]\nMark me.\n"
    assert "".join(ALPHABET[label] for label in data.test.y) == "Pity"
    train, test = data.tags["user"]
    assert train.tolist() == [1] * 28 + [0] * 9
    assert test.tolist() == [0] * 4


def test_shakespeares_first_roles_and_digest(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    data = shakespeare(str(tmp_path))
    with pytest.raises(ValueError, match=r"^dataset.max_users=1: .* has no samples of these users"):
        shakespeare(str(tmp_path), max_users=1)
    assert shakespeare(str(tmp_path), max_users=2).digest == data.digest
    write(tmp_path / "test" / "all_data_test_9.json", {"x": lines("Pitz")})
    assert shakespeare(str(tmp_path)).digest != data.digest


@pytest.mark.parametrize(
    ("x", "y", "complaint"),
    [
        ("a" * 79, "b", "sample 1: 'a+' is no string of length 80"),
        ("a" * 81, "b", "sample 1: 'a+' is no string of length 80"),
        (["a"] * 80, "b", "sample 1: .* is no string of length 80"),
        ("a" * 80, "", "sample 1: '' is no string of length 1"),
        ("a" * 80, "bc", "sample 1: 'bc' is no string of length 1"),
        ("a" * 80, 3, "sample 1: 3 is no string of length 1"),
        ("a" * 79 + "é", "b", "sample 1: 'é' at 79 is not in LEAF's alphabet"),
        ("a" * 80, "{", "sample 1: '{' at 0 is not in LEAF's alphabet"),
        ("\ud800" + "a" * 79, "b", r"sample 1: .* at 0 is not in LEAF's alphabet"),
    ],
)
def test_a_bad_string_is_refused_with_file_user_and_sample(
    tmp_path: Path, x: Any, y: Any, complaint: str
) -> None:
    write_shakespeare(tmp_path)
    path = tmp_path / "train" / "b.json"
    write(path, {"ROLE": (["a" * 80, x], ["b", y])})
    with pytest.raises(ValueError, match=complaint) as caught:
        shakespeare(str(tmp_path))
    assert str(caught.value).startswith(f"{path}: user 'ROLE': ")


def test_the_yaml_builds_a_run_whose_clients_are_roles(tmp_path: Path) -> None:
    write_shakespeare(tmp_path)
    overrides = [
        "dataset=shakespeare",
        f"dataset.root={tmp_path}",
        "scenario=domain_incremental",
        "scenario.num_experiences=1",
        "scenario.held_out=0",
        "partition=natural",
        "partition.by=user",
        "num_clients=2",
        "model=char_lstm",
        "continual=naive",
        "tracker=none",
    ]
    experiment = build(prepare(compose(overrides)))
    assert sorted(experiment.scenario.shares.sizes().flatten().tolist()) == [9, 28]
    assert experiment.build_model()(experiment.scenario.train.x[:3]).shape == (3, 80)
