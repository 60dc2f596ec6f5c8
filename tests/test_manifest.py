"""A run's manifest repeats its protocol, and nothing else passes for it."""

import json
from pathlib import Path

import pytest

from fedlearn.cli import main
from fedlearn.config.composition import compose
from fedlearn.config.protocol import expand, protocol_of, read_manifest

SMALL = ["tracker=none", "rounds_per_experience=1", "local.epochs=1", "num_clients=3"]
PROTOCOLS = [
    [],
    ["scenario=split_digits", "scenario.class_order=[9,8,7,6,5,4,3,2,1,0]", "seed=7"],
    ["scenario=permuted_diabetes", "scenario.num_experiences=2", "partition=quantity"],
    ["scenario=independent", "clock=shuffled", "clock.delay=2", "skew=noisy_labels"],
    ["partition=flower"],
    ["dataset=arrays", "dataset.path='a b,c=[1].npz'", "scenario=class_incremental"],
]


def run(out: Path, *overrides: str) -> Path:
    """Run something small; return its directory."""
    assert main(["run", *SMALL, f"out={out}", *overrides]) == 0
    (path,) = out.glob("*/*/manifest.json")
    return path.parent


@pytest.mark.parametrize("overrides", PROTOCOLS, ids=lambda each: " ".join(each) or "default")
def test_what_a_manifest_stands_for_composes_to_the_same_protocol(
    overrides: list[str], tmp_path: Path
) -> None:
    protocol = json.loads(json.dumps(protocol_of(compose(overrides))))
    (tmp_path / "manifest.json").write_text(json.dumps({"hash": "", "protocol": protocol}))
    again = compose(expand([f"manifest={tmp_path}", "continual=naive"]))
    assert protocol_of(again) == protocol
    assert again.choices["continual"] == "naive"


def test_a_protocol_is_repeated_with_another_learner(tmp_path: Path) -> None:
    first = run(tmp_path / "first", "clock=shuffled", "partition=iid", "seed=3")
    second = run(tmp_path / "second", f"manifest={first}", "continual=naive", "local.epochs=2")
    assert read_manifest(str(first)) == read_manifest(str(second / "manifest.json"))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("partition=dirichlet", "partition, rows, sizes"),
        ("seed=1", "rows"),
        ("clock=staggered", "clock"),
        ("rounds_per_experience=2", "rounds_per_experience"),
        ("skew=noisy_labels", "labels, skew"),
        ("dataset.test_fraction=0.3", "dataset"),
    ],
)
def test_another_protocol_is_refused(
    change: str, differs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(tmp_path / "first", "partition=iid")
    capsys.readouterr()
    out = tmp_path / "second"
    assert main(["run", f"manifest={first}", change, f"out={out}", "tracker=none"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"manifest={first}: this is another protocol: it differs in ")
    assert error.count("\n") == 1
    for key in differs.split(", "):
        assert key in error
    assert not out.exists()


def test_a_manifest_is_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path)
    capsys.readouterr()
    assert main(["manifest", str(first)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((first / "manifest.json").read_text())
    assert main(["manifest", "--help"]) == 0
    assert "usage: fedlearn manifest RUN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is no manifest of a run; it lacks hash"),
        ('{"hash": "0"}', "does not say how it was made; it lacks protocol"),
    ],
)
def test_what_is_no_manifest_is_refused(
    content: str | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    assert main(["run", f"manifest={path}", "tracker=none", f"out={tmp_path / 'runs'}"]) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert main(["manifest"]) == 2
    assert "takes one run's directory" in capsys.readouterr().err
