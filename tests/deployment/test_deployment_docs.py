"""Every command that docs/deployment.md, the README and a deployment's own README show is real."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from fedlearn.commands import deploy
from fedlearn.config.composition import compose

ROOT = Path(__file__).parents[2]
SHOWN = [
    ROOT / "docs" / "deployment.md",
    ROOT / "README.md",
    *sorted((ROOT / "fedlearn" / "deployment" / "templates").iterdir()),
]
PLACEHOLDERS = {"RUN": "1", "K": "0", "{{nodes}}": "3"}


def _commands(kind: str) -> list[list[str]]:
    """Return the arguments of the commands of a kind, each once."""
    text = "\n".join(path.read_text() for path in SHOWN)
    found = re.findall(rf"^[#$ ]*fedlearn {kind} (.*)$", text, re.MULTILINE)
    found += re.findall(rf"`fedlearn {kind} (\w+ [^`]+)`", text)
    lines = sorted({line.partition(" #")[0].strip() for line in found})
    return [[PLACEHOLDERS.get(word, word) for word in shlex.split(line)] for line in lines]


@pytest.mark.parametrize("arguments", _commands("deploy"), ids=" ".join)
def test_a_deploy_command_has_these_options(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[argparse.Namespace] = []
    actions = dict.fromkeys(deploy._ACTIONS, lambda flags: taken.append(flags) or 0)
    monkeypatch.setattr(deploy, "_ACTIONS", actions)
    assert deploy.command(arguments) == 0
    assert len(taken) == 1


RUNS = [each for each in _commands("run") if "runtime=deployment" in each]


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_a_run_can_be_composed(overrides: list[str]) -> None:
    filled = [re.sub(r"\{\{nodes\}\}|=N$", "3" if "{{" in x else "=3", x) for x in overrides]
    assert compose(filled).choices["runtime"] == "deployment"


def test_commands_were_found() -> None:
    actions = {arguments[0] for arguments in _commands("deploy")}
    assert {"init", "superlink", "supernode", "status", "stop"} <= actions
    assert len(RUNS) >= 3
