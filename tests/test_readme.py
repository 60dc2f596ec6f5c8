"""Every command that the README shows is one that runs."""

import re
import shlex
from pathlib import Path

import pytest

from fedlearn.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(
    {line.partition("#")[0].strip() for line in README.splitlines() if line.startswith("fedlearn ")}
)


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", [line for line in COMMANDS if "DIR" not in line])
def test_a_command_of_the_readme_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, *arguments = shlex.split(command)
    dry = ["dry_run=true", "tracker=none"] if arguments[0] == "run" else []
    assert main([*arguments, *dry]) == 0


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_of_the_readme_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"\(0, 1\) [0-9a-f]{64}\n", capsys.readouterr().out)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([\w./]+)\)", README))))
def test_a_file_that_the_readme_links_to_is_there(path: str) -> None:
    assert (ROOT / path).exists()
