"""`fedlearn show`: what a user types, sees and finds in the folder."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fedlearn.cli import main
from fedlearn.commands.hydra_main import environment
from fedlearn.config.choices import find_choices
from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from fedlearn.heterogeneity import measure
from fedlearn.review import canvas

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "scenarios.md").read_text()
SHOWN = sorted(
    {line.partition("#")[0].strip() for line in DOCS.splitlines() if line.startswith("fedlearn ")}
)
TYPED = ["scenario=split_digits", "partition=dirichlet", "clock=staggered", "num_clients=8"]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw few pixels: fast, where nobody looks."""
    monkeypatch.setattr(canvas, "DPI", 30)


def test_a_protocol_is_told_and_drawn(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *TYPED]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    experiment = build(prepare(compose([*TYPED, "continual=naive", "tracker=none"])))
    scenario = experiment.scenario
    key = scenario.manifest()["hash"]
    assert out.startswith(
        "split_digits: digits with 1 438 training samples, 10 classes, 8 clients, 5 experiences, "
        f"{experiment.schedule.num_rounds} rounds, seed 0, hash {key[:12]}\n"
    )
    lines = {words[0]: words[1:] for words in map(str.split, out.splitlines()) if words}
    for client_id, sizes in enumerate(scenario.shares.sizes().tolist()):
        assert lines[str(client_id)][:6] == [str(size) for size in (*sizes, sum(sizes))]
    found = measure(scenario.shares, scenario.train.y, 10)
    assert f"between clients  {found.between_clients:.3f}" in out
    assert f"over time        {found.over_time:.3f}" in out
    folder = runs / "show" / f"split_digits-dirichlet-staggered-{key[:8]}"
    pictures = ["partition.png", "clock.png", "samples.png"]
    assert out.splitlines()[-3:] == [
        str(folder.relative_to(runs.parent) / name) for name in pictures
    ]
    for name in pictures:
        with Image.open(folder / name) as picture:
            picture.load()


def test_nothing_is_trained_and_no_run_begins(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("fedlearn.config.experiment.build", never)
    monkeypatch.setattr("fedlearn.config.experiment._model_factory", never)
    monkeypatch.setattr(torch.autograd, "backward", never)
    before = torch.random.get_rng_state()
    assert main(["show", "num_clients=3"]) == 0
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {path.suffix for path in runs.rglob("*") if path.is_file()} == {".png"}
    assert [path.name for path in runs.iterdir()] == ["show"]
    assert "show" in capsys.readouterr().out


def test_other_protocols_have_other_folders(runs: Path) -> None:
    for overrides in (["seed=1"], ["seed=2"], ["seed=2"], ["partition=iid"]):
        assert main(["show", "num_clients=2", *overrides]) == 0
    names = sorted(path.name for path in (runs / "show").iterdir())
    assert len(names) == 3
    assert [name.rpartition("-")[0] for name in names] == [
        "split_digits-dirichlet-in_step",
        "split_digits-dirichlet-in_step",
        "split_digits-iid-in_step",
    ]


def test_pictures_can_be_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "num_clients=3", "--no-pictures"]) == 0
    assert ".png" not in capsys.readouterr().out
    assert not runs.exists()


def test_pictures_go_below_out(tmp_path: Path, runs: Path) -> None:
    assert main(["show", "num_clients=2", f"out={tmp_path / 'else where'}"]) == 0
    assert len(list((tmp_path / "else where" / "show").glob("*/*.png"))) == 3
    assert not runs.exists()


def test_a_regression_is_shown_without_labels(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "scenario=permuted_diabetes", "num_clients=3"]) == 0
    out = capsys.readouterr().out
    assert "divergence" not in out
    assert "imbalance" in out
    (folder,) = (runs / "show").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["clock.png", "partition.png"]


def test_a_model_that_does_not_fit_the_data_does_not_matter(runs: Path) -> None:
    assert main(["show", "dataset=synthetic", "dataset.input_shape=[6]", "model=cnn"]) == 0
    assert runs.exists()


def test_the_protocol_of_a_run_is_shown_from_its_manifest(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["tracker=none", "continual=naive", "num_clients=2", "rounds_per_experience=1"]
    assert main(["run", *tiny, "seed=5", "clock=shuffled", "local.epochs=1"]) == 0
    (manifest,) = runs.glob("*/*/manifest.json")
    capsys.readouterr()
    assert main(["show", f"manifest={manifest}", "--no-pictures"]) == 0
    key = re.search(r'"hash": *"(\w{12})', manifest.read_text())
    assert key is not None
    assert f"seed 5, hash {key[1]}" in capsys.readouterr().out
    assert main(["show", f"manifest={manifest}", "seed=6"]) == 2
    assert capsys.readouterr().err.startswith(f"manifest={manifest}: this is another protocol")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["partition=dirichle"], "partition=dirichle: unknown; did you mean dirichlet?"),
        (["num_client=3"], "num_client=3: unknown key; did you mean num_clients?"),
        (["partition.alpha=-1"], "partition.alpha=-1"),
        (["num_clients=100000"], "num_clients=100000: more than the 1438 training samples"),
        (["scenario.held_out=0.9"], "scenario.held_out=0.9: must be between 0 and 0.5"),
        (["clock.pausing=2"], "clock.pausing=2: must be in [0, 1]"),
        (["--pictures"], "fedlearn show: unrecognized arguments: --pictures; see fedlearn show"),
        (["-cd", "nowhere"], "--config-dir=nowhere: there is no such directory"),
        (["num_clients=2,3"], "num_clients=2,3: "),
    ],
)
def test_a_mistake_costs_one_line(
    arguments: list[str], message: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert not runs.exists()


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["show", "num_clients=2", "out=file"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("out=file: ")
    assert err.count("\n") == 1


def test_choices_of_the_user_s_own_are_found(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more" / "clock").mkdir(parents=True)
    (tmp_path / "own_clock.py").write_text("from scenarios.clocks import Clock as Own\n")
    (tmp_path / "more" / "clock" / "own.yaml").write_text("_target_: own_clock.Own\ndelay: 3\n")
    shown = ["show", "--config-dir", "more", "clock=own", "num_clients=2", "--no-pictures"]
    assert main(shown) == 0
    assert " 53 rounds," in capsys.readouterr().out
    sys.modules.pop("own_clock")


def test_help_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fedlearn show")
    for line in out.splitlines():
        if line.startswith("  fedlearn show"):
            prepare(compose(line.split("   ")[0].split()[2:]))
    with environment("COMP_LINE", "fedlearn show clock=s"):
        assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["clock=shuffled", "clock=staggered"]


@pytest.mark.parametrize("arguments", [["show", "--help"], ["show", "num_client=3"]])
def test_help_and_mistakes_are_answered_without_torch(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom fedlearn.cli import main\n"
        f"main({arguments!r})\n"
        "assert not {'torch', 'matplotlib', 'flwr'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=tmp_path, check=True)


# --- docs/scenarios.md --------------------------------------------------------------------------


def test_the_docs_show_pictures_made_by_their_commands() -> None:
    pictures = re.findall(r"\]\(([\w/]+\.png)\)", DOCS)
    assert 3 <= len(pictures) <= 6
    for picture in pictures:
        assert (ROOT / "docs" / picture).stat().st_size < 150_000


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_of_the_docs_runs(command: str, runs: Path) -> None:
    program, name, *overrides = command.split()
    assert (program, name in ("show", "run")) == ("fedlearn", True)
    dry = ["dry_run=true", "tracker=none"] if name == "run" else []
    assert main([name, *overrides, *dry]) == 0
    shutil.rmtree(runs, ignore_errors=True)


OWN_FILES = {"natural", "from_file", "flower", "sources"}  # need a tag, a file or a package


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, choice.name)
        for group in ("scenario", "partition", "clock", "skew")
        for choice in find_choices()[group]
        if choice.name not in OWN_FILES
    ],
)
def test_every_choice_of_a_protocol_is_drawn(group: str, name: str, runs: Path) -> None:
    if (group, name) == ("partition", "on_site"):
        pytest.skip("nobody can draw it: who holds what is known at the sites alone")
    if "root" in compose([f"{group}={name}"]).tree["dataset"]:
        pytest.skip("its data are files that are not here; its stream is drawn with digits")
    assert main(["show", f"{group}={name}", "num_clients=5"]) == 0
    pictures = {path.stem for path in runs.rglob("*.png")}
    assert pictures >= {"partition", "clock"}
    assert ("samples" in pictures) == (name != "permuted_diabetes")
    shutil.rmtree(runs)


def test_a_stream_of_sources_by_writer_is_drawn(runs: Path) -> None:
    own = ["dataset=idsprites", "scenario=sources", "scenario.by=scale"]
    assert main(["show", *own, "partition=natural", "partition.by=orientation"]) == 0
    assert len(list(runs.rglob("*.png"))) == 3


def test_the_docs_name_every_choice_of_a_protocol() -> None:
    for group in ("clock", "partition", "skew", "scenario", "cohort"):
        for choice in find_choices()[group]:
            assert f"`{choice.name}`" in DOCS, f"{group}={choice.name}"
