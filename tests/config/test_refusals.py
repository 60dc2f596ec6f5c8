"""Strategies that cannot work here are refused by name, with the reason."""

from pathlib import Path

import pytest
import yaml

from fedlearn.cli import main
from fedlearn.config.choices import conf_dir, find_choices
from fedlearn.config.composition import compose
from fedlearn.config.errors import ConfigError
from fedlearn.config.experiment import prepare

REFUSALS = {
    path.stem: node["refused"]
    for path in sorted(conf_dir().glob("continual/*.yaml"))
    if "refused" in (node := yaml.safe_load(path.read_text()))
}


def test_there_are_some() -> None:
    assert {"ar1", "expert_gate", "il2m", "l2p"} <= set(REFUSALS)


@pytest.mark.parametrize("name", REFUSALS)
def test_the_reason_is_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", f"continual={name}", "dry_run=true"]) == 2
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).strip().splitlines()
    assert lines == [f"continual={name}: {REFUSALS[name]}"]


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_no_choice(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name not in [choice.name for choice in find_choices()["continual"]]
    assert main(["list", "continual"]) == 0
    assert f"continual={name} " not in capsys.readouterr().out


def test_a_refusal_is_not_what_somebody_meant() -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(compose(["continual=ar_1"]))
    assert "ar1" not in str(caught.value)


def test_any_group_and_any_directory_may_refuse(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    reason = "model: takes a name,\n  not a size"
    (tmp_path / "model" / "huge.yaml").write_text(f"# Huge\nrefused: '{reason}'\n")
    composed = compose(["model=huge"], tmp_path)
    with pytest.raises(ConfigError, match=r"^model=huge: model: takes a name, not a size$"):
        prepare(composed)
    assert "huge" not in [choice.name for choice in find_choices([tmp_path])["model"]]
