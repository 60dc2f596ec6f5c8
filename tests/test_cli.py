"""The command line: what a user types and sees."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import fedlearn
from fedlearn.cli import COMMANDS, main
from fedlearn.commands.dry_run import estimate
from fedlearn.config.choices import default_choices, find_choices, keys
from fedlearn.config.composition import compose
from fedlearn.config.experiment import build, prepare
from fedlearn.grids import RunFailedError

TINY = [
    "tracker=none",
    "continual=naive",
    "num_clients=3",
    "rounds_per_experience=1",
    "scenario.num_experiences=2",
    "local.epochs=1",
]


def summaries(runs: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(runs.glob("**/summary.json"))]


# --- help ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name}" in out for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fedlearn {fedlearn.__version__}\n"


def test_help_of_run_lists_every_key_and_every_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    for key in keys():
        assert re.search(rf"^  {re.escape(key.name)}=", out, re.MULTILINE)
    flat = " ".join(out.split())
    for group, choices in find_choices().items():
        assert f"\n  {group} " in out
        assert all(f"{choice.name}" in flat for choice in choices)
    assert out.count("\n  fedlearn run") == 6
    assert max(map(len, out.splitlines())) <= 100


def test_the_examples_in_the_help_compose(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["run", "--help"]):
        main(arguments)
        for line in capsys.readouterr().out.splitlines():
            if line.startswith("  fedlearn run"):
                words = line.split("   ")[0].split()[2:]
                overrides = [word.split(",")[0] for word in words if "=" in word]
                prepare(compose(overrides))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["rnu"]])
def test_nothing_heavy_is_imported_for_help(arguments: list[str], tmp_path: Path) -> None:
    program = (
        "import sys\nfrom fedlearn.cli import main\n"
        f"main({arguments!r})\n"
        "heavy = {'torch', 'numpy', 'avalanche', 'wandb', 'flwr', 'hydra', 'omegaconf'}\n"
        "sys.stderr.write('heavy: ' + ' '.join(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr.endswith("heavy: ")


def test_a_wrong_key_is_answered_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom fedlearn.cli import main\n"
        "assert main(['run', 'local.epoch=3']) == 2\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=tmp_path, check=True)


# --- showing ------------------------------------------------------------------------------------


def test_cfg_shows_what_would_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--cfg", "job", "--resolve", "continual=ewc", "local.epochs=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == compose(["continual=ewc", "local.epochs=7"]).tree
    assert not runs.exists()


def test_cfg_of_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--cfg", "job", "--package", "local"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown == compose().tree["local"]


def complete(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    os.environ["COMP_LINE"] = line
    try:
        assert main(["-sc", "query=bash"]) == 0
    finally:
        del os.environ["COMP_LINE"]
    return capsys.readouterr().out.split()


def test_tab_completes_commands_groups_choices_and_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert complete("fedlearn ", capsys) == list(COMMANDS)
    assert complete("fedlearn ru", capsys) == ["run"]
    assert complete("fedlearn list opt", capsys) == ["optimizer"]
    assert complete("fedlearn run continual=ew", capsys) == [
        "continual=ewc",
        "continual=ewc_online",
        "continual=ewc_replay",
    ]
    assert complete("fedlearn run continual=naive local.ep", capsys) == ["local.epochs="]
    offered = complete("fedlearn run aggregation=", capsys)
    assert offered == [f"aggregation={choice.name}" for choice in find_choices()["aggregation"]]


def test_tab_completion_installs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-sc", "install=bash"]) == 0
    assert "complete -o nospace" in capsys.readouterr().out


# --- running ------------------------------------------------------------------------------------


def test_a_run_leaves_its_record_and_a_clean_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *TINY]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "INFO" not in out
    (run,) = runs.glob("*/*")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run.parent.name)
    assert re.fullmatch(r"\d\d-\d\d-\d\d-\d{6}_split_digits-naive-fedavg", run.name)
    assert {path.name for path in run.iterdir()} >= {
        ".hydra",
        "fedlearn.log",
        "metrics.jsonl",
        "summary.json",
        "manifest.json",
        "env.json",
    }
    assert (run / ".hydra" / "overrides.yaml").read_text() == yaml.safe_dump(TINY)
    (summary,) = summaries(runs)
    assert (summary["status"], summary["rounds"]) == ("completed", 2)


def test_a_run_records_the_command_that_started_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fedlearn", "run", *TINY])
    assert main() == 0
    (environment,) = runs.glob("*/*/env.json")
    assert json.loads(environment.read_text())["command"] == ["fedlearn", "run", *TINY]


def test_two_runs_in_one_second_do_not_collide_and_are_equal(runs: Path) -> None:
    assert main(["run", *TINY]) == main(["run", *TINY]) == 0
    first, second = summaries(runs)
    assert first["digest"] == second["digest"]


def test_nothing_of_the_process_is_changed(runs: Path) -> None:
    def state() -> tuple[Any, ...]:
        flower, root = logging.getLogger("flwr"), logging.getLogger()
        return (
            list(sys.argv),
            list(sys.path),
            dict(os.environ),
            Path.cwd(),
            GlobalHydra.instance().is_initialized(),
            HydraConfig.instance().cfg,
            (root.level, list(root.handlers)),
            (flower.level, list(flower.handlers), flower.propagate),
        )

    main(["run", *TINY])  # what importing changes has changed
    before = state()
    assert main(["run", *TINY]) == 0
    assert state() == before


def test_a_multirun_runs_every_combination_and_compares_them(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [text for text in TINY if text != "continual=naive"]
    assert main(["run", "-m", *tiny, "continual=naive,replay", "seed=0,1"]) == 0
    out = capsys.readouterr().out
    (sweep,) = runs.glob("*/*_multirun")
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == [
        "0_continual=naive_seed=0",
        "1_continual=naive_seed=1",
        "2_continual=replay_seed=0",
        "3_continual=replay_seed=1",
    ]
    lines = [line.split() for line in out[out.index(" run  ") :].splitlines()]
    rows = [words[:2] for words in lines if words and words[0].startswith("continual=")]
    assert rows == [["continual=naive", "2"], ["continual=replay", "2"]]
    assert len({summary["digest"] for summary in summaries(runs)}) == 4


def test_a_multirun_over_seeds_is_one_row(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", *TINY, "seed=range(2)"]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out[out.index(" run  ") :].splitlines()]
    rows = [words[:2] for words in lines if words and words[0].startswith("split_digits")]
    assert rows == [["split_digits-naive-fedavg", "2"]]


def test_a_value_with_a_slash_is_not_part_of_a_directory(runs: Path) -> None:
    wandb = ["tracker=wandb", "tracker.mode=disabled", "tracker.project=a/b,a/c"]
    assert main(["run", "-m", *TINY, *wandb, "seed=0,1"]) == 0
    assert len(summaries(runs)) == 4
    (sweep,) = runs.glob("*/*_multirun")
    assert {path.name for path in sweep.iterdir()} == {
        *("0_seed=0", "1_seed=1", "2_seed=0", "3_seed=1"),
        "multirun.yaml",
    }


def test_jobs_with_long_names_are_numbered(runs: Path) -> None:
    names = ["a" * 199, "b" * 199]
    assert main(["run", "-m", *TINY, f"name={','.join(names)}"]) == 0
    (sweep,) = runs.glob("*/*_multirun")
    assert sorted(path.name for path in sweep.glob("*/")) == ["0", "1"]


def test_one_failing_job_does_not_keep_the_others_from_running(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "-m", *TINY, "scenario.num_experiences=11,2"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("0_scenario.num_experiences=11: scenario.num_experiences=11: ")
    assert err.count("\n") == 1
    assert [summary["status"] for summary in summaries(runs)] == ["completed"]
    assert len(list(runs.glob("*/*_multirun/*/"))) == 1


def test_glob_takes_every_choice_but_shared_bases(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "-m", "dry_run=true", "tracker=none", "aggregation=glob(fed*)"]) == 0
    names = [choice.name for choice in find_choices()["aggregation"]]
    out = capsys.readouterr().out
    for name in names:
        assert (f"-{name}\n" in out) == name.startswith("fed")
    assert not runs.exists()


def test_a_run_that_cannot_learn_fails_with_one_line(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *TINY, "optimizer.lr=1e30", "max_failed_rounds=1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "rounds in a row failed" in err or "round" in err
    (summary,) = summaries(runs)
    assert summary["status"] == "failed"
    assert "fail" in next(runs.glob("*/*/fedlearn.log")).read_text()


def test_a_failed_job_of_a_multirun_is_exit_1(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = iter([RunFailedError("nothing learned"), KeyError("a bug")])

    def execute(*_: object) -> None:
        raise next(failures)

    monkeypatch.setattr("fedlearn.commands.task.execute", execute)
    assert main(["run", "-m", *TINY, "seed=0,1"]) == 1
    err = capsys.readouterr().err
    assert "0_seed=0: nothing learned\n" in err
    assert "1_seed=1: Traceback" in err
    assert "KeyError: 'a bug'" in err


def test_ctrl_c_is_exit_130(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedlearn.commands.task.execute", execute)
    assert main(["run", *TINY]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert main(["run", "-m", *TINY, "seed=0,1"]) == 130


def test_a_bug_is_raised(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("fedlearn.commands.task.execute", execute)
    with pytest.raises(KeyError, match="a bug"):
        main(["run", *TINY])


def test_flowers_log_lines_go_into_the_log_once_and_not_to_the_terminal(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def execute(*_: object) -> None:
        logging.getLogger("flwr").info("a line of Flower's")

    monkeypatch.setattr("fedlearn.commands.task.execute", execute)
    assert main(["run", *TINY]) == 0
    out, err = capfd.readouterr()
    assert "Flower's" not in out + err
    assert next(runs.glob("*/*/fedlearn.log")).read_text().count("Flower's") == 1


# --- dry run ------------------------------------------------------------------------------------


def test_a_dry_run_prints_and_leaves_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "dry_run=true"]) == 0
    out, err = capsys.readouterr()
    assert "5 experiences x 10 rounds = 50 rounds" in out
    assert "7,510 (mlp)" in out
    assert err == ""
    assert not runs.exists()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["fraction_train=0.6", "fraction_evaluate=0.4", "num_clients=20", "seed=3"],
        ["model.batch_norm=true", "fraction_evaluate=0", "local.epochs=2"],
    ],
)
def test_a_dry_run_foretells_what_the_run_then_costs(overrides: list[str], runs: Path) -> None:
    arguments = [*TINY, *overrides]
    foretold = estimate(build(prepare(compose(arguments))))
    assert main(["run", *arguments]) == 0
    (summary,) = summaries(runs)
    assert summary["rounds"] == foretold.rounds
    assert summary["work"]["steps"] == foretold.steps
    assert summary["comm"]["down_bytes"] == foretold.down_bytes
    assert summary["comm"]["up_bytes"] == foretold.up_bytes


# --- the user's own -----------------------------------------------------------------------------


def test_a_choice_of_the_users_needs_one_file_of_python_and_one_of_yaml(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_models_for_test.py").write_text(
        "from torch import nn\n\n"
        "def linear(input_shape: tuple[int, ...], num_classes: int, bias: bool = True):\n"
        "    size = 1\n"
        "    for each in input_shape:\n"
        "        size *= each\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size, num_classes, bias=bias))\n"
    )
    more = tmp_path / "my conf" / "model"
    more.mkdir(parents=True)
    (more / "linear.yaml").write_text(
        "# One linear layer\n_target_: my_models_for_test.linear\nbias: false\n"
    )
    own = ["--config-dir", str(more.parent), "model=linear"]
    assert main(["run", *own, *TINY]) == 0
    assert summaries(runs)[0]["status"] == "completed"
    assert main(["run", *own, *TINY, "-m", "model.bias=true,false"]) == 0
    assert len(summaries(runs)) == 3
    capsys.readouterr()
    assert main(["run", *own, "model.bias=3"]) == 2
    assert capsys.readouterr().err == "model.bias=3: must be true or false\n"
    assert main(["run", "--config-dir", str(more.parent), "model=liner"]) == 2
    assert "did you mean linear?" in capsys.readouterr().err


def test_a_model_that_does_not_fit_the_data_is_the_users_mistake(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "misfits_for_test.py").write_text(
        "from torch import nn\n\n"
        "def narrow(input_shape, num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3, num_classes))\n\n"
        "def headless(input_shape, num_classes):\n"
        "    return nn.Flatten()\n"
    )
    more = tmp_path / "conf" / "model"
    more.mkdir(parents=True)
    for name in ("narrow", "headless"):
        (more / f"{name}.yaml").write_text(f"# {name}\n_target_: misfits_for_test.{name}\n")
    own = ["run", "--config-dir", str(more.parent), *TINY]
    assert main([*own, "model=narrow"]) == 2
    assert "model=narrow: takes no input of shape [1, 1, 8, 8]" in capsys.readouterr().err
    assert main([*own, "model=headless"]) == 2
    assert "model=headless: gives an output of shape [1, 64]" in capsys.readouterr().err
    assert not runs.exists()


# --- doctor -------------------------------------------------------------------------------------


def test_doctor_finds_this_machine_fit(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for fact in ("python", "flwr", "torch", "cpu", "digits", "mnist", "W&B", "ready"):
        assert fact in out
    assert not runs.exists()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ("engine=functional", "deferred, 128 clients at once: linear layers and plain SGD: "),
        (
            "engine=functional continual=ewc",
            "chain, 128 clients at once: the model is a chain of layers",
        ),
        ("engine=functional model=cnn runtime.executor=vectorized", "chain, 1 clients at once"),
        ("engine=functional model.dropout=0.5", "loop, 1 clients at once: "),
        ("engine=avalanche", "no: runtime.executor=vectorized: needs engine=functional"),
    ],
)
def test_doctor_says_how_cohorts_would_be_trained_and_why(
    overrides: str, told: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *overrides.split()]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "vectorized  " in each]
    assert told in line
    assert not runs.exists()


def test_doctor_finds_what_a_run_cannot_do(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "num_clients=0"]) == 1
    assert "broken num_clients=0: must be at least 1" in capsys.readouterr().out


def test_doctor_looks_at_the_disk_that_the_run_would_write_to(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "elsewhere" / "runs"
    assert main(["doctor", f"out={out}"]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if "runs go into" in each]
    assert f"{out} (" in line
    assert not out.exists()
    out.parent.touch()
    assert main(["doctor", f"out={out}"]) == 1
    assert f"broken out={out}: {out.parent} is not a directory" in capsys.readouterr().out


def test_doctor_says_what_is_broken_and_how_to_mend_it(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import metadata

    versions = metadata.version

    def version(name: str) -> str:
        if name == "avalanche-lib":
            raise metadata.PackageNotFoundError(name)
        return "1.0.0" if name == "flwr" else versions(name)

    monkeypatch.setattr("fedlearn.commands.doctor.metadata.version", version)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "avalanche-lib is not installed: pip install 'avalanche-lib==0.6.0'" in out
    assert "flwr 1.0.0 is not what fedlearn was tested with" in out
    assert "ready" not in out


def test_the_defaults_are_choices() -> None:
    choices = find_choices()
    for group, name in default_choices().items():
        assert name == "null" or name in [choice.name for choice in choices[group]]
