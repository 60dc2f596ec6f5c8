"""env.json: versions and code state, and no secret."""

import json
import subprocess
import sys

from fedlearn.tracking.environment import describe_environment, git_state


def git(folder, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True
    )


def test_the_environment_is_json_and_names_versions():
    told = describe_environment()
    json.dumps(told, allow_nan=False)
    assert told["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert told["packages"]["flwr"].startswith("1.")
    assert told["cpu_count"] >= 1


def test_no_package_is_imported_for_its_version():
    code = (
        "import sys; from fedlearn.tracking.environment import describe_environment as d; d();"
        "print([m for m in ('torch', 'avalanche', 'wandb', 'flwr', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_secrets_on_the_command_line_and_in_the_environment_stay_out(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "sesame-open-sesame")
    monkeypatch.setattr(sys, "argv", ["fedlearn", "a.token=abcd", "x=sesame-open-sesame", "seed=3"])
    told = describe_environment()
    assert told["command"] == ["fedlearn", "a.token=[redacted]", "x=[redacted]", "seed=3"]
    assert "sesame" not in json.dumps(told)


def test_git_state_tells_clean_from_dirty_and_ours_from_others(tmp_path):
    code = tmp_path / "code.py"
    code.write_text("1")
    assert git_state(code) is None, "no repository"
    git(tmp_path, "init")
    assert git_state(code) is None, "not tracked"
    git(tmp_path, "add", "code.py")
    assert git_state(code) is None, "no commit"
    git(tmp_path, "commit", "-m", "first")
    clean = git_state(code)
    assert clean is not None
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    code.write_text("2")
    assert git_state(code) == {**clean, "dirty": True}
