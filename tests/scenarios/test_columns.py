"""Tables: CSV and Parquet, classes and regressions, one file and two."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from scenarios.dataset import Dataset
from scenarios.datasets.table import table

HEADER = "age,sex,hospital,weight,outcome"
ROWS = [
    "30,f,2,60.5,well",
    "40,m,10,80,ill",
    "50,f,2,70,well",
    "60,m,10,75.25,ill",
    '70,"f",1,65,well',
    "80,m,1,90,ill",
]


def csv(path: Path, rows: Sequence[str] = ROWS, header: str = HEADER) -> str:
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


def parquet(path: Path, **columns: Any) -> str:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    write_table(pa.table(columns), path)
    return str(path)


def patients(path: Path) -> str:
    """The table above, in Parquet's own types."""
    return parquet(
        path,
        age=[30, 40, 50, 60, 70, 80],
        sex=list("fmfmfm"),
        hospital=[2, 10, 2, 10, 1, 1],
        weight=[60.5, 80.0, 70.0, 75.25, 65.0, 90.0],
        outcome=["well", "ill"] * 3,
    )


def two(tmp_path: Path, **settings: Any) -> Dataset:
    """The first four rows to train on, the last two to test on."""
    return table(
        train_path=csv(tmp_path / "train.csv", ROWS[:4]),
        test_path=csv(tmp_path / "test.csv", ROWS[4:]),
        **{"target": "outcome", **settings},
    )


def test_two_files_become_standardised_numbers_one_hot_text_labels_and_tags(tmp_path: Path) -> None:
    data = two(tmp_path, tags=["hospital"])
    assert data.train.x.dtype == torch.float32
    age, weight = np.array([30, 40, 50, 60.0]), np.array([60.5, 80, 70, 75.25])
    expected = np.column_stack(
        [
            (age - age.mean()) / age.std(),
            [1, 0, 1, 0],
            [0, 1, 0, 1],
            (weight - weight.mean()) / weight.std(),
        ]
    )
    np.testing.assert_allclose(data.train.x, expected, atol=1e-6)
    np.testing.assert_allclose(data.test.x[:, 0], (np.array([70, 80]) - 45) / age.std(), atol=1e-6)
    assert data.test.x[:, 1:3].tolist() == [[1, 0], [0, 1]]
    assert data.train.y.tolist() == [1, 0, 1, 0]  # ill, well
    assert data.test.y.tolist() == [1, 0]
    assert data.num_classes == 2
    train, test = data.tags["hospital"]
    assert (train.tolist(), test.tolist()) == ([1, 2, 1, 2], [0, 0])  # 1 < 2 < 10


def test_csv_packed_csv_and_parquet_are_one_data_set(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"target": "outcome", "tags": ["hospital"], "test_fraction": 0.4}
    plain = csv(tmp_path / "a.csv")
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    marked = tmp_path / "c.csv"  # as spreadsheets save it
    marked.write_bytes(b"\xef\xbb\xbf" + Path(plain).read_bytes().replace(b"\n", b"\r\n"))
    made = [
        table(str(path), **settings)
        for path in (plain, packed, marked, patients(tmp_path / "d.parquet"))
    ]
    assert len({each.digest for each in made}) == 1
    assert all(torch.equal(each.train.x, made[0].train.x) for each in made)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"test_fraction": 0.5},
        {"features": ["weight", "age"]},
        {"features": ["age"]},
        {"tags": ["hospital"]},
        {"categorical": ["hospital"]},
        {"target": "weight"},
    ],
)
def test_the_digest_follows_what_changes_the_samples(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = {"target": "outcome", "test_fraction": 0.34, "path": csv(tmp_path / "a.csv")}
    plain = table(**settings).digest
    assert table(**settings).digest == plain != table(**{**settings, **change}).digest
    csv(tmp_path / "a.csv", ["30,f,2,60.6,well", *ROWS[1:]])
    assert table(**settings).digest != plain


def test_a_file_is_split_class_by_class_and_no_row_is_lost(tmp_path: Path) -> None:
    rows = [f"{number},{'abc'[min(number // 30, 2)]}" for number in range(100)]
    data = table(csv(tmp_path / "a.csv", rows, "x,target"), test_fraction=0.1, seed=3)
    assert data.train.y.bincount().tolist() == [27, 27, 36]
    assert data.test.y.bincount().tolist() == [3, 3, 4]
    both = torch.cat([data.train.x, data.test.x]).flatten().sort().values
    assert torch.allclose(both.diff(), both.diff()[0], atol=1e-5)


@pytest.mark.parametrize(
    ("targets", "task", "regression"),
    [
        (["1", "2"] * 5, "auto", False),
        (["1.5", "2"] * 5, "auto", True),
        (["1", "2"] * 5, "regression", True),
        (["1.5", "2"] * 5, "classes", False),
        (["no", "yes"] * 5, "auto", False),
    ],
)
def test_the_task_is_what_the_target_says_or_what_is_asked(
    tmp_path: Path, targets: list[str], task: Any, regression: bool
) -> None:
    rows = [f"{row},{target}" for row, target in enumerate(targets)]
    data = table(csv(tmp_path / "a.csv", rows, "x,target"), task=task)
    assert data.regression == regression
    assert data.num_classes == (1 if regression else 2)


def test_a_regressions_targets_are_standardised_by_the_training_rows(tmp_path: Path) -> None:
    for name, targets in (("train", (1.0, 2.0, 6.0)), ("test", (9.0,))):
        parquet(tmp_path / f"{name}.parquet", target=targets, x=range(len(targets)))
    paths = {f"{name}_path": str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    data = table(**paths)
    assert data.regression
    std = np.std([1, 2, 6])
    np.testing.assert_allclose(data.train.y[:, 0], (np.array([1, 2, 6]) - 3) / std, rtol=1e-6)
    np.testing.assert_allclose(data.test.y, [[6 / std]], rtol=1e-6)


def test_categories_are_those_of_the_training_rows(tmp_path: Path) -> None:
    data = table(
        train_path=csv(tmp_path / "a.csv", ["10,u,0", "9,v,1", "10,v,1"], "code,word,target"),
        test_path=csv(tmp_path / "b.csv", ["9,w,0", "x,u,1"], "code,word,target"),
        categorical=["code"],
    )
    assert data.train.x.tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]]  # "10" < "9" as text
    assert data.test.x.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_whole_categories_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = ["10,0", "9,1", "10,1", "9,0"]
    path = csv(tmp_path / "a.csv", rows, "code,target")
    data = table(train_path=path, test_path=path, categorical=["code"])
    assert data.train.x.tolist() == [[0, 1], [1, 0], [0, 1], [1, 0]]


def test_parquet_takes_truth_values_dictionaries_and_large_text(tmp_path: Path) -> None:
    import pyarrow as pa

    path = parquet(
        tmp_path / "a.parquet",
        flag=[True, False] * 2,
        kind=pa.array(["u", "v"] * 2).dictionary_encode(),
        word=pa.array(["p", "q"] * 2, pa.large_string()),
        small=pa.array([1, 2, 3, 4], pa.int16()),
        target=[True, False] * 2,
    )
    data = table(train_path=path, test_path=path)
    assert data.train.x[:, :5].tolist() == [[1, 1, 0, 1, 0], [-1, 0, 1, 0, 1]] * 2
    assert data.train.y.tolist() == [1, 0, 1, 0]


def changed(row: int, cells: str) -> list[str]:
    return [*ROWS[:row], cells, *ROWS[row + 1 :]]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (changed(2, "50,f,2,,well"), "line 4, column weight: is empty"),
        (changed(2, "50, ,2,70,well"), "line 4, column sex: is empty"),
        (changed(2, "50,f,2,70,"), "line 4, column outcome: is empty"),
        (changed(2, "50,f,2,inf,well"), "line 4, column weight: 'inf' is not finite"),
        (changed(2, "50,f,2,NaN,well"), "line 4, column weight: 'NaN' is not finite"),
        (changed(2, "nan,f,2,70,well"), "line 4, column age: 'nan' is not finite"),
        (changed(2, "50,f,2,70 kg,well"), "line 4, column weight: '70 kg' is no number"),
        (changed(2, "5_0,f,2,70,well"), "line 4, column age: '5_0' is no number"),
        (changed(2, "50,3,2,70,well"), "line 4, column sex: '3' is a number, unlike"),
        (changed(2, "50,f,2,70"), "line 4: has 4 cells, its header 5"),
        (changed(2, "50,f,2,70,well,?"), "line 4: has 6 cells, its header 5"),
        (changed(2, '50,f,2,70,"well'), r"is no CSV file in UTF-8 \(after line 6\)"),
        (changed(2, "50,f,2,70,dead"), "column outcome: dead stands in one row only"),
        (["30,f,2,60,ill", "40,f,2,50,ill"], "column outcome: all rows hold ill"),
        ([], "holds no rows"),
    ],
)
def test_a_bad_cell_is_refused_with_file_line_and_column(
    tmp_path: Path, rows: list[str], complaint: str
) -> None:
    path = csv(tmp_path / "a.csv", rows)
    with pytest.raises(ValueError, match=complaint) as caught:
        table(path, target="outcome")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"age,age,outcome\n1,2,ill\n", "has more than one column 'age'"),
        (b"age,outcome\n1,\xff\n", "is no CSV file in UTF-8"),
        (b"outcome\n" + b"ill\nwell\n" * 2, "has no column to predict from"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        table(str(path), target="outcome")
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"x": [1.0, None, 2.0]}, "column x: row 1: is empty"),
        ({"x": [1.0, 2.0, float("nan")]}, "column x: row 2: nan is not finite"),
        ({"x": ["a", "", "b"]}, "column x: row 1: is empty"),
        ({"x": [[1], [2], [3]]}, "column x: is of type list<.*must be numbers"),
        ({"x": [2**60 + 1, 2, 3]}, "column x: Integer value .* not in range"),
        ({"y": [1, 2, 3]}, "has no column 'x'; it has y, target"),
    ],
)
def test_a_bad_parquet_file_is_refused_with_row_and_column(
    tmp_path: Path, columns: dict[str, Any], complaint: str
) -> None:
    path = parquet(tmp_path / "a.parquet", **columns, target=[0, 1, 0])
    with pytest.raises(ValueError, match=complaint) as caught:
        table(path, features=["x"])
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_damaged_or_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(Path(patients(tmp_path / "a.parquet")).read_bytes()[:-9])
    for path in (cut, tmp_path / "none.parquet", tmp_path / "none.csv"):
        with pytest.raises(ValueError, match="cannot be read") as caught:
            table(str(path))
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"path": None}, "dataset.path=null: name one CSV or Parquet file here, or two"),
        ({"path": None, "train_path": "a.csv"}, "dataset.path=null: name one"),
        ({"test_path": "a.csv"}, "dataset.path=.*a.csv: name one"),
        ({"train_path": "a.csv", "test_path": "b.csv"}, "dataset.path=.*a.csv: name one"),
        ({"test_fraction": 0.0}, "dataset.test_fraction=0.0: must be greater than 0 and less"),
        ({"test_fraction": 1.0}, "dataset.test_fraction=1.0: must be greater than 0 and less"),
        ({"target": "income"}, "has no column 'income'; it has age, sex, hospital, weight, out"),
        ({"features": ["age", "size"]}, "has no column 'size'"),
        ({"tags": ["ward"]}, "has no column 'ward'"),
        ({"categorical": ["ward"]}, "has no column 'ward'"),
        ({"features": ["age"], "categorical": ["sex"]}, "dataset.categorical: 'sex' is not one of"),
        ({"features": ["age", "outcome"]}, "column 'outcome' can be one of target, tag and f"),
        (
            {"features": ["age", "sex"], "tags": ["sex"]},
            "column 'sex' can be one of target, tag and f",
        ),
        ({"tags": ["outcome"]}, "column 'outcome' can be one of target, tag and f"),
        ({"features": ["age", "age"]}, "column 'age' can be one of target, tag and feature, once"),
        ({"categorical": ["outcome"]}, "column 'outcome' can be one of target, tag and feature"),
        ({"features": []}, "a.csv: has no column to predict from"),
        ({"task": "regression"}, "column outcome: holds text, and dataset.task=regression"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tmp_path: Path, settings: dict[str, Any], complaint: str
) -> None:
    path = csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=complaint) as caught:
        table(**{"path": path, "target": "outcome", **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("test_rows", "complaint"),
    [
        (["1,u,2"], "column target: no training row holds 2"),
        (["1,u,dead"], "column target: no training row holds dead"),
        (["one,u,0"], "column x: holds text, but numbers in the training rows"),
        (["1,7,0"], "column word: holds numbers, but text in the training rows"),
    ],
)
def test_test_rows_unlike_the_training_rows_are_refused(
    tmp_path: Path, test_rows: list[str], complaint: str
) -> None:
    header = "x,word,target"
    train = csv(tmp_path / "a.csv", ["1,u,0", "2,v,1"], header)
    test = csv(tmp_path / "b.csv", test_rows, header)
    with pytest.raises(ValueError, match=complaint) as caught:
        table(train_path=train, test_path=test)
    assert str(caught.value).startswith(f"{test}: ")


def test_the_yaml_builds_a_run_whose_clients_are_hospitals(tmp_path: Path) -> None:
    overrides = [
        "dataset=table",
        f"dataset.path={csv(tmp_path / 'a.csv', ROWS * 5)}",
        "dataset.target=outcome",
        "dataset.tags=[hospital]",
        "partition=natural",
        "partition.by=hospital",
        "num_clients=3",
        "scenario=class_incremental",
        "scenario.num_experiences=2",
        "continual=naive",
        "tracker=none",
    ]
    scenario = build(prepare(compose(overrides))).scenario
    assert (scenario.num_clients, scenario.num_classes, scenario.input_shape) == (3, 2, (4,))
    owned = [(scenario.shares.sizes() + scenario.held_out.sizes())[client] for client in range(3)]
    assert sorted((sizes > 0).tolist() for sizes in owned) == [  # ill, well
        [False, True],
        [True, False],
        [True, True],
    ]
